"""What public code makes of an answer, defects included, so that numbers can be compared with published ones.

A rule is a function (answer, sample) -> score in 0..1, or None where the public code has no score. Two families:
`paper.*` follow the public code of arXiv 2510.08564 with the evaluation harness it carries (tasks as in lmms-eval
0.3), `lmms_eval.*` follow lmms-eval 0.7.3. Rules are written from the behaviour of that code, not taken from it.

The harness's model wrapper strips an answer before it is scored; so does every rule. Rules that know one reference
only give the best score over the sample's references.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

from lmm_forget.errors import ConfigError
from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.compat import choices, counts, pathology, reading

Rule = Callable[[str, Sample], float | None]

SAME: Mapping[str, Rule] = {
    "ai2d": choices.leading_letter,
    "seedbench": choices.first_character,
    "textvqa": reading.vqa,
    "chartqa": reading.relaxed,
    "docvqa": reading.anls,
    "infovqa": reading.anls,
}
"""Rules that did not change between the two."""

RULES: Mapping[str, Rule] = {
    **{f"{family}.{name}": rule for family in ("paper", "lmms_eval") for name, rule in SAME.items()},
    "paper.cub200": choices.first_lone_letter,
    "paper.realworldqa": choices.option_inside,
    "paper.scienceqa": choices.whole_letter,
    "paper.mmstar": choices.four_openings,
    "paper.ocrbench": reading.lowered_substring,
    "paper.pixmocount": counts.replaced_words,
    "paper.countbench": counts.digits_then_words,
    "paper.clock": counts.hour_and_minute,
    "paper.pathvqa_exact_match": pathology.word_precision,
    "paper.pathvqa_f1": pathology.f1,
    "paper.pathvqa_bleu1": pathology.bleu1,
    "paper.pathvqa_bleu2": pathology.bleu2,
    "paper.pathvqa_bleu3": pathology.bleu3,
    "paper.pathvqa_binary_accuracy": pathology.binary,
    "lmms_eval.realworldqa": choices.extracted_or_text,
    "lmms_eval.scienceqa": choices.letter_or_letter_dot,
    "lmms_eval.mmstar": choices.extracted,
    "lmms_eval.ocrbench": reading.folded_substring,
    "lmms_eval.pixmocount": counts.first_digits,
    "lmms_eval.countbench": counts.whole_word,
    "lmms_eval.countbenchqa": counts.same_string,
}
"""Every rule by name."""


def rule(name: str | None) -> Rule | None:
    """The rule of that name (None: none). Raises ConfigError with what exists."""
    if name is None:
        return None
    if name not in RULES:
        near = get_close_matches(name, RULES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(
            f"scorer: there is no rule compat={name}{hint}; choose one of: {', '.join(sorted(RULES))}"
        )
    return RULES[name]
