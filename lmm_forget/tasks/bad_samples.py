"""What happens to samples that cannot be used: one policy (`data.on_bad_sample`) for every reader and every fault."""

from __future__ import annotations

from collections.abc import Mapping

from lmm_forget.errors import ConfigError, DataError

POLICIES = ("fail", "skip")
NAMED = 3
"""Samples beside the first that a refusal names."""


def require_policy(on_bad_sample: str) -> None:
    """Raise ConfigError for a value that `data.on_bad_sample` does not have."""
    if on_bad_sample not in POLICIES:
        raise ConfigError(f"data.on_bad_sample={on_bad_sample} is unknown; there are {', '.join(POLICIES)}")


def settle(
    bad: Mapping[str, str],
    total: int,
    on_bad_sample: str,
    *,
    task: str,
    what: str = "samples",
    used: str = "used",
) -> None:
    """Apply the policy to what cannot be used: raise, or return, and the caller leaves the bad samples out.

    `bad` maps a sample's place (file and line, row number) to "id: reason", `total` counts `bad` and good samples.
    Raises DataError with their number and the first of them under "fail", and under "skip" when nothing else is left.
    """
    require_policy(on_bad_sample)
    if not bad:
        return
    first = next(iter(bad.values()))
    said = f"{len(bad)} of {total} {what} cannot be {used} (first: {first}"
    if on_bad_sample == "fail":
        more = [reason.partition(": ")[0] for reason in list(bad.values())[1 : NAMED + 1]]
        then = f"; then {', '.join(more)}{', …' if len(bad) > NAMED + 1 else ''}" if more else ""
        raise DataError(f"task {task}: {said}{then}); data.on_bad_sample=skip leaves them out")
    if len(bad) == total:
        raise DataError(f"task {task}: {said}): none is left; none of the {total} {what} can be {used}")
