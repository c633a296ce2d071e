"""Settings every test runs under; set before anything imports torch."""

from __future__ import annotations

import os

# A waiting PyTorch thread otherwise spins and starves its neighbours on a small machine. Two threads,
# whatever the machine has, keep floating-point results the same wherever the suite runs.
_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "passive",
    "OMP_NUM_THREADS": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    # Nothing in the suite may reach for a network.
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# A suite started inside a distributed job would otherwise make its children believe they are ranks.
for _name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(_name, None)

from hypothesis import settings  # noqa: E402  (the environment comes first)

# Examples are the same in every run, and a slow machine is not a failure.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("repeatable")
