"""`lmm-forget completion bash`: tab completion of commands, their options, and the configuration's groups and keys."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmm_forget.cli.command import Action, Arguments, Command, Option

BASH_SCRIPT = """\
_lmm_forget() {
    # Bash cuts words at = and :, so the whole line is handed over, and what stands before the cut is taken off again.
    local line="${COMP_LINE:0:COMP_POINT}"
    local word="${line##* }" prefix="" IFS=$'\\n'
    case "$COMP_WORDBREAKS" in *=*) [[ "$word" == *=* ]] && prefix="${word%=*}=" ;; esac
    COMPREPLY=($(lmm-forget completion words -- "$line" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    case "${COMPREPLY[0]-}" in *=|*.|*,) type compopt >/dev/null 2>&1 && compopt -o nospace 2>/dev/null ;; esac
    return 0
}
complete -o default -F _lmm_forget lmm-forget
"""
UNLISTED_GROUPS = ("strategy", "task")
"""Folders of conf/ that no override of their name chooses from."""


def _print_completion(arguments: Arguments) -> None:
    if arguments.action == "bash":
        print(BASH_SCRIPT, end="")
    else:
        print("\n".join(complete_line(" ".join(arguments.words))))


def complete_line(line: str) -> list[str]:
    """What the last word of a command line, `lmm-forget pl`, can become; each candidate is that whole word."""
    from lmm_forget.cli.main import COMMAND_NAMES, load_command  # main lists this command, too

    *earlier, word = _split_line(line)
    if len(earlier) < 2:
        candidates: Sequence[str] = ("--help", "--version") if word.startswith("-") else COMMAND_NAMES
    elif earlier[1] in COMMAND_NAMES:
        candidates = list(_list_candidates(load_command(earlier[1]), earlier[2:], word))
    else:
        candidates = ()
    return sorted({candidate for candidate in candidates if candidate.startswith(word)})


def _split_line(line: str) -> list[str]:
    """The words of a line; the last one is empty where the line ends with a blank."""
    try:
        words = shlex.split(line)
    except ValueError:  # an open quotation mark
        words = line.split()
    return [*words, ""] if not words or line[-1:].isspace() else words


def _list_candidates(command: Command, earlier: Sequence[str], word: str) -> Iterator[str]:
    """Words that may stand in the place of `word` behind the words `earlier` of a command."""
    action = next((each.name for each in command.actions if each.name in earlier), "")
    if command.actions and not action:
        yield from (each.name for each in command.actions)
        return
    config_dirs = [
        Path(after) for before, after in zip(earlier, earlier[1:], strict=False) if before in ("--config-dir", "-cd")
    ]
    name, equals, value = word.partition("=")
    options = {option.name: option for option in command.get_options(action)}
    if equals:
        values = _list_option_values(options[name], config_dirs) if name in options else ()
        if not values and "" in command.override_prefixes:
            values = _list_override_values(name, config_dirs)
        first_values = value.rpartition(",")[0]  # recipe=sa_proj,ml
        yield from (f"{name}={first_values}{',' if first_values else ''}{each}" for each in values)
        return
    if "--help" in earlier and command.format_topics is not None:  # the groups and keys that help is printed for
        yield from (group for group in _list_groups(config_dirs) if group != "experiment")
        yield from (key.rstrip("=") for key in _list_keys(word, earlier, config_dirs))
        return
    yield from ("--help", *(each if each.startswith("-") else f"{each}=" for each in options))
    if "" in command.override_prefixes:
        yield from (f"{group}=" for group in _list_groups(config_dirs))
        yield from _list_keys(word, earlier, config_dirs)


def _list_option_values(option: Option, config_dirs: Sequence[Path]) -> Sequence[str]:
    if option.group is None:
        return option.choices
    from lmm_forget.config import list_group_choices

    return list_group_choices(option.group, config_dirs)


def _list_override_values(key: str, config_dirs: Sequence[Path]) -> Sequence[str]:
    """Choices of a group, or of a key that names a task."""
    from lmm_forget.config import list_group_choices

    key = key.lstrip("+~")
    if key in _list_groups(config_dirs):
        return list_group_choices(key, config_dirs)
    group = {"sequence.task": "task", "hardware.strategy": "strategy"}.get(key)
    return list_group_choices(group, config_dirs) if group else ()


def _list_groups(config_dirs: Sequence[Path]) -> list[str]:
    from lmm_forget.config import find_conf_dir

    folders = {
        path.parent.relative_to(root).as_posix()
        for root in (find_conf_dir(), *config_dirs)
        for path in root.rglob("*.yaml")
    }
    return sorted(folders - {".", *UNLISTED_GROUPS})


def _list_keys(word: str, earlier: Sequence[str], config_dirs: Sequence[Path]) -> Iterator[str]:
    """Keys of the configuration that the other overrides make, one level at a time: `training.epochs=`."""
    parent, dot, _ = word.rpartition(".")
    if word.startswith("-"):
        return
    from omegaconf import DictConfig, OmegaConf

    from lmm_forget.config import compose_config
    from lmm_forget.errors import ConfigError

    overrides = [each for each in earlier if "=" in each and not each.startswith("-") and "," not in each]
    try:
        config = compose_config(overrides, config_dirs[0] if config_dirs else None)
    except ConfigError:
        return
    node = OmegaConf.select(config, parent, throw_on_missing=False) if dot else config
    if not isinstance(node, DictConfig):
        return
    for key in node:
        is_parent = not OmegaConf.is_missing(node, key) and isinstance(node._get_node(key), DictConfig)
        if not (parent == "" and key == "hydra"):
            yield f"{parent}{dot}{key!s}{'.' if is_parent else '='}"


COMMAND = Command(
    name="completion",
    summary="print the script that completes commands, options, groups, choices and keys with the tab key",
    run=_print_completion,
    usage="bash",
    words="LINE",
    actions=(
        Action("bash", "", "print the script for bash"),
        Action("words", "-- LINE", "print what the last word of a command line can become; the script calls it"),
    ),
    examples=('eval "$(lmm-forget completion bash)"     in ~/.bashrc, or for this shell alone',),
)
main = COMMAND.main
