"""`python -m lmm_forget.run …`, the front door: trains one job, or with -m a sweep; see lmm_forget.cli.run."""

from __future__ import annotations

import sys

from lmm_forget.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
