"""Text read from images as public code scores it."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from lmm_forget.tasks.scoring.vqa_normalizer import compute_annotator_accuracy, normalize_vqa_answer
from lmm_forget.tasks.task import Sample

FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def score_vqa(answer: str, sample: Sample) -> float:
    """TextVQA: mean over annotators of min(1, matches among the others / 3), with the official normaliser.

    With fewer than four annotators the full score cannot be reached.
    """
    normalized = normalize_vqa_answer(answer)
    matches = sum(normalized == normalize_vqa_answer(reference) for reference in sample.answers)
    return compute_annotator_accuracy(matches, len(sample.answers), num_needed=3)


def _parse_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def score_relaxed(answer: str, sample: Sample) -> float:
    """ChartQA: within 5 % of the reference if both are numbers, else equality up to case.

    A reference of zero is compared as text, so "0.0" for "0" is wrong; "1,250" is not a number; "5" for "5%" is
    wrong by a factor of 100.
    """
    text = answer.strip()
    number = _parse_float(text)

    def is_correct(reference: str) -> bool:
        target = _parse_float(reference)
        if number is not None and target:
            return abs(number - target) / abs(target) <= 0.05
        return text.lower() == reference.lower()

    return float(any(map(is_correct, sample.answers)))


def score_anls(answer: str, sample: Sample) -> float:
    """DocVQA, InfographicVQA: 1 - edit distance / length over the references, below 0.5 it is 0.

    The distance is computed after white space is collapsed, the length before, so that additional blanks in a
    reference make mistakes cheaper.
    """
    text = answer.strip()
    normalized = " ".join(text.lower().split())
    smallest = 1.0
    for reference in sample.answers:
        distance = Levenshtein.distance(" ".join(reference.lower().split()), normalized)
        length = max(len(reference.upper()), len(text.upper()))
        smallest = min(smallest, distance / length if length else 0.0)
    best = 1 - smallest
    return best if best >= 0.5 else 0.0


def _contains_reference(answer: str, reference: str, is_formula: bool) -> bool:
    answer_text, reference_text = answer.strip().replace("\n", " "), reference.strip().replace("\n", " ")
    if is_formula:
        return reference_text.replace(" ", "") in answer_text.replace(" ", "")
    return reference_text.lower() in answer_text.lower()


def score_lowered_substring(answer: str, sample: Sample) -> float:
    """OCRBench, public code: a reference occurs in the answer, as a part of words too; "1" is in "2012".

    For formulas (data set HME100k) blanks are removed, and the answer is lower-cased but the reference is not, so a
    formula with a capital letter is always wrong.
    """
    is_formula = sample.meta.get("dataset") == "HME100k"
    text = answer.lower().strip()
    return float(any(_contains_reference(text, reference, is_formula) for reference in sample.answers))


def score_folded_substring(answer: str, sample: Sample) -> float:
    """OCRBench, lmms-eval 0.7.3: as `score_lowered_substring`, but formulas keep their case, and full-width
    characters equal ASCII.
    """
    if sample.meta.get("dataset") == "HME100k":
        return float(any(_contains_reference(answer, reference, True) for reference in sample.answers))
    text = answer.strip().translate(FULL_WIDTH)
    return float(any(_contains_reference(text, r.translate(FULL_WIDTH), False) for r in sample.answers))
