"""The policy for samples that cannot be used (`data.on_bad_sample`): fail, or leave them out."""

from __future__ import annotations

from collections.abc import Mapping

from lmm_forget.errors import ConfigError, DataError

POLICIES = ("fail", "skip")
MAX_NAMED_SAMPLES = 3
"""How many samples after the first an error message names."""


def validate_policy(on_bad_sample: str) -> None:
    """Raise ConfigError if `on_bad_sample` is not one of `POLICIES`."""
    if on_bad_sample not in POLICIES:
        raise ConfigError(f"data.on_bad_sample={on_bad_sample} is unknown; there are {', '.join(POLICIES)}")


def apply_bad_sample_policy(
    bad_samples: Mapping[str, str],
    total: int,
    on_bad_sample: str,
    *,
    task_name: str,
    noun: str = "samples",
    participle: str = "used",
) -> None:
    """Raise DataError if the policy does not allow these bad samples; else the caller leaves them out.

    `bad_samples` maps a sample's location (file and line, row number) to "id: reason", `total` counts bad and good
    samples, `noun` and `participle` name them in the message ("samples cannot be used"). "fail" raises for any bad
    sample; "skip" raises only if no good sample is left. The message has their number and the first of them.
    """
    validate_policy(on_bad_sample)
    if not bad_samples:
        return
    first = next(iter(bad_samples.values()))
    message = f"{len(bad_samples)} of {total} {noun} cannot be {participle} (first: {first}"
    if on_bad_sample == "fail":
        further_ids = [reason.partition(": ")[0] for reason in list(bad_samples.values())[1 : MAX_NAMED_SAMPLES + 1]]
        further_text = (
            f"; then {', '.join(further_ids)}{', …' if len(bad_samples) > MAX_NAMED_SAMPLES + 1 else ''}"
            if further_ids
            else ""
        )
        raise DataError(f"task {task_name}: {message}{further_text}); data.on_bad_sample=skip leaves them out")
    if len(bad_samples) == total:
        raise DataError(f"task {task_name}: {message}): none is left; none of the {total} {noun} can be {participle}")
