"""Plain tuning that meets with a mishap: tests/test_devices.py puts it on PYTHONPATH and names it in recipes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from torch import Tensor

from lmm_forget.recipes.plain import Plain

STEP = 3
"""The call of `loss` in which it happens."""


class Mishap(Plain):
    """`how`: `before` (the first rank raises before any step) | `middle` (it raises in one) | `none`.

    Whatever `how` says, rank 1 is killed in a step while the file that $KILL_ONCE names is there; it is taken away.
    """

    def __init__(self, how: str = "none") -> None:
        self.how, self.calls = how, 0

    def start_stage(self, *args: Any, **named: Any) -> None:
        """As Plain's, or the mishap."""
        if self.how == "before" and os.environ["RANK"] == "0":
            raise RuntimeError("it failed before the first step")
        super().start_stage(*args, **named)

    def loss(self, *args: Any) -> Tensor:
        """As Plain's, or the mishap."""
        self.calls += 1
        if self.calls == STEP:
            if self.how == "middle" and os.environ["RANK"] == "0":
                raise RuntimeError("it failed in a step")
            once = Path(os.environ.get("KILL_ONCE", "nowhere"))
            if os.environ["RANK"] == "1" and once.exists():
                once.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(*args)
