"""Compare every `compat` rule with the task function it follows, on thousands of generated answers.

    pip install --no-deps --target SOMEWHERE lmms-eval==0.7.3 loguru sacrebleu portalocker tabulate colorama regex lxml
    python benchmarks/compat_agreement.py SOMEWHERE

SOMEWHERE is a folder that holds the package `lmms_eval`: 0.7.3 is compared with the rules `lmms_eval.*`, 0.3 and the
paper's public code (its folder `lmms-eval`) with the rules `paper.*`. Tasks that it lacks are left out. For each task
every answer is judged against every document of a small set; the table counts judgements: all, the share with equal
scores, those with points from the task function, and those where the strict score is another one.
Exit code 1 if a single score differs from its rule.
"""

from __future__ import annotations

import argparse
import importlib
import random
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from lmm_forget.tasks.scoring import choice_or_text, clock, letters, numbers, text_match, vqa, yes_no_or_open
from lmm_forget.tasks.scoring.compat import COMPAT_RULES
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.vqa_normalizer import CONTRACTIONS, normalize_vqa_answer
from lmm_forget.tasks.task import Sample

NAMES = ("lmms-eval", "lmms_eval")
Doc = dict[str, Any]
Public = Callable[[Doc, str], float | None]

FIGURE = re.compile(r"-?\d+(\.\d+)?")
BIRDS = ("Blue Jay", "Cape May Warbler", "wren", "A", "Yes", "in the sky.")
WORDS = (
    "the",
    "a",
    "is",
    "answer",
    "bird",
    "red",
    "liver",
    "chronic",
    "inflammation",
    "no",
    "yes",
    "of",
    "it's",
)
SMALL = (
    "zero",
    "one",
    "two",
    "seven",
    "ten",
    "twelve",
    "fourteen",
    "seventeen",
    "twenty",
    "twenty-one",
    "none",
)
FORMULAS = (r"\frac { x } { 2 }", r"A ^ { 2 } + b", r"\sqrt { Y }")


def openings(letter: str) -> tuple[str, ...]:
    """Ways to say an option's letter."""
    low = letter.lower()
    return (
        *(letter, low, f"{letter}.", f"({letter})", f"{letter})", f"{letter}:", f"{low}.", f"[{letter}]"),
        *(f"The answer is {letter}", f"the answer is ({letter}).", f"Option {letter}", f"Answer: {letter}"),
        *(f"I choose {letter} because", f"so {letter}.", f"{letter}pple", f"NAS{letter} ", f"**{letter}**"),
        *(
            f"My answer is {low}",
            f"正解は{letter}",
            f"答案是{letter}",
            f"the correct option is {letter}, not C",
        ),
    )


def noise(random_: random.Random, pieces: tuple[str, ...]) -> str:
    """A few pieces in a row, with the punctuation and blanks that models add."""
    marks = (" ", " ", " ", ", ", ". ", "", "-", "\n", " (", ") ", "'s ", "? ", "! ", ": ", "/", "  ", ".")
    chosen = [random_.choice(pieces) for _ in range(random_.randint(1, 6))]
    return "".join(piece + random_.choice(marks) for piece in chosen)


def typo(random_: random.Random, word: str) -> str:
    """The word with one or two characters changed, dropped or added, or in another case."""
    for _ in range(random_.randint(0, 2)):
        place = random_.randint(0, max(0, len(word) - 1))
        word = word[:place] + random_.choice(("", "x", "E", " ", "é", ".")) + word[place + random_.randint(0, 1) :]
    return random_.choice((word, word, word.upper(), word.lower(), word.title(), f" {word}", f"{word}."))


def near(random_: random.Random, reference: str) -> str:
    """A figure within a tenth of the reference where it is one, else its letters in any case."""
    if FIGURE.fullmatch(reference):
        value = float(reference) * random_.uniform(0.9, 1.1) + random_.choice((0, 0, 1e-3))
        form = random_.choice(("{:.0f}", "{:.1f}", "{:.2f}", "{:g}", "{:.3f}", "{:+.2f}", "{:e}", "{:.1%}", "{:,.1f}"))
        return form.format(value)
    return "".join(random_.choice((letter.lower(), letter.upper())) for letter in reference)


def answers(random_: random.Random, references: tuple[str, ...], pieces: tuple[str, ...]) -> Iterator[str]:
    """Endless answers: near the references, made of the task's pieces, or anything."""
    anything = "abcABCD 0123456789.,:;%$()[]-'\"!?\n\téßİ０Ａ　\u0660中"
    while True:
        kind = random_.random()
        reference = random_.choice(references)
        if kind < 0.2:
            yield typo(random_, reference)
        elif kind < 0.35:
            yield near(random_, reference)
        elif kind < 0.5:
            yield random_.choice(pieces)
        elif kind < 0.9:
            yield noise(random_, pieces + references)
        else:
            yield "".join(random_.choice(anything) for _ in range(random_.randint(0, 12)))


@dataclass(frozen=True)
class Case:
    """A task: where its function lies, the documents it is tried on, the pieces of answers, our strict scorer."""

    name: str
    module: str
    public: Callable[[Any], Public]
    docs: tuple[Doc, ...]
    pieces: tuple[str, ...]
    strict: AnswerScorer

    def sample(self, doc: Doc) -> Sample:
        """The document as this project's sample."""
        given = doc.get("answers", doc.get("number", doc.get("answer")))
        if self.name in ("ai2d", "scienceqa"):
            given = chr(ord("A") + int(doc["answer"]))
        listed = tuple(map(str, given)) if isinstance(given, list) else (str(given),)
        choices = doc.get("options", doc.get("choices"))
        return Sample("s", "i", (), doc.get("question", ""), listed, tuple(choices) if choices else None, {**doc})


def process(function: str, key: str) -> Callable[[Any], Public]:
    """The score under `key` of the task's own function."""

    def wrap(module: Any) -> Public:
        return lambda doc, answer: _only(getattr(module, function)(copied(doc), [answer]), key)

    return wrap


def _only(scores: dict[str, Any], key: str) -> float | None:
    """The score of that name; "*": the only one, whatever its name."""
    return next(iter(scores.values())) if key == "*" else scores[key]


def copied(doc: Doc) -> Doc:
    """The document, safe from functions that write into it."""
    return {key: list(value) if isinstance(value, list) else value for key, value in doc.items()}


def filtered(*names: str) -> Callable[[Any], Public]:
    """Filters, then exact match without case and punctuation, as the task's YAML has it."""

    def wrap(module: Any) -> Public:
        exact = importlib.import_module("lmms_eval.api.metrics").exact_match_hf_evaluate
        filters = [getattr(module, name)() for name in names]

        def score(doc: Doc, answer: str) -> float:
            said: Any = [[answer]]
            for each in filters:
                said = each.apply(said, [doc])
            gold = chr(ord("A") + int(doc["answer"])) if "options" in doc else doc["answer"]
            said = said[0] if isinstance(said[0], str) else said[0][0]
            result = exact(predictions=[said], references=[gold], ignore_case=True, ignore_punctuation=True)
            return float(result["exact_match"])

        return score

    return wrap


def seed(module: Any) -> Public:
    """SEED-Bench's function and its aggregation over one answer."""
    return lambda doc, answer: module.seed_aggregation_result([module.seed_process_result(doc, [answer])["seed_all"]])


def anls(module: Any) -> Public:
    """The metric `anls`."""
    return lambda doc, answer: module.anls(doc["answers"], [answer])["anls"]


def mmstar(module: Any) -> Public:
    """MMStar's per-answer score."""
    return lambda doc, answer: module.mmstar_process_results(doc, [answer])["average"]["score"]


def ocrbench(module: Any) -> Public:
    """OCRBench's per-answer score."""
    return lambda doc, answer: module.ocrbench_process_results(doc, [answer])["ocrbench_accuracy"]["score"]


def realworldqa(module: Any) -> Public:
    """The filters of 0.3, or the function that 0.7 uses instead."""
    if "extract_mcq_answer" in Path(module.__file__).read_text(encoding="utf-8"):
        return process("realworldqa_process_results", "exact_match")(module)
    return filtered("NumberWordsToDigitsFilter", "MultiChoiceRegexFilter")(module)


LETTERS = tuple(form for letter in "ABCDI" for form in openings(letter)) + BIRDS + WORDS
TIMES = (
    "3:45",
    "03:45",
    "12:59",
    "1:00",
    "00:30",
    "3:5",
    "3.45",
    "15:45",
    "time is 3:44",
    "3 45",
    "2:45:10",
    "7",
)
FIGURES = (
    "100",
    "105",
    "95.0",
    "1,250",
    "5%",
    "5 %",
    "0.05",
    "0",
    "0.0",
    "-100",
    "nan",
    "inf",
    "1e2",
    "1_000",
    "$5",
)
PHRASES = (
    "Blue house",
    "1250",
    "J. Smith",
    "it's",
    "dont",
    "oclock",
    "the",
    "two",
    "none",
    "U.S.A.",
    "a/b",
    "3.5",
)
FACES = tuple({"answer": letter, "question": "?", "question_id": 1, "data_type": "image"} for letter in "ABCD")
MEDICAL = (
    {"question": "Is the liver inflamed?", "answer": "yes"},
    {"question": "is this acute or chronic?", "answer": "chronic"},
    {"question": "What is shown?", "answer": "chronic liver inflammation"},
    {"question": "How many?", "answer": "12"},
)
STREET = tuple(
    {"question": question, "answer": answer}
    for question in (
        "Which way?\nA. Left\nB. Right, now\nC. Yes\nD. Left\nAnswer the letter.",
        "How many cars?",
    )
    for answer in ("A", "B", "C", "D", "3", "Yes", "Downhill")
)
READ = (
    {"answers": ["Blue House", "blue  house"]},
    {"answers": ["1250"]},
    {"answers": ["J. Smith", "Smith, J."]},
    {"answers": ["ﬁne print", "Straße"]},
)
ASKED = (
    {"answers": ["two"] * 4 + ["2"] * 3 + ["three", "a dog", "dogs"], "question_id": 1},
    {"answers": ["don't walk", "dont walk"] * 3 + ["walk"] * 2 + ["stop!", "U.S.A."], "question_id": 2},
    {"answers": ["3.5", "3.5", "3,5", "a/b", "o'clock", "none", "0", "the", "it's", "yes"], "question_id": 3},
)
CASES = (
    Case("ai2d", "tasks.ai2d.utils", filtered("MultiChoiceRegexFilter"),
         tuple({"answer": str(i), "options": list(BIRDS[:4])} for i in range(4)), LETTERS,
         letters.OptionLetterScorer()),
    Case("seedbench", "tasks.seedbench.utils", seed, FACES, LETTERS, letters.OptionLetterScorer()),
    Case("scienceqa", "tasks.scienceqa.utils", process("sqa_process_results", "exact_match"),
         tuple({"answer": i, "choices": list(BIRDS[:4])} for i in range(4)), LETTERS, letters.OptionLetterScorer()),
    Case("mmstar", "tasks.mmstar.utils", mmstar,
         tuple({**face, "index": 0, "category": "c", "l2_category": "l"} for face in FACES), LETTERS,
         letters.OptionLetterScorer()),
    Case("realworldqa", "tasks.realworldqa.utils", realworldqa, STREET,
         LETTERS + SMALL + ("Left", "Yesterday", "Right now", "three", "3"), choice_or_text.ChoiceOrTextScorer()),
    Case("textvqa", "tasks.textvqa.utils", process("textvqa_process_results", "exact_match"), ASKED, PHRASES + WORDS,
         vqa.VQAAccuracyScorer()),
    Case("chartqa", "tasks.chartqa.utils", process("chartqa_process_results", "relaxed_overall"),
         tuple({"answer": a, "type": "human_test"} for a in ("100", "5%", "0", "-100", "1,250", "Blue", "0.05")),
         FIGURES + ("Blue",), text_match.RelaxedAccuracyScorer()),
    Case("docvqa", "api.metrics", anls, READ, PHRASES, text_match.ANLSScorer()),
    Case("infovqa", "api.metrics", anls, READ, PHRASES, text_match.ANLSScorer()),
    Case("ocrbench", "tasks.ocrbench.utils", ocrbench,
         (*({"answer": [f], "dataset": "HME100k", "question_type": "q"} for f in FORMULAS),
          *({"answer": a, "dataset": "IIIT5K", "question_type": "q"} for a in (["CAFE", "café"], ["12"], ["ＡＢ１"]))),
         PHRASES + FORMULAS + ("AB1", "ａｂ１", "2012", "cafe"), text_match.ContainsTextScorer()),
    Case("cub200", "tasks.cub200.utils", process("cub200_process_results", "acc"),
         tuple({"answer": letter} for letter in "ABDIZ"), LETTERS, letters.OptionLetterScorer()),
    Case("pixmocount", "tasks.pixmocount.utils", process("pixmocount_process_results", "pixmocount_accuracy"),
         tuple({"answer": a} for a in ("7", "There are 17 dogs in this image.", "21", "1", "25")),
         SMALL + FIGURES + WORDS + ("someone", "There are 7"), numbers.WholeNumberScorer()),
    Case("pixmocount", "tasks.pixmo_count.utils", process("pixmo_count_process_results", "acc"),
         tuple({"answer": a} for a in ("7", "17", "21", "1", "25")), SMALL + FIGURES + WORDS + ("07", "7."),
         numbers.WholeNumberScorer()),
    Case("countbench", "tasks.countbench.utils", process("countbench_process_results", "*"),
         tuple({"number": n} for n in (2, 7, 10, 20)), SMALL + FIGURES + WORDS + ("someone saw two",),
         numbers.WholeNumberScorer()),
    Case("countbenchqa", "tasks.countbenchqa.utils", process("countbenchqa_process_results", "acc"),
         tuple({"number": n} for n in (2, 7, 10, 20)), SMALL + FIGURES + ("7.", "2"), numbers.WholeNumberScorer()),
    *(Case("clock", f"tasks.{name}.utils", process(f"{name}_process_results", "both_accuracy"),
           tuple({"answer": a} for a in ("03:45", "01:00", "00:30", "03:00")), TIMES + WORDS,
           clock.ClockTimeScorer(tolerance_minutes=1)) for name in ("timeclock", "cococlock", "openimgclock")),
    *(Case(f"pathvqa_{name}", "tasks.pathvqa.utils", process("pathvqa_process_results", f"pathvqa_{name}"), MEDICAL,
           WORDS + ("12", "liver inflammation"), yes_no_or_open.YesNoOrOpenScorer(open=opened))
      for name, opened in (("exact_match", "exact"), ("f1", "f1"), ("bleu1", "bleu1"), ("bleu2", "bleu2"),
                           ("bleu3", "bleu3"), ("binary_accuracy", "exact"))),
)  # fmt: skip


def only_leaves(folder: Path) -> None:
    """Make `lmms_eval` importable without its packages' own __init__, which load the whole harness.

    The registry is replaced too: it imports the models, and only files the functions it is given.
    """
    sys.path.append(str(folder))
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.tasks", "lmms_eval.filters"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder / Path(*name.split(".")))]
        sys.modules[name] = package
    registry: Any = types.ModuleType("lmms_eval.api.registry")
    registry.register_aggregation = registry.register_metric = lambda *_, **__: lambda function: function
    sys.modules[registry.__name__] = registry


def compare(case: Case, family: str, count: int, chance: random.Random) -> tuple[list[str], int, int]:
    """Disagreements in words; answers the task function gives points; those the strict score treats otherwise."""
    module = importlib.import_module(f"lmms_eval.{case.module}")
    public, rule = case.public(module), COMPAT_RULES[f"{family}.{case.name}"]
    pairs = [(doc, case.sample(doc)) for doc in case.docs]
    references = tuple(reference for _, sample in pairs for reference in sample.answers)
    wrong, points, strict = [], 0, 0
    for answer in different(chance, references, case.pieces, count):
        for doc, sample in pairs:
            theirs, ours = public(doc, answer), rule(answer, sample)
            theirs = None if theirs is None or theirs != theirs else theirs
            if (theirs is None) != (ours is None) or abs((theirs or 0) - (ours or 0)) > 1e-12:
                wrong.append(f"{answer!r} for {list(sample.answers)}: theirs {theirs}, ours {ours}")
            points += bool(theirs)
            strict += theirs is not None and abs(case.strict.score_strict(answer, sample) - theirs) > 1e-12
    return wrong, points, strict


def compare_normaliser(count: int, chance: random.Random) -> list[str]:
    """Disagreements, in words, about the text that VQA accuracy compares."""
    official = importlib.import_module("lmms_eval.tasks._task_utils.vqa_eval_metric").EvalAIAnswerProcessor
    words = (
        *official.CONTRACTIONS,
        *CONTRACTIONS,
        *SMALL,
        *PHRASES,
        *WORDS,
        "[",
        "@",
        "`",
        "_",
        "..",
        "1,000",
    )
    process = official()
    return [
        f"{answer!r}: theirs {process(answer)!r}, ours {normalize_vqa_answer(answer)!r}"
        for answer in different(chance, PHRASES, words, count)
        if process(answer) != normalize_vqa_answer(answer)
    ]


def different(chance: random.Random, references: tuple[str, ...], pieces: tuple[str, ...], count: int) -> Iterator[str]:
    """So many answers, no two the same; stripped, as the model wrapper does before a task sees an answer."""
    seen = set()
    for answer in map(str.strip, answers(chance, references, pieces)):
        if answer not in seen:
            seen.add(answer)
            yield answer
        if len(seen) == count:
            return


def main() -> int:
    """Print the table; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder that holds the package lmms_eval")
    parser.add_argument("--answers", type=int, default=5000, help="different answers per task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", choices=("paper", "lmms_eval"), help="default: those that follow this version")
    options = parser.parse_args()
    tasks = options.folder / "lmms_eval" / "tasks"
    if not tasks.is_dir():
        print(f"skipped: {options.folder} holds no lmms_eval/tasks; see the first lines of this file")
        return 0
    found = [d.version for d in distributions(path=[str(options.folder)]) if d.name.lower() in NAMES]
    version = found[0] if found else "the public code's own"
    family = options.rules or ("lmms_eval" if version.startswith("0.7") else "paper")
    only_leaves(options.folder)
    print(f"lmms-eval: {version}; {options.answers} different answers per task, seed {options.seed}\n")
    print("| task | rule | judged | equal | given points | strict differs |")
    print("|---|---|---|---|---|---|")
    failed = []
    for case in CASES:
        path = options.folder / "lmms_eval" / Path(*case.module.split(".")).with_suffix(".py")
        rule = f"{family}.{case.name}"
        if not path.exists() or rule not in COMPAT_RULES:
            continue
        chance = random.Random(f"{options.seed}/{case.module}/{case.name}")
        wrong, *counts = compare(case, family, options.answers, chance)
        judged = options.answers * len(case.docs)
        cells = [
            f"{judged:,}",
            f"{100 - 100 * len(wrong) / judged:.2f} %",
            *(f"{count:,}" for count in counts),
        ]
        name = case.module.removesuffix(".utils").split(".")[-1]
        print(f"| {name} | {rule} | {' | '.join(cells)} |", flush=True)
        failed += [f"{rule}: {each}" for each in wrong[:5]]
    if (tasks / "_task_utils" / "vqa_eval_metric.py").exists():
        wrong = compare_normaliser(options.answers, random.Random(options.seed))
        equal = 100 - 100 * len(wrong) / options.answers
        print(f"| normaliser of VQA answers | | {options.answers:,} | {equal:.2f} % | | |")
        failed += wrong[:5]
    print("\n" + "\n".join(failed) if failed else "\nno disagreement")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
