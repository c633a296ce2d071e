"""The old name of `lmm-forget dashboard`, which goes with the next version."""

from __future__ import annotations

import sys

from lmm_forget.cli.main import run_deprecated_command

if __name__ == "__main__":
    sys.exit(run_deprecated_command("dashboard"))
