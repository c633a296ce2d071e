"""Hydra's own settings: which of them a run obeys, and which are refused because nothing would come of them.

A job's folder is known only once its configuration is resolved and checked, and it has to be found again by the same
command, by `status`, by the report and by the store's cleaning: so it is always multirun/<name>/<job>, and Hydra's
folders are no way to move it. Settings that would be ignored are refused with what to set instead, whether they stand
on the command line or in a YAML.
"""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lmm_forget.config.schema.hardware_settings import IsolatedLauncherSettings
from lmm_forget.config.schema.node_reading import read_settings
from lmm_forget.errors import ConfigError

_FOLDER_HINT = "jobs lie in multirun/<name>/<job>; set name=NAME, and give the command where multirun is to be"
REFUSED_KEYS = {
    "hydra.run": _FOLDER_HINT,
    "hydra.sweep": _FOLDER_HINT,
    "hydra.output_subdir": "a job's whole configuration is the job.yaml in its folder",
    "hydra.job.chdir": "paths are relative to the folder that the command is given in; go there first",
    "hydra.job.env_set": "set the variables before the command: NAME=VALUE python -m lmm_forget.run …",
    "hydra.job.env_copy": "jobs have all variables of the command",
    "hydra.job": "a job's name follows from its choices, and name=NAME names the folder of all jobs",
    "hydra.job_logging": "what a job prints is in job.log in its folder",
    "hydra.hydra_logging": "what a job prints is in job.log in its folder",
    "hydra.verbose": "what a job prints is in job.log in its folder",
    "hydra.launcher._target_": "choose hydra/launcher=NAME",
    "hydra.sweeper._target_": "choose hydra/sweeper=NAME",
    "hydra.mode": "-m starts a sweep, a command without it one job",
    "hydra.runtime": "Hydra fills it in itself",
    "hydra.overrides": "Hydra fills it in itself",
}
"""Hydra's keys that decide nothing here -> what does."""
UNREPLACEABLE_NODES = {
    "hydra": "a single field of it, hydra.GROUP.FIELD=VALUE",
    "hydra.launcher": "hydra/launcher=NAME, or a single field of it, hydra.launcher.FIELD=VALUE",
    "hydra.sweeper": "hydra/sweeper=NAME, or a single field of it, hydra.sweeper.FIELD=VALUE",
}
"""Nodes that cannot be replaced as a whole -> what can be set."""
_PACKAGED_VALUES: dict[str, Any] = {
    "hydra.run.dir": ".",
    "hydra.sweep.dir": "${lmm_forget.sweep_folder:}",
    "hydra.sweep.subdir": ".",
    "hydra.output_subdir": None,
    "hydra.job.chdir": False,
    "hydra.job.env_set": {},
}


def check_hydra_override(key: str, override: str) -> None:
    """Raise ConfigError for a word of the command line that sets a key (without + or ~) of Hydra's to no effect."""
    key = key.partition("@")[0]
    if key in UNREPLACEABLE_NODES:
        raise ConfigError(f"{override} would replace Hydra's own settings; set {UNREPLACEABLE_NODES[key]}")
    dotted = key.replace("/", ".")
    for refused, instead in REFUSED_KEYS.items():
        if dotted == refused or dotted.startswith(f"{refused}."):
            raise ConfigError(f"{override} would do nothing here: {instead}")


class CallbackConfigError(BaseException):
    """Carries a ConfigError past Hydra, which makes warnings of a callback's errors."""

    def __init__(self, error: ConfigError) -> None:
        super().__init__(str(error))
        self.error = error


class HydraSettingsCallback(Callback):
    """Calls `check_hydra_settings` on what was composed, before Hydra makes the first folder. Raises
    CallbackConfigError."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before one job."""
        try:
            check_hydra_settings(config)
        except ConfigError as error:
            raise CallbackConfigError(error) from error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a sweep."""
        self.on_run_start(config)


def check_hydra_settings(cfg: DictConfig) -> None:
    """Raise ConfigError where a YAML sets one of Hydra's keys to no effect, or a launcher's field to what is none."""
    for key, packaged in _PACKAGED_VALUES.items():
        parent, _, field = key.rpartition(".")
        node = OmegaConf.select(cfg, parent)
        value = node._get_node(field) if isinstance(node, DictConfig) else None
        current_value = value._value() if value is not None and not isinstance(value, DictConfig) else value
        plain_value = OmegaConf.to_container(current_value) if isinstance(current_value, DictConfig) else current_value
        if isinstance(node, DictConfig) and plain_value != packaged:
            raise ConfigError(f"{key}={plain_value} in a YAML would do nothing here: {_find_alternative(key)}")
    launcher = cfg.hydra.get("launcher")
    if not isinstance(launcher, DictConfig):
        raise ConfigError("hydra.launcher is no launcher; choose hydra/launcher=NAME")
    if str(launcher.get("_target_")).endswith(".IsolatedLauncher"):
        fields = {str(key): launcher.get(key) for key in launcher if key != "_target_"}
        read_settings(IsolatedLauncherSettings, fields, "hydra.launcher", "hydra/launcher=isolated")


def _find_alternative(key: str) -> str:
    return next(REFUSED_KEYS[name] for name in REFUSED_KEYS if key == name or key.startswith(f"{name}."))
