"""The public code's scores beside the strict ones: every oddity a row, in both modes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_forget.errors import ConfigError, LmmForgetError
from lmm_forget.tasks.scoring.choice_or_text import ChoiceOrTextScorer
from lmm_forget.tasks.scoring.clock import ClockTimeScorer
from lmm_forget.tasks.scoring.compat import COMPAT_RULES
from lmm_forget.tasks.scoring.compat.choice_rules import extract_mcq_letter
from lmm_forget.tasks.scoring.letters import OptionLetterScorer
from lmm_forget.tasks.scoring.numbers import WholeNumberScorer
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.text_match import ANLSScorer, ContainsTextScorer, RelaxedAccuracyScorer
from lmm_forget.tasks.scoring.vqa import VQAAccuracyScorer
from lmm_forget.tasks.scoring.yes_no_or_open import YesNoOrOpenScorer
from lmm_forget.tasks.task import Sample
from lmm_forget.tasks.task_loading import build_task


def sample(*answers: str, question: str = "?", dataset: str = "") -> Sample:
    return Sample("s", "i", (), question, answers, None, {"dataset": dataset})


def scorer(name: str) -> AnswerScorer:
    """The scorer that the task of this rule has."""
    task = name.split(".")[1].split("_")[0]
    known: dict[str, AnswerScorer] = {
        "pixmocount": WholeNumberScorer(compat=name),
        "countbench": WholeNumberScorer(compat=name),
        "countbenchqa": WholeNumberScorer(compat=name),
        "clock": ClockTimeScorer(tolerance_minutes=1, compat=name),
        "pathvqa": YesNoOrOpenScorer(compat=name),
        "textvqa": VQAAccuracyScorer(compat=name),
        "chartqa": RelaxedAccuracyScorer(compat=name),
        "docvqa": ANLSScorer(compat=name),
        "infovqa": ANLSScorer(compat=name),
        "realworldqa": ChoiceOrTextScorer(compat=name),
        "ocrbench": ContainsTextScorer(compat=name),
    }
    return known.get(task) or OptionLetterScorer(compat=name)


WAY = "Which way?\nA. Left\nB. Right, now\nC. Yes\nAnswer with the letter only."
ACUTE = "Is it acute or chronic?"
TEN = ("stop", "stop", "stop", "stop sign", "a stop", "Stop!", "no", "no", "2", "two")

# rule, references, answer, strict, compat
TABLE: list[tuple[str, tuple[str, ...], str, float, float]] = [
    # CUB-200: any letter that stands alone, else the first character
    ("paper.cub200", ("C",), "C", 1, 1),
    ("paper.cub200", ("C",), "c.", 0, 1),
    ("paper.cub200", ("C",), "(C) wren", 0, 1),
    ("paper.cub200", ("I",), "I think D", 0, 1),
    ("paper.cub200", ("A",), "a bird, C", 0, 1),
    ("paper.cub200", ("C",), "a bird, C", 0, 0),
    ("paper.cub200", ("T",), "isn't clear", 0, 1),
    ("paper.cub200", ("C",), "Cardinal", 0, 1),
    ("paper.cub200", ("C",), "", 0, 0),
    # PixMo-Count: dots deleted, number words replaced inside words in counting order
    ("paper.pixmocount", ("17",), "17", 1, 1),
    ("paper.pixmocount", ("17",), "seventeen", 1, 0),
    ("paper.pixmocount", ("7",), "seventeen", 0, 1),
    ("paper.pixmocount", ("14",), "fourteen", 1, 0),
    ("paper.pixmocount", ("4",), "fourteen", 0, 1),
    ("paper.pixmocount", ("1",), "someone", 0, 1),
    ("paper.pixmocount", ("25",), "2.5", 0, 1),
    ("paper.pixmocount", ("21",), "twenty-one", 1, 0),
    ("paper.pixmocount", ("20",), "twenty-one", 0, 1),
    ("paper.pixmocount", ("3",), "3 of 5", 0, 1),
    ("paper.pixmocount", ("There are 5 dogs in this image.",), "5", 1, 1),
    ("paper.pixmocount", ("3",), "many", 0, 0),
    ("lmms_eval.pixmocount", ("7",), "seven", 1, 0),
    ("lmms_eval.pixmocount", ("7",), "07", 1, 0),
    ("lmms_eval.pixmocount", ("7",), "7 birds and 2 dogs", 0, 1),
    # CountBench
    ("paper.countbench", ("17",), "seventeen", 1, 0),
    ("paper.countbench", ("7",), "seventeen", 0, 1),
    ("paper.countbench", ("2",), "someone saw two", 1, 0),
    ("paper.countbench", ("10",), "1.0", 0, 1),
    ("paper.countbench", ("7",), "two of 7", 0, 1),
    ("lmms_eval.countbench", ("17",), "Seventeen", 1, 1),
    ("lmms_eval.countbench", ("7",), "7 birds", 1, 0),
    ("lmms_eval.countbench", ("0",), "none", 0, 1),
    ("lmms_eval.countbenchqa", ("7",), "7", 1, 1),
    ("lmms_eval.countbenchqa", ("7",), "seven", 1, 0),
    # clocks: the hour hand does not wrap, the minute hand wraps alone
    ("paper.clock", ("03:45",), "3:44", 1, 1),
    ("paper.clock", ("01:00",), "12:59", 1, 0),
    ("paper.clock", ("03:00",), "3:59", 0, 1),
    ("paper.clock", ("00:30",), "12:30", 1, 0),
    ("paper.clock", ("03:45",), "15:45", 1, 0),
    ("paper.clock", ("03:45",), "it is 3 past 45", 0, 1),
    ("paper.clock", ("03:45",), "The time shown is 3:45.", 1, 1),
    ("paper.clock", ("03:45",), "3:45 or 9:10", 0, 1),
    ("paper.clock", ("03:45",), "45", 0, 0),
    ("paper.clock", ("03:45",), "3.45", 0, 0),  # dots are deleted first
    ("paper.clock", ("03:45",), "3:45 p.m.", 1, 1),
    ("paper.clock", ("03:45",), "half past three", 0, 0),
    # PathVQA: overlaps that are called exact match, F1 and BLEU
    ("paper.pathvqa_exact_match", ("chronic liver inflammation",), "liver", 0, 1),
    ("paper.pathvqa_exact_match", ("yes",), "yes, it is", 0, 1 / 3),
    ("paper.pathvqa_exact_match", ("yes",), "Yes", 1, 1),
    ("paper.pathvqa_exact_match", ("12",), "12", 1, 0),
    ("paper.pathvqa_exact_match", ("liver",), "liver liver", 0, 0.5),
    ("paper.pathvqa_f1", ("liver",), "liver liver", 0, 1),
    ("paper.pathvqa_f1", ("chronic liver",), "liver", 0, 2 / 3),
    ("paper.pathvqa_f1", ("chronic liver",), "kidney", 0, 0),
    ("paper.pathvqa_bleu1", ("liver",), "kidney stone", 0, 1),
    ("paper.pathvqa_bleu1", ("liver",), "", 0, 0),
    ("paper.pathvqa_bleu1", ("liver",), "lung", 0, math.exp(1 - 5 / 4)),
    ("paper.pathvqa_bleu2", ("chronic liver",), "chronic liver", 1, 1),
    ("paper.pathvqa_bleu3", ("a b c d",), "a b c x y z", 0, (3 / 6 * 2 / 5 * 1 / 4) ** (1 / 3)),
    # AI2D: a leading "B." is cut out, case and punctuation are ignored
    ("paper.ai2d", ("B",), "B", 1, 1),
    ("paper.ai2d", ("B",), "(b)", 0, 1),
    ("paper.ai2d", ("B",), "B. blue", 0, 1),
    ("paper.ai2d", ("B",), "b. blue", 0, 0),
    ("paper.ai2d", ("B",), "B) blue", 0, 0),
    # ChartQA
    ("paper.chartqa", ("100",), "105", 1, 1),
    ("paper.chartqa", ("0",), "0.0", 1, 0),
    ("paper.chartqa", ("0",), "0", 1, 1),
    ("paper.chartqa", ("5%",), "0.05", 1, 1),
    ("paper.chartqa", ("5%",), "5", 0, 0),
    ("paper.chartqa", ("5%",), "5 %", 1, 1),
    ("paper.chartqa", ("1,250",), "1250", 1, 0),
    ("paper.chartqa", ("1000",), "1e3", 0, 1),
    ("paper.chartqa", ("nan",), "nan", 1, 0),
    ("paper.chartqa", ("Blue",), "blue", 1, 1),
    # ANLS: lengths of raw texts
    ("paper.docvqa", ("blue",), "blxx", 0.5, 0.5),
    ("paper.docvqa", ("blue",), "bxxx", 0, 0),
    ("paper.docvqa", ("a    b",), "a c", 2 / 3, 5 / 6),
    ("paper.infovqa", ("kitten", "mitten"), "sitten", 5 / 6, 5 / 6),
    ("paper.docvqa", ("STRASSE",), "straße", 1, 1 - 2 / 7),
    # SEED-Bench: the first character
    ("paper.seedbench", ("B",), "b", 0, 1),
    ("paper.seedbench", ("B",), "Because it is red", 0, 1),
    ("paper.seedbench", ("B",), "(B)", 0, 0),
    # ScienceQA: the whole answer; 0.7.3 mended the dot
    ("paper.scienceqa", ("B",), "b", 0, 1),
    ("paper.scienceqa", ("B",), "B.", 0, 0),
    ("paper.scienceqa", ("B",), "B. blue", 0, 0),
    ("lmms_eval.scienceqa", ("B",), "B. blue", 0, 1),
    ("lmms_eval.scienceqa", ("B",), "b. blue", 0, 0),
    # MMStar: four openings; 0.7.3 extracts
    ("paper.mmstar", ("A",), "A: red", 0, 1),
    ("paper.mmstar", ("A",), "Apple", 0, 1),
    ("paper.mmstar", ("A",), "(a) red", 0, 1),
    ("paper.mmstar", ("A",), "Option A", 0, 1),
    ("paper.mmstar", ("B",), "The answer is blue", 0, 1),
    ("paper.mmstar", ("B",), "Answer: B", 0, 0),
    ("lmms_eval.mmstar", ("B",), "Answer: B", 0, 1),
    ("lmms_eval.mmstar", ("A",), "Apple", 0, 1),
    ("lmms_eval.mmstar", ("A",), "a", 0, 0),
    ("lmms_eval.mmstar", ("A",), "A bird, not B, is C.", 0, 1),
    # OCRBench: substrings; formulas are lowered on one side only
    ("paper.ocrbench", ("1",), "2012", 0, 1),
    ("paper.ocrbench", ("Cafe",), "the CAFE sign", 1, 1),
    ("paper.ocrbench", ("new york",), "new\nyork", 1, 1),
    ("lmms_eval.ocrbench", ("ＡＢ",), "ab", 1, 1),
    ("paper.ocrbench", ("ＡＢ",), "ab", 1, 0),
]


@pytest.mark.parametrize(("name", "references", "answer", "strict", "compat"), TABLE)
def test_strict_and_compat(name: str, references: tuple[str, ...], answer: str, strict: float, compat: float) -> None:
    scores = scorer(name)(answer, sample(*references))
    assert (scores["value"], scores["compat"]) == (pytest.approx(strict), pytest.approx(compat))


@pytest.mark.parametrize(
    ("name", "reference", "answer", "strict", "compat"),
    [
        ("paper.realworldqa", "A", "A", 1, 1),
        ("paper.realworldqa", "A", "a.", 0, 1),
        ("paper.realworldqa", "A", "A. Left", 0, 1),
        ("paper.realworldqa", "A", "I go Left", 0, 1),
        ("paper.realworldqa", "A", "left", 0, 0),  # the search for an option minds case
        ("paper.realworldqa", "B", "Right, now", 0, 0),  # the answer loses its comma, the option does not
        ("paper.realworldqa", "C", "Yesterday", 0, 1),
        ("paper.realworldqa", "B", "B) Left", 0, 0),
        ("lmms_eval.realworldqa", "A", "A. Left", 0, 1),
        ("lmms_eval.realworldqa", "A", "a", 0, 0),
        ("lmms_eval.realworldqa", "A", "Left", 0, 0),
    ],
)
def test_options_are_read_from_the_question(
    name: str, reference: str, answer: str, strict: float, compat: float
) -> None:
    scores = scorer(name)(answer, sample(reference, question=WAY))
    assert (scores["value"], scores["compat"]) == (strict, compat)


@pytest.mark.parametrize(
    ("name", "reference", "answer", "strict", "compat"),
    [
        ("paper.realworldqa", "3", "three", 1, 1),
        ("paper.realworldqa", "3", "three cars", 1, 0),
        ("paper.realworldqa", "12", "twelve", 1, 0),
        ("paper.realworldqa", "Yes", "yes.", 0, 1),
        ("lmms_eval.realworldqa", "3", "three", 1, 0),
        ("lmms_eval.realworldqa", "Yes", "yes.", 0, 1),
    ],
)
def test_open_questions_of_realworldqa(name: str, reference: str, answer: str, strict: float, compat: float) -> None:
    scores = scorer(name)(answer, sample(reference, question="How many cars are there?"))
    assert (scores["value"], scores["compat"]) == (strict, compat)


FORMULA = r"A ^ { 2 }"


@pytest.mark.parametrize(
    ("name", "answer", "strict", "compat"),
    [
        ("paper.ocrbench", r"A^{2}", 1, 0),
        ("lmms_eval.ocrbench", r"A^{2}", 1, 1),
        ("lmms_eval.ocrbench", r"a^{2}", 0, 0),
        ("lmms_eval.ocrbench", r"it is $A ^{ 2}$", 1, 1),
    ],
)
def test_formulas(name: str, answer: str, strict: float, compat: float) -> None:
    scores = scorer(name)(answer, sample(FORMULA, dataset="HME100k"))
    assert (scores["value"], scores["compat"]) == (strict, compat)


@pytest.mark.parametrize(
    ("question", "reference", "answer", "compat"),
    [
        ("Is the liver inflamed?", "yes", "Yes", 1),
        ("Is the liver inflamed?", "yes", "yes.", 0),
        (ACUTE, "chronic", "Chronic", 1),
        ("  IS it?", "no", "no", 1),
        ("What is shown?", "liver", "liver", None),
        ("is", "no", "no", None),
        ("Issue seen?", "no", "no", None),
    ],
)
def test_binary_accuracy_goes_by_the_question(question: str, reference: str, answer: str, compat: float | None) -> None:
    asked = sample(reference, question=question)
    assert YesNoOrOpenScorer(compat="paper.pathvqa_binary_accuracy")(answer, asked)["compat"] == compat


@pytest.mark.parametrize(
    ("answer", "score"),
    [("stop", 1), ("STOP.", 1), ("the stop?", 1), ("stop sign", 0.3), ("no", 0.6), ("two", 0.6), ("go", 0)],
)
def test_ten_annotators(answer: str, score: float) -> None:
    for family in ("paper", "lmms_eval"):
        scores = VQAAccuracyScorer(compat=f"{family}.textvqa")(answer, sample(*TEN))
        assert scores["value"] == scores["compat"] == pytest.approx(score)


def test_few_annotators_can_be_matched_only_strictly() -> None:
    scores = VQAAccuracyScorer(compat="paper.textvqa")("stop", sample("stop"))
    assert (scores["value"], scores["compat"]) == (1, 0)
    scores = VQAAccuracyScorer(compat="paper.textvqa")("stop", sample("stop", "stop"))
    assert (scores["value"], scores["compat"]) == (1, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", ""),
        ("B is it, or A", "B"),
        ("it is C", "C"),
        ("The answer is B. I am sure", "B"),
        ("I choose (A) over D here", "D"),
        ("either (A) or (C) here", "C"),
        ("one B: and C. here", "C"),
        ("NASA here", "A"),
        ("None of Above", "A"),
        ("答案是B吗", "B"),
        ("'B?'", "B"),
        ("", ""),
        (". .", ""),
    ],
)
def test_the_letter_that_lmms_eval_extracts(answer: str, letter: str) -> None:
    assert extract_mcq_letter(answer) == letter


def test_a_wrong_rule_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"no rule compat=paper.nothing .*choose one of: .*paper.mmstar"):
        OptionLetterScorer(compat="paper.nothing")
    node = {
        "_target_": "lmm_forget.tasks.tiny_task.TinyTask",
        "name": "t",
        "role": "held_out",
        "renderer": "ai2d",
        "n_test": 1,
        "max_new_tokens": 4,
        "scorer": {"_target_": "lmm_forget.tasks.scoring.letters.OptionLetterScorer", "compat": "mmstar"},
    }
    with pytest.raises(LmmForgetError, match=r"no rule compat=mmstar \(did you mean paper.mmstar"):
        build_task(node)
    node["scorer"]["compat"] = "paper.mmstar"  # type: ignore[index]
    task = build_task(node)
    asked = task.load_samples("test")[0]
    right = asked.answers[0]
    assert task.score_answer(right.lower(), asked) == {"value": 0.0, "tolerant": 1.0, "compat": 1.0}


PIECES = st.sampled_from(
    [*"ABCD.(): 57%-,0\u0660\xb2ßİ", "yes", "is", "the answer is", "Left", "Right, now", "two", "twenty", "a"]
    + [
        "3:45",
        "12:59",
        "1e9",
        "nan",
        "inf",
        "1,250",
        "blue",
        "house",
        "12",
        "option",
        "dont",
        "'s",
        "o'clock",
    ]
)
ANSWERS = st.one_of(
    st.text(max_size=40),
    st.lists(PIECES, max_size=10).map(" ".join),
    st.lists(PIECES, max_size=8).map("".join),
)
REFERENCES = st.lists(PIECES | st.text(min_size=1, max_size=12), min_size=1, max_size=4)


@settings(max_examples=120)
@given(
    answer=ANSWERS,
    references=REFERENCES,
    space=st.sampled_from([" ", "\n", "\t  "]),
    question=st.sampled_from([WAY, ACUTE, "?"]),
    dataset=st.sampled_from(["HME100k", "IIIT5K"]),
)
def test_every_rule_is_bounded_and_minds_neither_blanks_around_nor_the_order_of_references(
    answer: str, references: list[str], space: str, question: str, dataset: str
) -> None:
    asked = sample(*references, question=question, dataset=dataset)
    turned = sample(*reversed(references), question=question, dataset=dataset)
    for name, found in COMPAT_RULES.items():
        score = found(answer, asked)
        if score is None:
            assert name == "paper.pathvqa_binary_accuracy"
        else:
            assert not math.isnan(score) and 0 <= score <= 1, name
        assert found(space + answer + space, asked) == score, name
        assert found(answer, turned) == score, name
