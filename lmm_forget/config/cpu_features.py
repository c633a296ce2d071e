"""What the machine that a command is given on can do, read without torch."""

from __future__ import annotations

from pathlib import Path

BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""Processor flags of which one is enough: Intel's and AMD's, and Arm's."""


def has_bf16_instructions(cpuinfo_path: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's processor has instructions that multiply bf16.

    Without them PyTorch emulates bf16: a training step of the embedded models took about ten times as long as in fp32
    on two cores with AVX2. False where the system does not tell.
    """
    try:
        lines = cpuinfo_path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features")))
    return bool(BF16_FLAGS & set(next(flags, [])))
