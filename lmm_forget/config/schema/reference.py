"""Every setting with its type, default, effect and meaning: for `run --help GROUP`, and for docs/configuration.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lmm_forget.config.conf_dirs import find_conf_dir, list_group_choices
from lmm_forget.config.schema.hardware_settings import IsolatedLauncherSettings, SlurmLauncherSettings
from lmm_forget.config.schema.job_config import JobConfig
from lmm_forget.config.schema.setting import list_settings
from lmm_forget.config.schema.training_settings import TaskSettings
from lmm_forget.config.suggestions import join_names, suggest_closest
from lmm_forget.errors import ConfigError

DOCUMENTED_CHOICES = {
    "model": "tiny_onevision",
    "recipe": "sa_proj",
    "sequence": "paper",
    "suite": "paper",
    "training": "default",
    "data": "default",
    "probe": "output_shift",
    "hardware": "cpu",
    "callbacks": "default",
    "logger": "wandb",
}
"""The choice of each group whose values are shown as defaults."""
_MARKDOWN_INTRODUCTION = """\
# Configuration: every setting

This page is written by `make docs/configuration.md` from the classes in `lmm_forget/config/schema`; change a setting
there. The YAMLs in `conf/` hold the values. `lmm-forget run --help training` shows a group on the screen,
`lmm-forget run --help training.max_steps` a single setting.

A default in braces, `${model.training.epochs}`, is taken from that key. The column *changes* says what another value
changes. *weights*: the weights of a stage, which is then another stage in the store. *answers*: with equal weights,
what is asked, answered, scored or recorded. *location*: where an input lies; its content is fingerprinted instead.
*neither*: where and how fast a job runs; a finished job stays the same job. Fields that are not listed, such as those
of your own recipe or task, count as changing weights.
"""


@dataclass(frozen=True)
class SettingRow:
    """One setting, in words; `default` is None where there is none."""

    key: str
    expected: str
    default: str | None
    effect: str
    help: str


@dataclass(frozen=True)
class ReferenceSection:
    """The settings of one group; `choice` is the one whose values are shown as defaults, if it has choices."""

    name: str
    help: str
    choice: str | None
    rows: tuple[SettingRow, ...]


def list_reference_sections() -> list[ReferenceSection]:
    """All settings by group, the top level (`run`) first."""
    groups = list_settings(JobConfig)
    conf_dir = find_conf_dir()
    top_rows, sections = [], []
    run_values = _read_yaml_values(conf_dir / "run.yaml")
    for row in _iterate_rows(JobConfig, "", run_values):
        if row.key.partition(".")[0] not in DOCUMENTED_CHOICES:
            top_rows.append(row)
    sections.append(ReferenceSection("run", "the top level of the configuration", None, tuple(top_rows)))
    for name, choice in DOCUMENTED_CHOICES.items():
        schema = groups[name].schema
        assert schema is not None
        rows = _iterate_rows(schema, f"{name}.", _read_yaml_values(conf_dir / name / f"{choice}.yaml"))
        sections.append(ReferenceSection(name, groups[name].help, choice, tuple(rows)))
    task_rows = tuple(_iterate_rows(TaskSettings, "tasks.NAME.", {}))
    sections.append(ReferenceSection("task", "one task; other fields are arguments of its class", None, task_rows))
    for choice, launcher in (("isolated", IsolatedLauncherSettings), ("slurm", SlurmLauncherSettings)):
        values = _read_yaml_values(conf_dir / "hydra/launcher" / f"{choice}.yaml")
        rows = _iterate_rows(launcher, "hydra.launcher.", values)
        title = f"hydra/launcher={choice}"
        sections.append(ReferenceSection(title, str(launcher.__doc__).partition(": ")[2], choice, tuple(rows)))
    return sections


def format_settings_help(topic: str, config_dirs: Sequence[Path] = ()) -> str:
    """What `--help TOPIC` prints: the settings of a group (`training`), or one of them (`training.max_steps`).

    `config_dirs` are the user's own folders, whose choices are listed too. Raises ConfigError for an unknown topic.
    """
    sections = list_reference_sections()
    lines: list[str] = []
    for section in sections:
        is_whole_group = topic in (section.name, section.name.partition("=")[0])
        shown_rows = tuple(
            row for row in section.rows if is_whole_group or row.key == topic or row.key.startswith(f"{topic}.")
        )
        if not shown_rows and not is_whole_group:
            continue
        group = section.name.partition("=")[0]
        lines.append(f"{section.name}: {section.help}")
        choices = list_group_choices(group, config_dirs)
        if choices:
            defaults_note = "" if section.choice is None else f" (defaults below: {section.choice})"
            lines += _wrap(f"choices: {', '.join(choices)}{defaults_note}", "  ")
        for row in shown_rows:
            default = "" if row.default is None else f" [{row.default}]"
            lines += ["", *_wrap(f"{row.key}: {row.expected}{default}", "  ")]
            lines += _wrap(f"{row.help} (changes {row.effect})", "      ")
        lines.append("")
    if not lines:
        names = [section.name for section in sections]
        keys = [row.key for section in sections for row in section.rows]
        raise ConfigError(
            f"there is no group or setting {topic!r}; --help takes one of: {join_names(names)}"
            f"{suggest_closest(topic, [*names, *keys])}"
        )
    return "\n".join(lines).rstrip()


def format_markdown_reference() -> str:
    """The text of docs/configuration.md."""
    lines = [_MARKDOWN_INTRODUCTION]
    for section in list_reference_sections():
        lines.append(f"## {section.name}\n")
        note = (
            f" Defaults are those of `{section.name}={section.choice}`." if section.name in DOCUMENTED_CHOICES else ""
        )
        lines.append(f"{section.help[0].upper()}{section.help[1:].rstrip('.')}.{note}\n")
        lines += ["| setting | value | default | changes | meaning |", "|---|---|---|---|---|"]
        for row in section.rows:
            default = "" if row.default is None else f"`{row.default}`"
            cells = (f"`{row.key}`", row.expected, default, row.effect, row.help)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _iterate_rows(schema: type, prefix: str, values: Mapping[str, Any]) -> Iterator[SettingRow]:
    """The settings of a class and of the classes below it; `values` are those of a YAML, interpolations unresolved."""
    class_defaults = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for each in fields(schema)
    }
    for name, setting in list_settings(schema).items():
        value = values.get(name, class_defaults[name])
        if setting.schema is not None:
            nested_values = value if isinstance(value, Mapping) else {}
            yield from _iterate_rows(setting.schema, f"{prefix}{name}.", nested_values)
            continue
        default = None if value is MISSING else _format_default(value)
        yield SettingRow(f"{prefix}{name}", setting.rule.expected, default, setting.effect.describe(), setting.help)


def _read_yaml_values(path: Path) -> Mapping[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _format_default(value: Any) -> str:
    """A value as YAML has it, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_format_default(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_format_default, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        110,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
