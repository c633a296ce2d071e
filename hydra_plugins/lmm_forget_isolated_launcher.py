"""`hydra/launcher=isolated`: Hydra takes launchers only from this namespace; the code is in lmm_forget.launch."""

from lmm_forget.launch.subprocess_launcher import SubprocessLauncher


class IsolatedLauncher(SubprocessLauncher):
    """One process per grid point; see lmm_forget.launch.subprocess_launcher."""
