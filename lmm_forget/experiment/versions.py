"""Which versions a job ran with: this package's (and its commit in a checkout), Python's, those of libraries."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from lmm_forget import __version__

VERSIONED_LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "lightning",
    "hydra-core",
    "datasets",
    "safetensors",
    "tokenizers",
)


def get_library_versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that results depend on."""
    return {
        "lmm_forget": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONED_LIBRARIES},
    }


def get_git_state() -> dict[str, str]:
    """{"git": commit}, with "modified" where files differ from it; empty where this code lies in no checkout."""
    this_file = Path(__file__)

    def run_git(*words: str) -> str:
        completed = subprocess.run(
            ["git", *words], cwd=this_file.parent, capture_output=True, text=True, check=True, timeout=20
        )
        return completed.stdout.strip()

    try:
        run_git(
            "ls-files", "--error-unmatch", this_file.name
        )  # a package installed inside somebody else's checkout is not it
        commit, changed = (
            run_git("rev-parse", "HEAD"),
            run_git("status", "--porcelain", "--untracked-files=no", "."),
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git": f"{commit} modified" if changed else commit}
