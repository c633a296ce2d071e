"""What a command is: its name, its options, its examples. Help, parsing and completion are derived from it.

A command line consists of words. An option is a word `name=VALUE`, or the two words `--name VALUE`; options may stand
anywhere. A command with actions (`lmm-forget store ls`) takes the first other word as its action.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmm_forget.cli.exit_codes import run_with_exit_code
from lmm_forget.errors import ConfigError, shorten_value

HELP_WIDTH = 110
"""Characters of a line of help."""


@dataclass(frozen=True)
class Option:
    """An option: `name=VALUE`, or `--name VALUE` where `name` begins with dashes; without VALUE it is a flag."""

    name: str
    value: str
    help: str
    short: str | None = None
    choices: tuple[str, ...] = ()
    group: str | None = None
    """The group of conf/ that holds its choices; they are completed, not checked."""
    repeatable: bool = False
    actions: tuple[str, ...] = ()
    """Actions that it belongs to; empty: to all."""

    @property
    def usage(self) -> str:
        """How it is written."""
        names = f"{self.name}, {self.short}" if self.short else self.name
        value = "|".join(self.choices) or self.value
        return f"{names} {value}".rstrip() if self.name.startswith("-") else f"{names}={value}"


CONFIG_DIR = Option("--config-dir", "DIR", "a folder of your own with the same groups, e.g. DIR/task/mine.yaml", "-cd")


@dataclass(frozen=True)
class Action:
    """What a command can be asked to do: `lmm-forget store ls`."""

    name: str
    usage: str
    help: str


@dataclass(frozen=True)
class Arguments:
    """A parsed command line: the action, options by name, overrides of the configuration, and all other words."""

    command: Command
    words: Sequence[str] = ()
    action: str = ""
    overrides: Sequence[str] = ()
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def get(self, name: str) -> str | None:
        """The value of an option; None where it is not given."""
        return self.options[name][0] if name in self.options else None

    def get_all(self, name: str) -> Sequence[str]:
        """Every value of an option that may be given several times."""
        return self.options.get(name, ())

    @property
    def output_format(self) -> str:
        """The value of `format=`; the first one that the command has by default."""
        return self.get("format") or self.command.formats[0]

    def get_folder(self) -> Path:
        """The only word, as a folder's path. Raises ConfigError unless there is exactly one."""
        if len(self.words) != 1:
            raise ConfigError(
                f"found {len(self.words)} folders, expected one: lmm-forget {self.command.name} multirun/<name>"
            )
        return Path(self.words[0])


@dataclass(frozen=True)
class Command:
    """A command of `lmm-forget`; calling its `main` runs it."""

    name: str
    summary: str
    run: Callable[[Arguments], int | None]
    usage: str = ""
    """What follows the name on a command line, without options."""
    description: str = ""
    words: str = ""
    """What words without `=` are, e.g. FOLDER; empty: there are none."""
    options: tuple[Option, ...] = ()
    actions: tuple[Action, ...] = ()
    formats: tuple[str, ...] = ()
    override_prefixes: tuple[str, ...] = ()
    """Beginnings of the words that are overrides of the configuration; ("",): every word that is no option."""
    examples: tuple[str, ...] = ()
    notes: str = ""
    exit_codes: Mapping[int, str] = field(default_factory=lambda: {0: "done", 2: "a mistake in what was asked for"})
    format_epilog: Callable[[Sequence[str]], str] | None = None
    """Makes the end of the help of a command line."""
    format_topics: Callable[[Sequence[str]], str] | None = None
    """Makes the help that a command line with other words than options asks for; empty where there are none."""
    is_parsed_by_hydra: bool = False
    """Whether `run` gets all words as they are."""
    program: str = ""
    """What a user types to start it; `lmm-forget <name>` if empty."""

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command with these words (None: those of the process); returns the exit code."""
        argv = list(sys.argv[1:] if arguments is None else arguments)
        return run_with_exit_code(lambda: self._run(argv))

    def _run(self, argv: list[str]) -> int | None:
        if {"-h", "--help"} & set(argv):
            topics = self.format_topics(argv) if self.format_topics else ""
            print(topics or self.format_help(argv))
            return 0
        return self.run(Arguments(self, argv) if self.is_parsed_by_hydra else self.parse(argv))

    def get_options(self, action: str = "") -> list[Option]:
        """The options of an action (empty: of all), with `format=` where the command has formats."""
        options = [option for option in self.options if not action or not option.actions or action in option.actions]
        if self.formats:
            options.append(Option("format", "FORMAT", "how the result is printed", choices=self.formats))
        return options

    def parse(self, argv: Sequence[str]) -> Arguments:
        """Sort words into options, overrides and others. Raises ConfigError for a word that has no meaning here."""
        options_by_name = {
            name: option for option in self.get_options() for name in (option.name, option.short) if name
        }
        values: dict[str, list[str]] = {}
        words: list[str] = []
        overrides: list[str] = []
        remaining = iter(argv)
        for word in remaining:
            if word == "--":
                (overrides if "" in self.override_prefixes else words).extend(remaining)
                break
            name, equals, value = word.partition("=")
            option = options_by_name.get(name)
            if option is not None and not equals and option.name.startswith("-"):
                value = next(remaining, "")
                equals = "="
            if option is not None and equals:
                if option.name in values and not option.repeatable:
                    raise ConfigError(f"{option.name} is given twice")
                values.setdefault(option.name, []).append(value)
            elif word.startswith("-") and word != "-":
                raise ConfigError(f"there is no option {shorten_value(name)}{self._suggest_option(name)}")
            elif self._is_override(word, has_action=bool(words)):
                overrides.append(word)
            elif equals and not _is_path(word):
                raise ConfigError(f"there is no option {shorten_value(name)}={self._suggest_option(name)}")
            else:
                words.append(word)
        action = self._take_action(words) if self.actions else ""
        self._check_options(values, action)
        if words and not self.words:
            raise ConfigError(f"cannot read {shorten_value(words[0])!r}{self._suggest_option(words[0], action)}")
        return Arguments(self, words, action, overrides, values)

    def _is_override(self, word: str, *, has_action: bool) -> bool:
        """Whether a word belongs to the configuration; the first word of a command with actions is its action."""
        if self.actions and not has_action and "=" not in word:
            return False
        return word.startswith(self.override_prefixes)

    def _take_action(self, words: list[str]) -> str:
        names = [action.name for action in self.actions]
        if not words:
            raise ConfigError(f"{self.name} needs an action: {', '.join(names)}; see lmm-forget {self.name} --help")
        name = words.pop(0)
        if name not in names:
            from lmm_forget.config.error_messages import suggest_closest  # imports OmegaConf: for mistakes only

            raise ConfigError(
                f"there is no action {shorten_value(name)!r}; choose one of: "
                f"{', '.join(names)}{suggest_closest(name, names)}"
            )
        return name

    def _check_options(self, values: Mapping[str, Sequence[str]], action: str) -> None:
        """Raise ConfigError for an option of another action, an empty value or one that is no choice."""
        options_by_name = {option.name: option for option in self.get_options()}
        for name, option_values in values.items():
            option = options_by_name[name]
            written = name if name.startswith("-") else f"{name}="
            if action and option.actions and action not in option.actions:
                raise ConfigError(f"{written} belongs to {' and '.join(option.actions)}, not to {action}")
            for value in option_values:
                if not value.strip():
                    raise ConfigError(f"{written} is empty; give {option.usage}")
                if option.choices and value not in option.choices:
                    choices = ", ".join(option.choices)
                    raise ConfigError(f"{written}{shorten_value(value)} is not known; choose one of: {choices}")

    def _suggest_option(self, name: str, action: str = "") -> str:
        """`; did you mean X?`, else which options there are."""
        from lmm_forget.config.error_messages import suggest_closest  # imports OmegaConf: for mistakes only

        names = [option.name for option in self.get_options(action)]
        listed = ", ".join(name if name.startswith("-") else f"{name}=" for name in names) or "none"
        return f"; {self.name} has: {listed}{suggest_closest(name, names)}"

    def format_help(self, argv: Sequence[str] = ()) -> str:
        """The text of `--help` for the command line `argv`."""
        program = self.program or f"lmm-forget {self.name}"
        options = [f"[{option.usage}]" for option in self.get_options()]
        words = ["usage:", program, *([self.usage] if self.usage else []), *options]
        usage = textwrap.wrap(" ".join(words), HELP_WIDTH, subsequent_indent=" " * 7)
        blocks = ["\n".join(usage), f"{self.summary[0].upper()}{self.summary[1:]}.", self.description.strip()]
        if self.actions:
            rows = [(f"{action.name} {action.usage}".rstrip(), action.help) for action in self.actions]
            blocks.append(_format_rows("actions:", rows))
        rows = [(option.usage, _describe_option(option)) for option in self.get_options()]
        blocks.append(_format_rows("options:", [*rows, ("--help", "this text")]))
        if self.examples:
            blocks.append("\n".join(["examples:", *(f"  {example}" for example in self.examples)]))
        blocks.append(self.notes.strip())
        codes = ", ".join(f"{code} {meaning}" for code, meaning in self.exit_codes.items())
        blocks.append("\n".join(textwrap.wrap(f"exit codes: {codes}", HELP_WIDTH)))
        if self.format_epilog is not None:
            blocks.append(self.format_epilog(argv))
        return "\n\n".join(block for block in blocks if block)


def _is_path(word: str) -> bool:
    """Whether a word with `=` is a path: folders may be called `sa_proj-seed=0`, and carry `@2`."""
    return "/" in word or Path(word.partition("@")[0]).exists()


def _describe_option(option: Option) -> str:
    belongs = f"{', '.join(option.actions)}: " if option.actions else ""
    return f"{belongs}{option.help}{'; may be given several times' if option.repeatable else ''}"


def _format_rows(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """A titled list of terms and what they mean, in two columns."""
    width = min(30, max(len(term) for term, _ in rows)) + 4
    lines = [title]
    for term, text in rows:
        wrapped = textwrap.wrap(text, HELP_WIDTH - width) or [""]
        if len(term) + 4 > width:
            lines.append(f"  {term}")
        else:
            lines.append(f"  {term:<{width - 2}}{wrapped.pop(0)}".rstrip())
        lines += [" " * width + line for line in wrapped]
    return "\n".join(lines)
