"""Hydra's and OmegaConf's many-line messages, as one line that says what exists instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

_TELLING = ("model", "recipe", "sequence", "hardware", "logger", "hydra/launcher")
"""Groups whose choices have fields of their own."""


def one_line(
    error: BaseException, overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> str:
    """One line for an error of Hydra or OmegaConf (or any other), naming the choices or keys that exist.

    `overrides` and `config_dir` are what was asked for; they are used to look up the neighbours of an unknown key.
    """
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    text = str(error)
    if isinstance(error, (yaml.YAMLError, UnicodeDecodeError)):
        return _broken_file(config_dir) or f"a YAML file cannot be read: {_short(_flat(text))}"
    if isinstance(error, RecursionError):
        where = f" in {config_dir}" if config_dir is not None else ""
        return f"the defaults lists of the YAMLs{where} include each other without end"
    if isinstance(error, MissingConfigException):
        return _missing_choice(error.missing_cfg_file, error.options, text)
    if isinstance(error, OverrideParseException):
        why = _flat(error.message.splitlines()[0])
        word = _short(str(error.override), 80)
        return f"cannot read {word!r}: {_short(why, 200)}; write key=value, and quote lists and commas"
    unknown = re.search(r"Could not (?:override|delete|append to)[a-z ]* '([^']+)'", text)
    if unknown:
        return _unknown_key(unknown.group(1).split("@")[0], overrides, config_dir)
    if "Multiple values for" in text:
        return _flat(text.splitlines()[0])
    if "An item is already at" in text:
        return f"{_flat(text.splitlines()[0]).rstrip('.')}; leave out the leading +"
    if "sweep" in text.lower() and "--multirun" in text:
        return f"{_flat(text.splitlines()[0])}; several values need -m, one value with commas needs quotes"
    broken = _broken_file(config_dir)
    if broken is not None:
        return broken
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be read: {error.strerror}"
    full_key = getattr(error, "full_key", None)
    where = f"{full_key}: " if full_key else ""
    told = _flat(text.splitlines()[0] if text else type(error).__name__)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _short(where + told)
    asked = f"cannot make a configuration of {' '.join(overrides)!r}" if overrides else "no configuration"
    return f"{_short(asked)}: {_short(told)} ({type(error).__name__})"


def closest(word: str, known: Sequence[str]) -> str:
    """`; did you mean X?` if a known word is close, else nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def listing(names: Sequence[str]) -> str:
    """Names for the end of a message; `nothing` if there are none."""
    return ", ".join(names) if names else "nothing"


def _missing_choice(wanted: str | None, options: Sequence[str] | None, text: str) -> str:
    group, _, name = str(wanted or "").rpartition("/")
    if not group:
        return _flat(text.splitlines()[0])
    name = name.removesuffix(".yaml")
    known = sorted(options or [])
    return f"there is no {group} {name!r}; choose one of: {listing(known)}{closest(name, known)}"


def _unknown_key(key: str, overrides: Sequence[str], config_dir: str | Path | None) -> str:
    """Name the keys that stand where `key` was looked for."""
    from lmm_forget.config.composing import compose
    from lmm_forget.errors import ConfigError

    key = key.lstrip("+~")
    plain = [text for text in overrides if "," not in text]
    keep = [text for text in plain if text.lstrip("+~").split("=", 1)[0] in _TELLING]
    try:
        cfg = compose(keep, config_dir)
    except ConfigError:
        return f"there is no key {key!r} in the configuration"
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    while parent and not isinstance(node, DictConfig):
        parent, _, last = parent.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
    known = [str(name) for name in node if name != "hydra"] if isinstance(node, DictConfig) else []
    if parent == "tasks":
        return f"there is no {key!r} yet; a change to a task is added: +{key}=…"
    if known == ["name"] and isinstance(node, DictConfig):
        from lmm_forget.config.composing import choices

        others = [
            name for name in choices(parent, [Path(config_dir)] if config_dir else []) if name != node.name
        ]
        return f"there is no {key!r}; {parent}={node.name} has no settings; choose another: {listing(others)}"
    where = parent or "the configuration"
    return f"there is no {key!r}; {where} has: {listing(known)}{closest(last, known)}"


def yaml_fault(path: Path) -> str | None:
    """Why a YAML file of the user's cannot be used at all, in one line that names it; None if it holds keys and values.

    An empty file is fine here: it says nothing.
    """
    from omegaconf.errors import OmegaConfBaseException

    try:
        if not OmegaConf.is_dict(OmegaConf.load(path)):
            return f"{path} must hold keys and values, and holds something else"
    except UnicodeDecodeError as error:
        return f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
    except OSError as error:
        if error.errno is None:  # OmegaConf's own: a file that holds a bare word or number
            return f"{path} must hold keys and values, and holds something else"
        return f"{path} cannot be read: {error.strerror}"
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        return f"{path} is not readable YAML: {_yaml_reason(error)}"
    return None


def _yaml_reason(error: Exception) -> str:
    """What is wrong in a YAML file and in which line; the parser's own text repeats the file's path."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return _short(_flat(str(error)), 300)
    return f"line {mark.line + 1}, column {mark.column + 1}: {_short(_flat(str(problem)), 300)}"


def _broken_file(config_dir: str | Path | None) -> str | None:
    """The first YAML of the user's folder that cannot be used: Hydra's errors do not name the file."""
    if config_dir is None:
        return None
    paths = [
        path for depth in ("*", "*/*", "*/*/*") for path in sorted(Path(config_dir).glob(f"{depth}.yaml"))
    ]
    return next((fault for path in paths if (fault := yaml_fault(path)) is not None), None)


def _short(text: str, most: int = 400) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
