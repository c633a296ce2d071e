"""What `lmm-forget store ACTION` does; every function prints and returns the exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmm_forget.cli.command import Arguments
from lmm_forget.errors import ConfigError, StoreError
from lmm_forget.store import maintenance
from lmm_forget.store.archive import Store, format_size
from lmm_forget.store.keys import diff_ingredients

COUNTABLE_KINDS = ("stage", "probe")
MIN_KEY_LENGTH = 4
"""Characters of a key that `rm` wants: a slip of the finger names nothing."""


def print_entries(store: Store, arguments: Arguments) -> int:
    """`ls`: a line per entry, and sums."""
    entries = maintenance.list_entries(store)
    if arguments.output_format == "json":
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


def show_entries(store: Store, arguments: Arguments) -> int:
    """`show`: the record of each key."""
    for key in _require_keys(arguments, 1):
        item = maintenance.find_entry(store, key)
        content: dict[str, Any] = _entry_to_dict(item)
        if item.kind == "stage":
            record = _read_stage_record(store, item)
            tensors = record.pop("tensors")
            content |= {**record, "tensors": len(tensors)}
        print(json.dumps(content, indent=1, sort_keys=True))
    return 0


def explain_difference(store: Store, arguments: Arguments) -> int:
    """`explain`: the ingredients in which two stages differ."""
    keys = _require_keys(arguments, 2)
    if len(keys) > 2:
        raise ConfigError(f"explain takes 2 keys; found {len(keys)}")
    first_record, second_record = (
        _read_stage_record(store, maintenance.find_entry(store, key, ("stage",))) for key in keys
    )
    differences = diff_ingredients(first_record["ingredients"], second_record["ingredients"])
    if arguments.output_format == "json":
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


def verify_entries(store: Store, arguments: Arguments) -> int:
    """`verify`: what does not match its checksums; 1 if there is any."""
    keys = arguments.words
    entries = [maintenance.find_entry(store, key) for key in keys] if keys else maintenance.list_entries(store)
    checked = [item for item in entries if item.kind != "damaged"]
    failures = [fault for item in checked if (fault := maintenance.verify_entry(store, item)) is not None]
    if arguments.output_format == "json":
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


def collect_garbage(store: Store, arguments: Arguments) -> int:
    """`gc`: what no job folder refers to; removed with apply=true."""
    is_applied = arguments.get("apply") == "true"
    entries = maintenance.list_entries(store)  # before the references: what is filed from now on is not looked at
    drafts = list(maintenance.find_leftover_drafts(store))
    run_folders = _list_run_folders(store, arguments.get_all("runs"))
    referenced_keys, num_job_folders = maintenance.collect_references(run_folders, store.root)
    if is_applied and not num_job_folders and not arguments.get_all("runs"):
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
    if arguments.output_format == "json":
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


def remove_entries(store: Store, arguments: Arguments) -> int:
    """`rm`: remove the entries of these keys."""
    requested = [maintenance.find_entry(store, key, min_length=MIN_KEY_LENGTH) for key in _require_keys(arguments, 1)]
    entries = [*{(item.kind, item.key): item for item in requested}.values()]
    for item in entries:
        if (holder := maintenance.find_lease_holder(store, item)) is not None:
            raise StoreError(f"{item.kind} {item.key}: {holder} works on it")
    if arguments.get("force") != "true" and any(item.kind == "stage" for item in entries):
        referenced_keys, _ = maintenance.collect_references(
            _list_run_folders(store, arguments.get_all("runs")), store.root
        )
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
    """Folders that may hold job folders that use the store: its own (of the link, too, if it is one), and others."""
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


def _require_keys(arguments: Arguments, min_count: int) -> Sequence[str]:
    """The keys of a command line. Raises ConfigError where there are fewer than `min_count`."""
    if len(arguments.words) < min_count:
        plural = "s" if min_count > 1 else ""
        raise ConfigError(f"{arguments.action} needs {min_count} key{plural}; lmm-forget store ls lists them")
    return arguments.words


def _entry_to_dict(entry: maintenance.StoreEntry) -> dict[str, Any]:
    return {**vars(replace(entry)), "path": str(entry.path)}


def _format_value(value: Any) -> str:
    return "-" if value is None else json.dumps(value)
