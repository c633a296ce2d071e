"""`lmm-forget store`: list the archive of finished work, check it, clean it."""

from __future__ import annotations

from lmm_forget.cli.command import Action, Arguments, Command, Option
from lmm_forget.errors import ConfigError

ACTIONS_WITHOUT_KEY = ("ls", "gc")
DEFAULT_STORE = "multirun/.store"


def _run_store_action(arguments: Arguments) -> int:
    if arguments.action in ACTIONS_WITHOUT_KEY and arguments.words:
        raise ConfigError(f"{arguments.action} takes no key; found {arguments.words[0]}")
    from lmm_forget.cli import store_actions
    from lmm_forget.store.archive import Store

    functions = {
        "ls": store_actions.print_entries,
        "show": store_actions.show_entries,
        "explain": store_actions.explain_difference,
        "verify": store_actions.verify_entries,
        "gc": store_actions.collect_garbage,
        "rm": store_actions.remove_entries,
    }
    return functions[arguments.action](Store(arguments.get("store") or DEFAULT_STORE), arguments)


COMMAND = Command(
    name="store",
    summary="list the archive of finished work, check it, clean it",
    run=_run_store_action,
    usage="ACTION [KEY ...]",
    words="KEY",
    description="""
A KEY is the beginning of what `ls` lists. Links are followed; gc and rm stop, and remove nothing, where a job folder or
a link cannot be read.""",
    actions=(
        Action(
            "ls",
            "",
            "list stages, answers, half-trained stages, probes, measured micro-batches and damaged entries, with sizes",
        ),
        Action("show", "KEY", "print one stage's record; of answers: how many"),
        Action("explain", "KEY KEY", "print the ingredients that make two stages different"),
        Action("verify", "[KEY ...]", "read every byte again and compare it with its checksums"),
        Action("gc", "", "list what no job folder refers to; apply=true removes it"),
        Action(
            "rm",
            "KEY ...",
            "remove these (at least 4 characters of each key); a stage that is needed again is computed again",
        ),
    ),
    options=(
        Option("store", "FOLDER", f"the archive (default {DEFAULT_STORE})"),
        Option(
            "runs",
            "FOLDER",
            "job folders are sought here, too, not only below the folder that holds the store",
            repeatable=True,
            actions=("gc", "rm"),
        ),
        Option("apply", "BOOL", "remove, not only list", choices=("true", "false"), actions=("gc",)),
        Option(
            "force",
            "BOOL",
            "remove a stage although a job folder refers to it",
            choices=("true", "false"),
            actions=("rm",),
        ),
    ),
    formats=("table", "json"),
    examples=("lmm-forget store ls", "lmm-forget store explain 3fa1 90bc", "lmm-forget store gc apply=true"),
    exit_codes={0: "done", 1: "verify found damage", 2: "a mistake in what was asked for"},
)
main = COMMAND.main
