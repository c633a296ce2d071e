"""Rules that score an answer as public code does, defects included, for comparison with published numbers.

A rule is a function (answer, sample) -> score in 0..1, or None if the public code defines no score. There are two
families: `paper.*` follow the public code of arXiv 2510.08564 with the evaluation harness in it (tasks as in lmms-eval
0.3), `lmms_eval.*` follow lmms-eval 0.7.3. The rules reproduce the behaviour of that code; none of it is copied.

The harness strips an answer before it is scored, and so does every rule. If the public code knows only one reference,
the rule returns the best score over the sample's references.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

from lmm_forget.errors import ConfigError
from lmm_forget.tasks.scoring.compat import choice_rules, count_rules, pathvqa_rules, text_rules
from lmm_forget.tasks.task import Sample

CompatRule = Callable[[str, Sample], float | None]

SHARED_RULES: Mapping[str, CompatRule] = {
    "ai2d": choice_rules.score_leading_letter,
    "seedbench": choice_rules.score_first_character,
    "textvqa": text_rules.score_vqa,
    "chartqa": text_rules.score_relaxed,
    "docvqa": text_rules.score_anls,
    "infovqa": text_rules.score_anls,
}
"""Rules that are the same in both families."""

COMPAT_RULES: Mapping[str, CompatRule] = {
    **{f"{family}.{name}": rule for family in ("paper", "lmms_eval") for name, rule in SHARED_RULES.items()},
    "paper.cub200": choice_rules.score_first_lone_letter,
    "paper.realworldqa": choice_rules.score_contained_option,
    "paper.scienceqa": choice_rules.score_whole_letter,
    "paper.mmstar": choice_rules.score_mmstar_openings,
    "paper.ocrbench": text_rules.score_lowered_substring,
    "paper.pixmocount": count_rules.score_first_number,
    "paper.countbench": count_rules.score_digits_then_words,
    "paper.clock": count_rules.score_hour_and_minute,
    "paper.pathvqa_exact_match": pathvqa_rules.score_word_precision,
    "paper.pathvqa_f1": pathvqa_rules.score_f1,
    "paper.pathvqa_bleu1": pathvqa_rules.score_bleu1,
    "paper.pathvqa_bleu2": pathvqa_rules.score_bleu2,
    "paper.pathvqa_bleu3": pathvqa_rules.score_bleu3,
    "paper.pathvqa_binary_accuracy": pathvqa_rules.score_yes_no,
    "lmms_eval.realworldqa": choice_rules.score_extracted_letter_or_text,
    "lmms_eval.scienceqa": choice_rules.score_letter_or_letter_dot,
    "lmms_eval.mmstar": choice_rules.score_extracted_letter,
    "lmms_eval.ocrbench": text_rules.score_folded_substring,
    "lmms_eval.pixmocount": count_rules.score_first_digits,
    "lmms_eval.countbench": count_rules.score_whole_word,
    "lmms_eval.countbenchqa": count_rules.score_same_string,
}
"""Name -> rule."""


def get_compat_rule(name: str | None) -> CompatRule | None:
    """The rule with this name; None for None. Raises ConfigError, listing all rules, if it does not exist."""
    if name is None:
        return None
    if name not in COMPAT_RULES:
        near = get_close_matches(name, COMPAT_RULES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(
            f"scorer: there is no rule compat={name}{hint}; choose one of: {', '.join(sorted(COMPAT_RULES))}"
        )
    return COMPAT_RULES[name]
