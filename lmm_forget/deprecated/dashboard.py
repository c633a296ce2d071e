"""The old name of `lmm-forget dashboard`, which goes with the next version."""

from __future__ import annotations

import sys

from lmm_forget.cli.main import run_old_command

if __name__ == "__main__":
    sys.exit(run_old_command("dashboard"))
