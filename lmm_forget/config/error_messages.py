"""Hydra's and OmegaConf's many-line messages, as one line that says what exists instead."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from traceback import walk_tb

import yaml
from omegaconf import DictConfig, OmegaConf

from lmm_forget.config.conf_dirs import list_group_choices
from lmm_forget.config.hydra_composition import compose_with_hydra
from lmm_forget.config.suggestions import join_names, suggest_closest
from lmm_forget.errors import shorten_value

_GROUPS_WITH_FIELDS = ("model", "recipe", "sequence", "hardware", "logger", "hydra/launcher")
"""Groups whose choices have fields of their own."""


def format_config_error(
    error: BaseException, overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> str:
    """One line for an error of Hydra or OmegaConf (or any other), naming the choices or keys that exist.

    `overrides` and `config_dir` are what was asked for; they are used to look up the neighbours of an unknown key.
    """
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    text = str(error)
    failing_yaml = _find_failing_yaml(error)
    if failing_yaml is not None:
        return (
            find_yaml_error(failing_yaml)
            or f"{failing_yaml} cannot be read: {_shorten_text(_collapse_whitespace(text))}"
        )
    if isinstance(error, RecursionError):
        key_prefix = f" in {config_dir}" if config_dir is not None else ""
        return f"the defaults lists of the YAMLs{key_prefix} include each other without end"
    if isinstance(error, MissingConfigException):
        return _format_missing_choice(error.missing_cfg_file, error.options, text)
    if isinstance(error, OverrideParseException):
        why = _collapse_whitespace(error.message.splitlines()[0])
        word = _shorten_text(str(error.override), 80)
        return f"cannot read {word!r}: {_describe_unparsable_override(str(error.override), why)}"
    unknown_key_match = re.search(r"Could not (?:override|delete|append to)[a-z ]* '([^']+)'", text)
    if unknown_key_match:
        key, at, package = unknown_key_match.group(1).partition("@")
        if at:
            return f"{key}@{package}: there is no {key} that stands at {package!r}; choose a {key} with {key}=…"
        return _format_unknown_key(key, overrides, config_dir)
    if "Multiple values for" in text:
        return _collapse_whitespace(text.splitlines()[0])
    if "An item is already at" in text:
        return f"{_collapse_whitespace(text.splitlines()[0]).rstrip('.')}; leave out the leading +"
    if "sweep" in text.lower() and "--multirun" in text:
        return (
            f"{_collapse_whitespace(text.splitlines()[0])}; several values need -m, one value with commas needs quotes"
        )
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be read: {error.strerror}"
    full_key = getattr(error, "full_key", None)
    key_prefix = f"{shorten_value(full_key)}: " if full_key else ""
    message = _collapse_whitespace(text.splitlines()[0] if text else type(error).__name__)
    if message.startswith("Error merging override") and (why := str(error.__cause__ or error.__context__ or "")):
        # Hydra's own line does not say why.
        message = f"{_shorten_text(message, 200)}: {_collapse_whitespace(why.splitlines()[0])}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _shorten_text(key_prefix + message)
    prefix = f"cannot make a configuration of {' '.join(overrides)!r}" if overrides else "no configuration"
    return f"{_shorten_text(prefix)}: {_shorten_text(message)} ({type(error).__name__})"


def _format_missing_choice(config_file: str | None, options: Sequence[str] | None, text: str) -> str:
    group, _, name = str(config_file or "").rpartition("/")
    if not group:
        return _collapse_whitespace(text.splitlines()[0])
    name = name.removesuffix(".yaml")
    options_sorted = sorted(options or [])
    return (
        f"there is no {group} {name!r}; choose one of: "
        f"{join_names(options_sorted)}{suggest_closest(name, options_sorted)}"
    )


def _format_unknown_key(key: str, overrides: Sequence[str], config_dir: str | Path | None) -> str:
    """Name the keys that stand where `key` was looked for."""
    key = key.lstrip("+~")
    single_overrides = [text for text in overrides if "," not in text]
    group_overrides = [text for text in single_overrides if text.lstrip("+~").split("=", 1)[0] in _GROUPS_WITH_FIELDS]
    try:
        cfg = compose_with_hydra(group_overrides, config_dir)
    except Exception:  # of any kind, from what stands beside the key
        return f"there is no key {key!r} in the configuration"
    parent, _, missing_name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    while parent and not isinstance(node, DictConfig):
        parent, _, missing_name = parent.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
    known_keys = [str(name) for name in node if name != "hydra"] if isinstance(node, DictConfig) else []
    if parent == "tasks":
        return f"there is no {key!r} yet; a change to a task is added: +{key}=…"
    if known_keys == ["name"] and isinstance(node, DictConfig):
        others = [
            name for name in list_group_choices(parent, [Path(config_dir)] if config_dir else []) if name != node.name
        ]
        return f"there is no {key!r}; {parent}={node.name} has no settings; choose another: {join_names(others)}"
    where = parent or "the configuration"
    return f"there is no {key!r}; {where} has: {join_names(known_keys)}{suggest_closest(missing_name, known_keys)}"


def find_yaml_error(path: Path) -> str | None:
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
        return f"{path} is not readable YAML: {_describe_yaml_error(path, error)}"
    return None


def _describe_yaml_error(path: Path, error: Exception) -> str:
    """What is wrong in a YAML file and in which line; the parser's own text repeats the file's path."""
    if isinstance(error, RecursionError) or "recursion depth" in str(error):
        return _find_self_reference(path) or "it is nested too deeply"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return _shorten_text(_collapse_whitespace(str(error)), 300)
    return f"line {mark.line + 1}, column {mark.column + 1}: {_shorten_text(_collapse_whitespace(str(problem)), 300)}"


def _find_self_reference(path: Path) -> str | None:
    """Where a node of a YAML file holds itself (`x: &a [*a]`), which no value can; None if none does."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    open_nodes: set[int] = set()
    checked_nodes: set[int] = set()
    stack = [(root, False)]
    while stack:  # a loop, because a file may be nested deeper than Python calls
        node, is_leaving = stack.pop()
        if is_leaving:
            open_nodes.discard(id(node))
            checked_nodes.add(id(node))
        elif id(node) in open_nodes:
            return f"line {node.start_mark.line + 1}: the node that begins here refers to itself (&… and *… in it)"
        elif isinstance(node, yaml.CollectionNode) and id(node) not in checked_nodes:
            open_nodes.add(id(node))
            stack.append((node, True))
            for item in node.value:
                stack += [(part, False) for part in (item if isinstance(item, tuple) else (item,))]
    return None


def _find_failing_yaml(error: BaseException) -> Path | None:
    """The YAML file whose reading ended in `error`; None if it came from anything else.

    Hydra's errors do not name the file, and a folder may hold broken files that a command does not use.
    """
    frames = []
    cause: BaseException | None = error
    while cause is not None:
        frames += [frame for frame, _ in walk_tb(cause.__traceback__)]
        cause = cause.__cause__
    for frame in reversed(frames):
        path = frame.f_locals.get("full_path")
        if frame.f_code.co_name == "load_config" and isinstance(path, str) and Path(path).is_file():
            return Path(os.path.relpath(path)) if Path(path).is_relative_to(Path.cwd()) else Path(path)
    return None


def _describe_unparsable_override(override: str, reason: str) -> str:
    """What is wrong with a word that Hydra's parser refuses, and `why` it says so, in words for people."""
    reason = re.sub(r"^\w*Exception: ", "", reason)
    value = override.partition("=")[2]
    for quote in ("'", '"'):
        other = '"' if quote == "'" else "'"
        if other not in value and len(re.findall(rf"(?<!\\){quote}", value)) % 2:
            return f"a quote ({quote}) is not closed; close it, or write the value in the other quotes: " + (
                f"{other}{_shorten_text(value, 80)}{other}"
            )
    if not reason or reason in override or override in reason:
        reason = "it holds signs that a value may only have in quotes"
    return f"{_shorten_text(reason, 200)}; write key=value, and quote lists and commas"


def _shorten_text(text: str, max_length: int = 400) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def _collapse_whitespace(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
