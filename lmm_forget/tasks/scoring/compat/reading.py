"""How public code scores text that was read from an image."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.annotators import annotator_accuracy, normalize_vqa

FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def vqa(answer: str, sample: Sample) -> float:
    """TextVQA: over the annotators, mean of min(1, others who said the same / 3), with the official normaliser.

    With fewer than four annotators the full score cannot be reached.
    """
    said = normalize_vqa(answer)
    matches = sum(said == normalize_vqa(reference) for reference in sample.answers)
    return annotator_accuracy(matches, len(sample.answers), needed=3)


def _float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed(answer: str, sample: Sample) -> float:
    """ChartQA: within 5 % of the reference if both are numbers, else equal but for case.

    A reference of zero is compared as text, so "0.0" for "0" is wrong; "1,250" is no number; "5" for "5%" is
    off by a factor of 100.
    """
    text = answer.strip()
    said = _float(text)

    def right(reference: str) -> bool:
        wanted = _float(reference)
        if said is not None and wanted:
            return abs(said - wanted) / abs(wanted) <= 0.05
        return text.lower() == reference.lower()

    return float(any(map(right, sample.answers)))


def anls(answer: str, sample: Sample) -> float:
    """DocVQA, InfographicVQA: 1 - edit distance / length over the references, below 0.5 it is 0.

    The distance is that of the texts with white space collapsed, the length that of the raw ones, so that
    additional spaces in a reference make mistakes cheaper.
    """
    text = answer.strip()
    said = " ".join(text.lower().split())
    least = 1.0
    for reference in sample.answers:
        distance = Levenshtein.distance(" ".join(reference.lower().split()), said)
        length = max(len(reference.upper()), len(text.upper()))
        least = min(least, distance / length if length else 0.0)
    best = 1 - least
    return best if best >= 0.5 else 0.0


def _substring(answer: str, reference: str, formula: bool) -> bool:
    said, wanted = answer.strip().replace("\n", " "), reference.strip().replace("\n", " ")
    if formula:
        return wanted.replace(" ", "") in said.replace(" ", "")
    return wanted.lower() in said.lower()


def lowered_substring(answer: str, sample: Sample) -> float:
    """OCRBench, public code: a reference occurs in the answer, as a part of words too; "1" is in "2012".

    Formulas (data set HME100k) lose their spaces; there the answer is lowered and the reference is not, so
    that a formula with a capital letter can never be right.
    """
    formula = sample.meta.get("dataset") == "HME100k"
    text = answer.lower().strip()
    return float(any(_substring(text, reference, formula) for reference in sample.answers))


def folded_substring(answer: str, sample: Sample) -> float:
    """OCRBench, lmms-eval 0.7.3: the same, but formulas keep their case and full-width characters equal ASCII."""
    if sample.meta.get("dataset") == "HME100k":
        return float(any(_substring(answer, reference, True) for reference in sample.answers))
    text = answer.strip().translate(FULL_WIDTH)
    return float(any(_substring(text, r.translate(FULL_WIDTH), False) for r in sample.answers))
