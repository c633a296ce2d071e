"""Every scorer against a table of answers worked out by hand, and properties that hold for any answer."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tasks.scoring.choice_or_text import ChoiceOrTextScorer, parse_option_lines
from lmm_forget.tasks.scoring.clock import ClockTimeScorer, compute_clock_distance, parse_time
from lmm_forget.tasks.scoring.exact import ExactMatchScorer, YesNoScorer
from lmm_forget.tasks.scoring.letters import OptionLetterScorer, extract_choice_letter
from lmm_forget.tasks.scoring.markup import MAX_ANSWER_LENGTH, truncate_middle
from lmm_forget.tasks.scoring.numbers import SMALL_NUMBERS, WholeNumberScorer, extract_single_number, find_numbers
from lmm_forget.tasks.scoring.overlap import compute_bleu, compute_token_f1
from lmm_forget.tasks.scoring.text_match import (
    ANLSScorer,
    ContainsTextScorer,
    RelaxedAccuracyScorer,
    compute_string_similarity,
)
from lmm_forget.tasks.scoring.tokenizing import normalize_text, split_words
from lmm_forget.tasks.scoring.vqa import VQAAccuracyScorer, compute_vqa_accuracy
from lmm_forget.tasks.scoring.vqa_normalizer import normalize_vqa_answer
from lmm_forget.tasks.scoring.yes_no_or_open import YesNoOrOpenScorer
from lmm_forget.tasks.task import Sample, Scorer


def sample(*answers: str, choices: tuple[str, ...] | None = None) -> Sample:
    return Sample(id="s", image_id="i", images=(), question="?", answers=answers, choices=choices)


FIVE = "There are 5 red stars in this image."
BIRDS = ("red bird", "blue bird", "wren", "A")

# scorer, references, choices, answer, value, tolerant
TABLE: list[tuple[Scorer, tuple[str, ...], tuple[str, ...] | None, str, float, float]] = [
    (OptionLetterScorer(), ("B",), BIRDS, "B", 1, 1),
    (OptionLetterScorer(), ("B",), BIRDS, " B\n", 1, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "b", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "B.", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "(B)", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "B. blue bird", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "B) Blue bird.", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "B. wren", 0, 0),
    (OptionLetterScorer(), ("B",), BIRDS, "The answer is B", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "the answer is (B).", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "Answer: B", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "option B, I think", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "blue bird", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "Blue bird.", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "bird", 0, 0),
    (OptionLetterScorer(), ("B",), BIRDS, "A) B)", 0, 0),
    (OptionLetterScorer(), ("B",), BIRDS, "B or C", 0, 0),
    (OptionLetterScorer(), ("A",), BIRDS, "A bird with red wings", 0, 0),
    (OptionLetterScorer(), ("A",), BIRDS, "the answer is a bird", 0, 0),
    (OptionLetterScorer(), ("A",), BIRDS, "the answer is A bird", 0, 0),
    (OptionLetterScorer(), ("I",), None, "I think D", 0, 0),
    (OptionLetterScorer(), ("B",), BIRDS, "The answer is A. The answer is B.", 0, 0),
    (OptionLetterScorer(), ("B",), BIRDS, "", 0, 0),
    (OptionLetterScorer(), ("Z",), None, "Z", 1, 1),
    (ExactMatchScorer(), ("star",), None, "star", 1, 1),
    (ExactMatchScorer(), ("star",), None, "STAR", 1, 1),
    (ExactMatchScorer(), ("red  star",), None, " red star ", 1, 1),
    (ExactMatchScorer(), ("star",), None, "star.", 0, 1),
    (ExactMatchScorer(), ("star",), None, "a red star", 0, 1),
    (ExactMatchScorer(), ("star",), None, "starfish", 0, 0),
    (ExactMatchScorer(), ("red star",), None, "red big star", 0, 0),
    (ExactMatchScorer(), ("no", "none"), None, "None", 1, 1),
    (ExactMatchScorer(), ("1.5",), None, "15", 0, 0),
    (ExactMatchScorer(), ("1.5",), None, "about 1.5.", 0, 1),
    (ExactMatchScorer(), ("5",), None, "-5", 0, 0),
    (ExactMatchScorer(), ("it's",), None, "it's", 1, 1),
    (ExactMatchScorer(), ("star",), None, "", 0, 0),
    (ExactMatchScorer(), ("?",), None, "!", 0, 0),
    (ExactMatchScorer(), ("?",), None, "?", 1, 1),
    (ExactMatchScorer(), ("straße",), None, "STRASSE", 1, 1),
    (YesNoScorer(), ("yes",), None, "Yes", 1, 1),
    (YesNoScorer(), ("yes",), None, "yes.", 0, 1),
    (YesNoScorer(), ("yes",), None, "Yes, it is.", 0, 1),
    (YesNoScorer(), ("no",), None, "No, there is none", 0, 1),
    (YesNoScorer(), ("yes",), None, "yes, there is no tumor", 0, 1),
    (YesNoScorer(), ("no",), None, "The answer is no", 0, 1),
    (YesNoScorer(), ("yes",), None, "yes or no", 0, 0),
    (YesNoScorer(), ("yes",), None, "yes/no", 0, 0),
    (YesNoScorer(), ("no",), None, "none", 0, 0),
    (YesNoScorer(), ("no",), None, "normal", 0, 0),
    (YesNoScorer(), ("no",), None, "yes", 0, 0),
    (YesNoScorer(), ("no",), None, "", 0, 0),
    (WholeNumberScorer(), (FIVE,), None, FIVE, 1, 1),
    (WholeNumberScorer(), (FIVE,), None, "5", 1, 1),
    (WholeNumberScorer(), ("5",), None, "five", 1, 1),
    (WholeNumberScorer(), ("5",), None, "5.", 1, 1),
    (WholeNumberScorer(), ("5",), None, "5.0", 1, 1),
    (WholeNumberScorer(), ("5",), None, "5 (five)", 1, 1),
    (WholeNumberScorer(), ("5",), None, "5 or 6", 0, 0),
    (WholeNumberScorer(), ("5",), None, "There are 5 stars and 3 squares.", 0, 0),
    (WholeNumberScorer(), ("5",), None, "-5", 0, 0),
    (WholeNumberScorer(), ("5",), None, "5th", 0, 0),
    (WholeNumberScorer(), ("3",), None, "mp3", 0, 0),
    (WholeNumberScorer(), ("3",), None, "3-4", 0, 0),
    (WholeNumberScorer(), ("2",), None, "2.5", 0, 0),
    (WholeNumberScorer(), ("25",), None, "2.5", 0, 0),
    (WholeNumberScorer(), ("5",), None, "2.5", 0, 0),
    (WholeNumberScorer(), ("5",), None, ".5", 0, 0),
    (WholeNumberScorer(), ("5",), None, "0.5", 0, 0),
    (WholeNumberScorer(), ("1",), None, "someone", 0, 0),
    (WholeNumberScorer(), ("7",), None, "seventeen", 0, 0),
    (WholeNumberScorer(), ("17",), None, "There are seventeen birds.", 1, 1),
    (WholeNumberScorer(), ("21",), None, "twenty-one", 1, 1),
    (WholeNumberScorer(), ("21",), None, "Twenty one", 1, 1),
    (WholeNumberScorer(), ("21",), None, "twenty and one", 0, 0),
    (WholeNumberScorer(), ("20",), None, "twenty-one", 0, 0),
    (WholeNumberScorer(), ("1",), None, "twenty-one", 0, 0),
    (WholeNumberScorer(), ("1250",), None, "1,250", 1, 1),
    (WholeNumberScorer(), ("12",), None, "1,2", 0, 0),
    (WholeNumberScorer(), ("105",), None, "one hundred and five", 1, 1),
    (WholeNumberScorer(), ("0",), None, "There are 0 stars.", 1, 1),
    (WholeNumberScorer(), ("0",), None, "There are no stars.", 0, 1),
    (WholeNumberScorer(), ("0",), None, "", 0, 0),
    (WholeNumberScorer(), ("0",), None, "no 5 stars", 0, 0),
    (ClockTimeScorer(), ("03:45",), None, "03:45", 1, 1),
    (ClockTimeScorer(), ("03:45",), None, "3:45", 1, 1),
    (ClockTimeScorer(), ("03:45",), None, "The time is 3:45.", 1, 1),
    (ClockTimeScorer(), ("03:45",), None, "15:45", 1, 1),
    (ClockTimeScorer(), ("00:30",), None, "12:30", 1, 1),
    (ClockTimeScorer(), ("12:30",), None, "00:30 am", 1, 1),
    (ClockTimeScorer(), ("01:00",), None, "12:59", 0, 1),
    (ClockTimeScorer(tolerance_minutes=1), ("01:00",), None, "12:59", 1, 1),
    (ClockTimeScorer(), ("03:00",), None, "03:59", 0, 0),
    (ClockTimeScorer(), ("03:45",), None, "03:50", 0, 1),
    (ClockTimeScorer(), ("03:45",), None, "03:51", 0, 0),
    (ClockTimeScorer(), ("11:58",), None, "12:02", 0, 1),
    (ClockTimeScorer(), ("03:45",), None, "3.45", 0, 1),
    (ClockTimeScorer(), ("03:05",), None, "3:5", 0, 1),
    (ClockTimeScorer(), ("03:45",), None, "03:45 or 04:45", 0, 0),
    (ClockTimeScorer(), ("03:45",), None, "03:75", 0, 0),
    (ClockTimeScorer(), ("03:45",), None, "27:45", 0, 0),
    (ClockTimeScorer(), ("03:45",), None, "103:45", 0, 0),
    (ClockTimeScorer(), ("03:45",), None, "", 0, 0),
    (ANLSScorer(), ("blue",), None, "Blue", 1, 1),
    (ANLSScorer(), ("blue",), None, "blum", 0.75, 0.75),
    (ANLSScorer(), ("blue",), None, "blxx", 0.5, 0.5),
    (ANLSScorer(), ("blue",), None, "bxxx", 0, 0),
    (ANLSScorer(), ("blue",), None, "it is the blue one", 0, 1),
    (ANLSScorer(), ("kitten", "mitten"), None, "sitten", 5 / 6, 5 / 6),
    (ANLSScorer(threshold=0.9), ("blue",), None, "blum", 0, 0),
    (ANLSScorer(), ("blue",), None, "", 0, 0),
    (RelaxedAccuracyScorer(), ("100",), None, "105", 1, 1),
    (RelaxedAccuracyScorer(), ("100",), None, "95", 1, 1),
    (RelaxedAccuracyScorer(), ("100",), None, "105.01", 0, 0),
    (RelaxedAccuracyScorer(), ("-100",), None, "-96", 1, 1),
    (RelaxedAccuracyScorer(), ("-100",), None, "96", 0, 0),
    (RelaxedAccuracyScorer(), ("0",), None, "0.0", 1, 1),
    (RelaxedAccuracyScorer(), ("0",), None, "0.01", 0, 0),
    (RelaxedAccuracyScorer(), ("5%",), None, "0.05", 1, 0),
    (RelaxedAccuracyScorer(), ("5%",), None, "5 %", 1, 1),
    (RelaxedAccuracyScorer(), ("5%",), None, "5", 0, 1),
    (RelaxedAccuracyScorer(), ("1,250",), None, "1250", 1, 1),
    (RelaxedAccuracyScorer(), ("42",), None, "The value is 42.", 0, 1),
    (RelaxedAccuracyScorer(), ("42",), None, "42 or 80", 0, 0),
    (RelaxedAccuracyScorer(), ("Blue",), None, "blue", 1, 1),
    (RelaxedAccuracyScorer(), ("Blue",), None, "The blue one", 0, 1),
    (RelaxedAccuracyScorer(), ("42",), None, "nan", 0, 0),
    (RelaxedAccuracyScorer(), ("42",), None, "inf", 0, 0),
    (RelaxedAccuracyScorer(), ("42",), None, "", 0, 0),
    (RelaxedAccuracyScorer(), ("10", "20"), None, "19.5", 1, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "The answer is blue bird.", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "The correct answer is: B. blue bird", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "So, the best option is b", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "The answer is B, I think", 0, 1),
    (OptionLetterScorer(), ("B",), BIRDS, "The answer is B. wren", 0, 0),
    (OptionLetterScorer(), ("B",), BIRDS, "The answer is unknown", 0, 0),
    (WholeNumberScorer(), ("5", "six"), None, "6", 1, 1),
    (WholeNumberScorer(), ("0", "1"), None, "none", 0, 1),
    (YesNoScorer(), ("no", "yes"), None, "Yes.", 0, 1),
    (ClockTimeScorer(), ("03:45", "04:45"), None, "4:45", 1, 1),
    (YesNoOrOpenScorer(), ("yes",), None, " YES ", 1, 1),
    (YesNoOrOpenScorer(), ("yes",), None, "yes.", 0, 1),
    (YesNoOrOpenScorer(), ("yes",), None, "no, not yes", 0, 0),
    (YesNoOrOpenScorer(open="f1"), ("yes",), None, "yes it is", 0, 1),
    (YesNoOrOpenScorer(), ("liver",), None, "Liver", 1, 1),
    (YesNoOrOpenScorer(), ("chronic liver inflammation",), None, "liver", 0, 0),
    (YesNoOrOpenScorer(), ("liver",), None, "the liver.", 0, 1),
    (YesNoOrOpenScorer(open="f1"), ("liver",), None, "the liver", 2 / 3, 1),
    (YesNoOrOpenScorer(open="f1"), ("liver",), None, "liver liver", 2 / 3, 1),
    (YesNoOrOpenScorer(open="f1"), ("chronic liver", "acute"), None, "Acute!", 1, 1),
    (YesNoOrOpenScorer(open="f1"), ("12",), None, "12", 1, 1),
    (YesNoOrOpenScorer(open="bleu1"), ("liver",), None, "kidney stone", 0, 0),
    (YesNoOrOpenScorer(open="bleu1"), ("chronic liver",), None, "liver", math.exp(-1), math.exp(-1)),
    (YesNoOrOpenScorer(open="bleu2"), ("a b c",), None, "a b d", math.sqrt(1 / 3), math.sqrt(1 / 3)),
    (YesNoOrOpenScorer(open="bleu3"), ("liver",), None, "liver", 1, 1),
    (ContainsTextScorer(), ("CAFE",), None, "The sign says Cafe.", 1, 1),
    (ContainsTextScorer(), ("1",), None, "2012", 0, 1),
    (ContainsTextScorer(), ("new york", "paris"), None, "newyork", 0, 1),
    (ContainsTextScorer(), ("?!",), None, "?!", 1, 1),
    (ContainsTextScorer(), ("CAFE",), None, "", 0, 0),
    (ChoiceOrTextScorer(), ("B",), BIRDS, "B", 1, 1),
    (ChoiceOrTextScorer(), ("B",), BIRDS, "b. Blue bird", 0, 0),
    (ChoiceOrTextScorer(), ("B",), BIRDS, "B. Blue bird", 0, 1),
    (ChoiceOrTextScorer(), ("B",), None, "b", 1, 1),
    (ChoiceOrTextScorer(), ("3",), None, "three", 1, 1),
    (ChoiceOrTextScorer(), ("3",), None, "There are 3 cars.", 1, 1),
    (ChoiceOrTextScorer(), ("3",), None, "3 cars and 2 dogs", 0, 1),
    (ChoiceOrTextScorer(), ("2.5",), None, "2.5", 1, 1),
    (ChoiceOrTextScorer(), ("Yes",), None, "yes", 1, 1),
    (ChoiceOrTextScorer(), ("Yes",), None, "yes.", 0, 1),
    (VQAAccuracyScorer(), ("Stop sign",) * 4, None, "the stop-sign.", 1, 1),
    (VQAAccuracyScorer(), ("two", "2", "2", "3"), None, "two", 0.75, 0.75),
    (VQAAccuracyScorer(), ("red",) * 10, None, "it is red", 0, 1),
    (VQAAccuracyScorer(), ("red", "blue"), None, "red", 0.5, 0.5),
    (VQAAccuracyScorer(), ("red",), None, "A red!", 1, 1),
    (VQAAccuracyScorer(), ("red",) * 10, None, "", 0, 0),
]


@pytest.mark.parametrize(("scorer", "references", "choices", "answer", "value", "tolerant"), TABLE)
def test_table(
    scorer: Scorer,
    references: tuple[str, ...],
    choices: tuple[str, ...] | None,
    answer: str,
    value: float,
    tolerant: float,
) -> None:
    scores = scorer(answer, sample(*references, choices=choices))
    assert scores["value"] == pytest.approx(value)
    assert scores["tolerant"] == pytest.approx(max(value, tolerant))
    assert scores["compat"] is None


SCORERS = [
    (OptionLetterScorer(), sample("B", choices=BIRDS)),
    (OptionLetterScorer(), sample("B")),
    (ExactMatchScorer(), sample("red star", "5")),
    (YesNoScorer(), sample("no")),
    (WholeNumberScorer(), sample("There are 21 red stars in this image.")),
    (ClockTimeScorer(), sample("03:45")),
    (ANLSScorer(), sample("blue house", "7 %")),
    (RelaxedAccuracyScorer(), sample("7 %")),
    (RelaxedAccuracyScorer(), sample("0", "7")),
    (YesNoOrOpenScorer(), sample("no")),
    (YesNoOrOpenScorer(), sample("red star", "wren")),
    (YesNoOrOpenScorer(open="f1"), sample("red star", "the wren")),
    (YesNoOrOpenScorer(open="bleu2"), sample("red star 21", "wren")),
    (ContainsTextScorer(), sample("red star", "21")),
    (ContainsTextScorer(), Sample("s", "i", (), "?", ("A ^ 5",), None, {"dataset": "HME100k"})),
    (ChoiceOrTextScorer(), sample("B", choices=BIRDS)),
    (ChoiceOrTextScorer(), Sample("s", "i", (), "Which?\nA. red star\nB. wren", ("B",))),
    (ChoiceOrTextScorer(), sample("21")),
    (VQAAccuracyScorer(), sample("red star", "red star")),
]
PIECES = st.sampled_from(
    [
        *"B.():A5%7-,0\u0660\xb2",
        "yes",
        "no",
        "and",
        "or",
        "the",
        "answer is",
        "red",
        "star",
        "21",
        "twenty-one",
    ]
    + ["3:45", "1e9", "nan", "blue", "house", "wren"]
)
ANSWERS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=12).map(" ".join), st.lists(PIECES).map("".join))


@settings(max_examples=120)
@given(answer=ANSWERS)
def test_scores_are_bounded_and_ordered(answer: str) -> None:
    for scorer, asked in SCORERS:
        scores = scorer(answer, asked)
        value, tolerant = scores["value"], scores["tolerant"]
        assert value is not None and tolerant is not None
        assert not math.isnan(value) and 0 <= value <= tolerant <= 1, scorer


@settings(max_examples=120)
@given(answer=ANSWERS, space=st.sampled_from([" ", "\n", "\t ", "  \n"]))
def test_neither_white_space_nor_the_order_of_references_changes_anything(answer: str, space: str) -> None:
    plain = " ".join(answer.split())
    for scorer, asked in SCORERS:
        scores = scorer(plain, asked)
        assert scorer(space + space.join(answer.split()) + space, asked) == scores, scorer
        assert scorer(plain, replace(asked, answers=asked.answers[::-1])) == scores, scorer


@pytest.mark.parametrize(("scorer", "asked"), SCORERS)
def test_a_reference_scores_one(scorer: Scorer, asked: Sample) -> None:
    for reference in asked.answers:
        assert scorer(reference, asked)["value"] == 1.0


@pytest.mark.parametrize(
    ("scorer", "asked", "said"),
    [
        (OptionLetterScorer(), sample("E", choices=BIRDS), "A to D"),
        (OptionLetterScorer(), sample("blue bird", choices=BIRDS), "blue bird"),
        (YesNoScorer(), sample("maybe"), "maybe"),
        (WholeNumberScorer(), sample("many"), "many"),
        (WholeNumberScorer(), sample("2.5"), "2.5"),
        (ClockTimeScorer(), sample("noon"), "noon"),
        (ClockTimeScorer(), sample("03:45", "noon"), "noon"),
        (WholeNumberScorer(), sample("5", "many"), "many"),
    ],
)
def test_an_unusable_reference_is_named(scorer: Scorer, asked: Sample, said: str) -> None:
    with pytest.raises(DataError, match=f"sample s.*{said}"):
        scorer("x", asked)


UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
]
TENS = {
    20: "twenty",
    30: "thirty",
    40: "forty",
    50: "fifty",
    60: "sixty",
    70: "seventy",
    80: "eighty",
    90: "ninety",
}


@pytest.mark.parametrize("n", range(100))
def test_every_number_word_up_to_ninety_nine(n: int) -> None:
    if n < 16:
        word = UNITS[n]
    elif n < 20:
        word = {16: "sixteen", 17: "seventeen", 18: "eighteen", 19: "nineteen"}[n]
    else:
        word = TENS[n // 10 * 10] + ("" if n % 10 == 0 else "-" + UNITS[n % 10])
    for text in (word, word.upper(), f"There are {word} stars.", word.replace("-", " ")):
        assert find_numbers(text) == [Decimal(n)], text


def test_larger_number_words() -> None:
    assert extract_single_number("two hundred and five cats") == 205
    assert extract_single_number("one thousand two hundred thirty-four") == 1234
    assert find_numbers("one two") == [1, 2]
    assert find_numbers("twenty twenty") == [20, 20]
    assert find_numbers("five hundred hundred") == [500]
    assert find_numbers("and hundred thousand") == []
    assert set(SMALL_NUMBERS.values()) == {*range(21), *range(20, 100, 10)}


@given(n=st.integers(0, 10**9), word=st.sampled_from(["stars", "red birds", "(approximately)"]))
def test_digits_survive_a_sentence(n: int, word: str) -> None:
    assert extract_single_number(f"There are {n:,} {word} in this image.") == n
    assert extract_single_number(f"There are {n} {word} in this image.") == n


@given(a=st.integers(0, 719), b=st.integers(0, 719))
def test_dial_distance_is_a_metric_on_the_dial(a: int, b: int) -> None:
    assert compute_clock_distance(a, b) == compute_clock_distance(b, a) == compute_clock_distance(a + 720, b)
    assert (compute_clock_distance(a, b) == 0) == (a == b)
    assert 0 <= compute_clock_distance(a, b) <= 360
    assert parse_time(f"{a // 60:02d}:{a % 60:02d}") == a == parse_time(f"{a // 60 + 12:02d}:{a % 60:02d}")


def plain_levenshtein(a: str, b: str) -> int:
    """The textbook recurrence, to check the library against."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


@given(a=st.text("abcä", max_size=80), b=st.text("abcä", max_size=80))
def test_similarity_is_the_textbook_edit_distance(a: str, b: str) -> None:
    x, y = normalize_text(a), normalize_text(b)
    longest = max(len(x), len(y), 1)
    assert compute_string_similarity(a, b) == pytest.approx(1 - plain_levenshtein(x, y) / longest)


@given(a=st.text(max_size=30), b=st.text(max_size=30))
def test_similarity_is_symmetric_and_one_only_for_equal_strings(a: str, b: str) -> None:
    assert compute_string_similarity(a, b) == compute_string_similarity(b, a)
    assert (compute_string_similarity(a, b) == 1.0) == (normalize_text(a) == normalize_text(b))


@given(text=st.text(max_size=40))
def test_normalize_is_idempotent(text: str) -> None:
    assert normalize_text(normalize_text(text)) == normalize_text(text)


def test_words_keep_numbers_whole() -> None:
    assert split_words("It's 1,250.5, or -3!") == ["it", "s", "1,250.5", "or", "-3"]


def test_letters_beyond_the_choices_name_nothing() -> None:
    assert extract_choice_letter("E", BIRDS) is None
    assert extract_choice_letter("E") == "E"
    assert extract_choice_letter("A", BIRDS) == "A"
    assert extract_choice_letter("wren", ("wren", "Wren")) is None


def test_an_unknown_way_to_score_open_answers_is_named() -> None:
    with pytest.raises(ConfigError, match="open=rouge is not known; choose one of: exact, f1, bleu1"):
        YesNoOrOpenScorer(open="rouge")


def test_options_are_read_from_the_lines_of_a_question() -> None:
    assert parse_option_lines("Which?\nA. Left\n B) Right, now \nAnswer.") == ("Left", "Right, now")
    assert parse_option_lines("Which?\nA. Left\nC. Right") is None
    assert parse_option_lines("What is A. Smith?") is None


@settings(max_examples=20)
@given(
    said=st.lists(st.sampled_from("abcd"), max_size=6),
    wanted=st.lists(st.sampled_from("abcd"), min_size=3, max_size=6),
)
def test_bleu_is_that_of_the_library(said: list[str], wanted: list[str]) -> None:
    from torchmetrics.functional.text import bleu_score

    for n in (1, 2, 3):
        theirs = float(bleu_score([" ".join(said)], [[" ".join(wanted)]], n_gram=n))
        assert compute_bleu(" ".join(said), " ".join(wanted), n) == pytest.approx(theirs, abs=1e-6)


@given(a=st.lists(st.sampled_from("abcd"), max_size=6), b=st.lists(st.sampled_from("abcd"), max_size=6))
def test_token_f1_is_symmetric_and_one_for_the_same_words(a: list[str], b: list[str]) -> None:
    x, y = " ".join(a), " ".join(b)
    assert compute_token_f1(x, y) == compute_token_f1(y, x)
    assert (compute_token_f1(x, y) == 1.0) == (sorted(a) == sorted(b))


@given(answers=st.lists(st.sampled_from(["red", "blue", "2"]), min_size=4, max_size=12))
def test_vqa_accuracy_leaves_each_annotator_out_once(answers: list[str]) -> None:
    others = [answers[:i] + answers[i + 1 :] for i in range(len(answers))]
    expected = sum(min(1.0, part.count("red") / 3) for part in others) / len(answers)
    assert compute_vqa_accuracy("Red.", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Stop-Sign!", "stop sign"),
        ("it's", "it 's"),
        ("dont", "don't"),
        ("DONT walk", "don't walk"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("ten, none & zero", "10 0 & 0"),
        ("eleven", "eleven"),
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("1,250", "1250"),
        ("a/b", "b"),
        ("x/y and z/ w", "xy and z w"),
        ("A  an the", ""),
        ("." * 40, "." * 8),
    ],
)
def test_the_official_normaliser(text: str, normal: str) -> None:
    assert normalize_vqa_answer(text) == normal


LOOPS = [
    "the answer is ",
    "Answer: ",
    "\\boxed{",
    "_a ",
    "**",
    "*a ",
    "<think>",
    "<answer> ",
    "\\[ ",
    "( ",
    "1-",
    "not ",
]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("times", [500, 20_000])
def test_an_answer_that_repeats_itself_is_scored_without_recursion(loop: str, times: int) -> None:
    for scorer, asked in SCORERS:
        if not isinstance(scorer, ANLSScorer):
            assert scorer(loop * times, asked)["tolerant"] is not None


def test_of_a_long_answer_both_ends_are_read() -> None:
    filler = "so it goes on. " * 1000
    assert OptionLetterScorer()(f"{filler}\nAnswer: B", sample("B", choices=BIRDS))["tolerant"] == 1
    assert OptionLetterScorer()(f"B\n{filler}", sample("B", choices=BIRDS))["tolerant"] == 1
    assert ExactMatchScorer()(f"{filler} wren {filler}", sample("wren"))["tolerant"] == 0
    assert len(truncate_middle(filler)) <= MAX_ANSWER_LENGTH + 1
    assert truncate_middle("1" * (MAX_ANSWER_LENGTH + 1)).strip() == ""  # no part of a number
