"""`lmm-forget store`: look into the archive of finished work, check it, clean it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmm_forget.cli.parser import extract_format, run_command
from lmm_forget.errors import ConfigError, StoreError
from lmm_forget.store import maintenance
from lmm_forget.store.archive import Store, format_size
from lmm_forget.store.keys import diff_ingredients

HELP = """usage: lmm-forget store COMMAND [KEY ...] [store=FOLDER] [format=table|json]

  ls                     what is there: stages, answers, half-trained stages, probes, measured
                         micro-batches, damaged things; with sizes
  show KEY               one stage's record; answers: how many
  explain A B            which ingredient makes two stages different
  verify [KEY ...]       read every byte again and compare it with its checksums; exit code 1 if anything is damaged
  gc [runs=FOLDER ...]   what no job folder refers to that lies below the folder that holds the store, or below one of
                         these; apply=true removes it
  rm KEY ...             remove these (at least 4 characters of each key); a stage that is needed again is computed
                         again. A stage that a job folder rests on, found as gc finds it, needs force=true.

A KEY is the beginning of what `ls` lists. The store is multirun/.store unless store=FOLDER says otherwise. Links are
followed; gc and rm stop, and remove nothing, where a job folder or a link cannot be read.

examples:
  lmm-forget store ls
  lmm-forget store explain 3fa1 90bc
  lmm-forget store gc apply=true
"""
COUNTABLE_KINDS = ("stage", "probe")
COMMANDS_WITHOUT_KEY = ("ls", "gc")
COMMANDS_OF_OPTION = {"runs": ("gc", "rm"), "apply": ("gc",), "force": ("rm",)}
DEFAULT_OPTIONS = {"store": "multirun/.store", "runs": (), "apply": "false", "force": "false"}
MIN_KEY_LENGTH = 4
"""Characters of a key that `rm` wants: a slip of the finger names nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 (verify found damage), 2 (a mistake, told in one line on stderr)."""
    return run_command(_run_store_command, arguments, HELP)


def _run_store_command(words: Sequence[str]) -> int:
    if not words:
        print(HELP, end="")
        return 2
    output_format, words = extract_format(words)
    options: dict[str, Any] = {**DEFAULT_OPTIONS, "format": output_format}
    positional: list[str] = []
    given_options: set[str] = set()
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name == "runs":
            options["runs"] = (*options["runs"], value)
        elif equals and name in DEFAULT_OPTIONS:
            if name in given_options:
                raise ConfigError(f"{name} is given twice")
            given_options.add(name)
            options[name] = value
        elif equals:
            raise ConfigError(f"there is no option {name}; there are: {', '.join(options)}")
        else:
            positional.append(word)
    command, keys = (positional[0], positional[1:]) if positional else ("", [])
    commands: Mapping[str, Callable[[Store, list[str], Mapping[str, Any]], int]] = {
        "ls": _print_entries,
        "show": _show_entries,
        "explain": _explain_difference,
        "verify": _verify_entries,
        "gc": _collect_garbage,
        "rm": _remove_entries,
    }
    for name, allowed_commands in COMMANDS_OF_OPTION.items():
        if command in commands and options[name] != DEFAULT_OPTIONS[name] and command not in allowed_commands:
            raise ConfigError(f"{name}= belongs to {' and '.join(allowed_commands)}, not to {command}")
    for name in ("apply", "force"):
        if options[name] not in ("true", "false"):
            raise ConfigError(f"{name}={options[name]}: true or false")
    if not options["store"].strip():
        raise ConfigError("store= is empty; name the store's folder")
    if command in COMMANDS_WITHOUT_KEY and keys:
        raise ConfigError(f"{command} takes no key; found {keys[0]}")
    if command not in commands:
        raise ConfigError(f"there is no command {command!r}; choose one of: {', '.join(commands)}")
    return commands[command](Store(options["store"]), keys, options)


def _print_entries(store: Store, keys: list[str], options: Mapping[str, Any]) -> int:
    entries = maintenance.list_entries(store)
    if options["format"] == "json":
        print(json.dumps([{**_entry_to_dict(item)} for item in entries], indent=1))
        return 0
    for item in entries:
        print(f"{item.kind:<8} {item.key[:12]:<12} {format_size(item.size):>10}  {item.about}")
    total = {kind: [item for item in entries if item.kind == kind] for kind in maintenance.ENTRY_KINDS}
    print(
        "; ".join(
            f"{len(of)} {kind}{'s' if kind in COUNTABLE_KINDS and len(of) != 1 else ''}, "
            f"{format_size(sum(i.size for i in of))}"
            for kind, of in total.items()
            if of
        )
        or f"{store.root} is empty"
    )
    return 0


def _show_entries(store: Store, keys: list[str], options: Mapping[str, Any]) -> int:
    for key in _require_keys(keys, "show", 1):
        item = maintenance.find_entry(store, key)
        content: dict[str, Any] = _entry_to_dict(item)
        if item.kind == "stage":
            record = _read_stage_record(store, item)
            tensors = record.pop("tensors")
            content |= {**record, "tensors": len(tensors)}
        print(json.dumps(content, indent=1, sort_keys=True))
    return 0


def _explain_difference(store: Store, keys: list[str], options: Mapping[str, Any]) -> int:
    _require_keys(keys, "explain", 2)
    if len(keys) > 2:
        raise ConfigError(f"explain takes 2 keys; found {len(keys)}")
    first_record, second_record = (
        _read_stage_record(store, maintenance.find_entry(store, key, ("stage",))) for key in keys
    )
    differences = diff_ingredients(first_record["ingredients"], second_record["ingredients"])
    if options["format"] == "json":
        print(json.dumps([{"ingredient": n, "a": a, "b": b} for n, a, b in differences], indent=1))
        return 0
    for name, first, second in differences:
        print(f"{name}: {_format_value(first)} | {_format_value(second)}")
    if not differences:
        same = first_record["weights_hash"] == second_record["weights_hash"]
        print(
            "the same stage"
            if first_record["key"] == second_record["key"]
            else f"nothing differs (equal weights: {same})"
        )
    return 0


def _verify_entries(store: Store, keys: list[str], options: Mapping[str, Any]) -> int:
    entries = [maintenance.find_entry(store, key) for key in keys] if keys else maintenance.list_entries(store)
    checked = [item for item in entries if item.kind != "damaged"]
    failures = [fault for item in checked if (fault := maintenance.verify_entry(store, item)) is not None]
    if options["format"] == "json":
        print(
            json.dumps(
                {
                    "checked": len(checked),
                    "faults": [{**_entry_to_dict(f.entry), "reason": f.reason} for f in failures],
                },
                indent=1,
            )
        )
    else:
        for fault in failures:
            print(f"{fault.entry.kind} {fault.entry.key}: {fault.reason}")
        print(
            f"{len(checked)} checked, {format_size(sum(item.size for item in checked))}: "
            + (f"{len(failures)} damaged; whoever needs them computes them again" if failures else "all whole")
        )
    return 1 if failures else 0


def _collect_garbage(store: Store, keys: list[str], options: Mapping[str, Any]) -> int:
    is_applied = options["apply"] == "true"
    entries = maintenance.list_entries(store)  # before the references: what is filed from now on is not looked at
    drafts = list(maintenance.find_leftover_drafts(store))
    run_folders = _list_run_folders(store, options["runs"])
    referenced_keys, num_job_folders = maintenance.collect_references(run_folders, store.root)
    if is_applied and not num_job_folders and not options["runs"]:
        raise StoreError(
            f"no job folder below {run_folders[0]} refers to anything; if that is right, say so with "
            f"runs={run_folders[0]}"
        )
    unreferenced = maintenance.find_unreferenced_entries(store, entries, referenced_keys)
    if is_applied:
        for item in unreferenced:
            maintenance.remove_entry(store, item)
        for path in drafts:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    total = sum(item.size for item in unreferenced)
    if options["format"] == "json":
        print(
            json.dumps(
                {"removed": is_applied, "bytes": total, "items": [_entry_to_dict(i) for i in unreferenced]},
                indent=1,
            )
        )
        return 0
    for item in unreferenced:
        print(f"{item.kind:<8} {item.key[:12]:<12} {format_size(item.size):>10}  {item.about}")
    outcome = "removed" if is_applied else "would be removed; apply=true does it"
    print(
        f"{num_job_folders} job folders below {', '.join(map(str, run_folders))} keep {len(referenced_keys)} "
        f"things; {len(unreferenced)} "
        f"others, {format_size(total)}, {outcome}"
    )
    return 0


def _remove_entries(store: Store, keys: list[str], options: Mapping[str, Any]) -> int:
    requested = [maintenance.find_entry(store, key, min_length=MIN_KEY_LENGTH) for key in _require_keys(keys, "rm", 1)]
    entries = [*{(item.kind, item.key): item for item in requested}.values()]
    for item in entries:
        if (holder := maintenance.find_lease_holder(store, item)) is not None:
            raise StoreError(f"{item.kind} {item.key}: {holder} works on it")
    if options["force"] == "false" and any(item.kind == "stage" for item in entries):
        referenced_keys, _ = maintenance.collect_references(_list_run_folders(store, options["runs"]), store.root)
        for item in entries:
            if item.kind == "stage" and item.key in referenced_keys:
                raise StoreError(
                    f"stage {item.key}: {referenced_keys[item.key].parent} rests on it; delete that folder first, "
                    "or add force=true"
                )
    for item in entries:
        maintenance.remove_entry(store, item)
        print(f"removed {item.kind} {item.key}, {format_size(item.size)}")
    return 0


def _list_run_folders(store: Store, extra_folders: Sequence[str]) -> list[Path]:
    """Where job folders may lie that use the store: beside it (beside the link, if it is one, too), and `named`."""
    for text in extra_folders:
        if not text.strip() or not Path(text).is_dir():
            raise ConfigError(f"runs={text} is not a folder; name one that holds job folders")
    default_folders = [store.root.absolute().parent, store.root.resolve().parent]
    return [*dict.fromkeys([*default_folders, *map(Path, extra_folders)])]


def _read_stage_record(store: Store, entry: maintenance.StoreEntry) -> dict[str, Any]:
    """A stage's record. Raises StoreError, and leaves it where it is, if it is damaged."""
    try:
        return store.read_record(entry.key)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"stage {entry.key}: its record is damaged ({error}); whoever needs it computes it again"
        ) from None


def _require_keys(keys: list[str], command: str, min_count: int) -> list[str]:
    if len(keys) < min_count:
        raise ConfigError(
            f"{command} needs {min_count} key{'s' if min_count > 1 else ''}; lmm-forget store ls lists them"
        )
    return keys


def _entry_to_dict(entry: maintenance.StoreEntry) -> dict[str, Any]:
    return {**vars(replace(entry)), "path": str(entry.path)}


def _format_value(value: Any) -> str:
    return "-" if value is None else json.dumps(value)
