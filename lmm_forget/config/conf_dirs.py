"""Where the YAML files of the configuration lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lmm_forget.errors import ConfigError


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
    """Names of the YAML files of a group (`recipe`, `hydra/launcher`), in the packaged folder and in `config_dirs`."""
    names = {path.stem for folder in (*config_dirs, find_conf_dir()) for path in (folder / group).glob("*.yaml")}
    return sorted(names)


def list_config_dirs(cfg: DictConfig) -> list[Path]:
    """Folders that hold task YAMLs for a composed configuration, the user's own before the packaged one."""
    packaged = find_conf_dir()
    sources = OmegaConf.to_container(cfg.hydra.runtime.config_sources)  # a folder's name may look like ${this}
    assert isinstance(sources, list)
    paths = [Path(str(each["path"])) for each in sources if each["schema"] == "file" and each["path"]]
    return [*(path for path in paths if path.resolve() != packaged), packaged]
