"""From a configuration node with a `_target_` to the object it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from lmm_forget.config.renamed import RENAMED_TARGETS
from lmm_forget.errors import LmmForgetError

T = TypeVar("T")


def is_number(value: Any) -> bool:
    """Whether a setting is a number; what a YAML holds may be anything, and True is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def instantiate_config(
    config: Mapping[str, Any],
    expected_type: type[T],
    label: str,
    error_class: type[LmmForgetError],
    convert_mode: str = "all",
) -> T:
    """What hydra makes of `node`, which must be a `kind`.

    Errors of this package come out as they are; every other one as `error`, one line that begins with `what` and ends
    with the cause at the bottom (a misspelt argument, a module that is not there).
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if not isinstance(config, Mapping):
        raise error_class(f"{label}: {config!r} is not of the form {{_target_: …}}")
    try:
        instance = instantiate(dict(config), _convert_=convert_mode)
    except InstantiationException as problem:
        cause: BaseException | None = problem
        while cause is not None:
            if isinstance(cause, LmmForgetError):
                raise cause from None
            deepest, cause = cause, cause.__cause__
        target = config.get("_target_")
        if "Error locating target" in str(problem):
            hint = f"; it is now {RENAMED_TARGETS[target]}" if target in RENAMED_TARGETS else ""
            raise error_class(f"{label}: there is no _target_ {target}{hint}") from problem
        reason = " ".join(str(deepest).split())
        raise error_class(f"{label}: cannot be built from its YAML: {reason}") from problem
    if not isinstance(instance, expected_type):
        raise error_class(f"{label}: _target_ {config.get('_target_')} is not a {expected_type.__name__}")
    return instance
