"""Where the YAML files lie, and how Hydra puts them together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmm_forget.errors import ConfigError

HYDRA_VERSION_BASE = "1.3"
"""The Hydra behaviour this package is written for."""


def find_conf_dir() -> Path:
    """The packaged configuration folder: inside the package in a wheel, beside it in a checkout.

    Raises ConfigError if there is neither.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "run.yaml").is_file():
            return folder
    raise ConfigError(
        f"the configuration folder is missing: no conf/run.yaml in {package} or beside it; reinstall lmm-forget"
    )


def list_group_choices(group: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """Names of the YAML files of a group (`recipe`, `hydra/launcher`), in the packaged folder and in `folders`."""
    names = {path.stem for folder in (*config_dirs, find_conf_dir()) for path in (folder / group).glob("*.yaml")}
    return sorted(names)


def list_config_dirs(cfg: DictConfig) -> list[Path]:
    """Folders that hold task YAMLs for a composed configuration, the user's own before the packaged one."""
    packaged = find_conf_dir()
    sources = OmegaConf.to_container(cfg.hydra.runtime.config_sources)  # a folder's name may look like ${this}
    assert isinstance(sources, list)
    paths = [Path(str(each["path"])) for each in sources if each["schema"] == "file" and each["path"]]
    return [*(path for path in paths if path.resolve() != packaged), packaged]


def compose_config(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """Compose `run.yaml` with command-line style `overrides`; the result keeps Hydra's own node under `hydra`.

    `config_dir` is a folder of the user's with the same groups (`task/mine.yaml`), as `--config-dir` is on the
    command line. Raises ConfigError, one line, for anything Hydra does not accept.
    """
    from hydra import compose as hydra_compose
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.version import setbase

    from lmm_forget.config.error_messages import format_config_error
    from lmm_forget.config.overrides import check_overrides

    register_resolvers()
    checked_overrides = check_overrides(overrides, [] if config_dir is None else [Path(config_dir)])
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"the configuration folder {config_dir} does not exist")
    previous_hydra = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        setbase(HYDRA_VERSION_BASE)
        search = create_config_search_path(str(find_conf_dir()))
        if config_dir is not None:  # as a path, and where --config-dir puts it: an override would have to be quoted
            search_query = SearchPathQuery(provider="schema")
            search.prepend("command-line", f"file://{os.path.abspath(config_dir)}", search_query)
        Hydra.create_main_hydra2(task_name="run", config_search_path=search)
        return hydra_compose("run", overrides=checked_overrides, return_hydra_config=True)
    except ConfigError:
        raise
    except Exception as error:  # Hydra checks little: what it was given can end in an error of any kind
        raise ConfigError(format_config_error(error, overrides, config_dir)) from error
    finally:
        GlobalHydra.instance().hydra = previous_hydra


def register_resolvers(sweep_dir: Path | None = None) -> None:
    """Make the interpolations of the packaged YAMLs known to OmegaConf (more than once does no harm).

    `sweep_folder` is where Hydra may write while a sweep is not accepted yet.
    """
    OmegaConf.register_new_resolver("lmm_forget.default_name", _build_default_name, replace=True)
    if sweep_dir is not None or not OmegaConf.has_resolver("lmm_forget.sweep_folder"):
        sweep_path = "multirun" if sweep_dir is None else str(sweep_dir)
        OmegaConf.register_new_resolver("lmm_forget.sweep_folder", lambda: sweep_path, replace=True)
    OmegaConf.register_new_resolver("lmm_forget.by_accelerator", _select_by_accelerator, replace=True)


def _select_by_accelerator(accelerator: str, values: Mapping[str, Any]) -> Any:
    """`values[accelerator]`; what is no accelerator is refused later, in words of its own."""
    return values.get(accelerator, values["gpu"])


def _build_default_name(*, _root_: Any) -> str:
    """The chosen experiment's name, else the model's; a sweep over either gets the plural of what it varies."""
    from hydra.core.hydra_config import HydraConfig

    hydra = OmegaConf.select(_root_, "hydra")
    if hydra is None and HydraConfig.initialized():
        hydra = HydraConfig.get()  # Hydra takes its own node out of the configuration it hands to a task
    if hydra is None:
        return str(_root_.model.name)
    for key in ("experiment", "model"):
        if any(_is_swept(str(override), key) for override in hydra.overrides.task):
            return f"{key}s"
    experiment = OmegaConf.select(hydra, "runtime.choices.experiment")
    return str(experiment or _root_.model.name)


def _is_swept(override: str, key: str) -> bool:
    """Whether a command-line override gives `key` several values."""
    if override.lstrip("+").split("=", 1)[0] != key:
        return False
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return bool(OverridesParser.create().parse_override(override).is_sweep_override())
