"""What happens to samples that cannot be used: one policy (`data.on_bad_sample`) for every reader and every fault."""

from __future__ import annotations

from collections.abc import Mapping

from lmm_forget.errors import ConfigError, DataError

POLICIES = ("fail", "skip")
MAX_NAMED_SAMPLES = 3
"""Samples beside the first that a refusal names."""


def validate_policy(on_bad_sample: str) -> None:
    """Raise ConfigError for a value that `data.on_bad_sample` does not have."""
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
    """Apply the policy to what cannot be used: raise, or return, and the caller leaves the bad samples out.

    `bad` maps a sample's place (file and line, row number) to "id: reason", `total` counts `bad` and good samples.
    Raises DataError with their number and the first of them under "fail", and under "skip" when nothing else is left.
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
