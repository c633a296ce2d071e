"""`hydra/launcher=slurm`: Hydra takes launchers only from this namespace; the code is in lmm_forget.launch.slurm."""

from lmm_forget.launch.slurm.launcher import SlurmQueueLauncher


class SlurmLauncher(SlurmQueueLauncher):
    """One Slurm job per grid point; see lmm_forget.launch.slurm."""
