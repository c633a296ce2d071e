"""`python -m lmm_forget COMMAND …`, the same as the script `lmm-forget COMMAND …`."""

from __future__ import annotations

import sys

from lmm_forget.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
