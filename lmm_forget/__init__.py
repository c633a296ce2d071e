"""Train large multimodal models on one skill after another, and measure what each recipe makes them forget."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmm_forget.recipes.tuning import tune as tune

# `python -m lmm_forget.plan` and its like answer for one more version, from a folder of their own.
__path__.append(os.path.join(__path__[0], "deprecated"))

__version__ = "0.1.0"
__all__ = ["__version__", "tune"]


def __getattr__(name: str) -> Any:
    """Load `tune` on first use, so that importing the package stays free of torch."""
    if name == "tune":
        from lmm_forget.recipes.tuning import tune

        return tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
