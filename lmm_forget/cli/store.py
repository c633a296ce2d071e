"""`lmm-forget store`: look into the archive of finished work, check it, clean it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmm_forget.cli.parser import run_command, take_format
from lmm_forget.errors import ConfigError, StoreError
from lmm_forget.store import care
from lmm_forget.store.archive import Store, size
from lmm_forget.store.keys import explain

HELP = """usage: lmm-forget store COMMAND [KEY ...] [store=FOLDER] [format=table|json]

  ls                     what is there: stages, answers, half-trained stages, probes, damaged things; with sizes
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
COUNTED = ("stage", "probe")
TAKES_NO_KEY = ("ls", "gc")
ONLY_FOR = {"runs": ("gc", "rm"), "apply": ("gc",), "force": ("rm",)}
OPTIONS = {"store": "multirun/.store", "runs": (), "apply": "false", "force": "false"}
LEAST = 4
"""Characters of a key that `rm` wants: a slip of the finger names nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 (verify found damage), 2 (a mistake, told in one line on stderr)."""
    return run_command(_run, arguments, HELP)


def _run(words: Sequence[str]) -> int:
    if not words:
        print(HELP, end="")
        return 2
    form, words = take_format(words)
    options: dict[str, Any] = {**OPTIONS, "format": form}
    plain: list[str] = []
    given: set[str] = set()
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name == "runs":
            options["runs"] = (*options["runs"], value)
        elif equals and name in OPTIONS:
            if name in given:
                raise ConfigError(f"{name} is given twice")
            given.add(name)
            options[name] = value
        elif equals:
            raise ConfigError(f"there is no option {name}; there are: {', '.join(options)}")
        else:
            plain.append(word)
    command, keys = (plain[0], plain[1:]) if plain else ("", [])
    known: Mapping[str, Callable[[Store, list[str], Mapping[str, Any]], int]] = {
        "ls": _ls,
        "show": _show,
        "explain": _explain,
        "verify": _verify,
        "gc": _gc,
        "rm": _rm,
    }
    for name, where in ONLY_FOR.items():
        if command in known and options[name] != OPTIONS[name] and command not in where:
            raise ConfigError(f"{name}= belongs to {' and '.join(where)}, not to {command}")
    for name in ("apply", "force"):
        if options[name] not in ("true", "false"):
            raise ConfigError(f"{name}={options[name]}: true or false")
    if not options["store"].strip():
        raise ConfigError("store= is empty; name the store's folder")
    if command in TAKES_NO_KEY and keys:
        raise ConfigError(f"{command} takes no key; found {keys[0]}")
    if command not in known:
        raise ConfigError(f"there is no command {command!r}; choose one of: {', '.join(known)}")
    return known[command](Store(options["store"]), keys, options)


def _ls(store: Store, keys: list[str], options: Mapping[str, Any]) -> int:
    found = care.items(store)
    if options["format"] == "json":
        print(json.dumps([{**_plain(item)} for item in found], indent=1))
        return 0
    for item in found:
        print(f"{item.kind:<8} {item.key[:12]:<12} {size(item.size):>10}  {item.about}")
    total = {kind: [item for item in found if item.kind == kind] for kind in care.KINDS}
    print(
        "; ".join(
            f"{len(of)} {kind}{'s' if kind in COUNTED and len(of) != 1 else ''}, {size(sum(i.size for i in of))}"
            for kind, of in total.items()
            if of
        )
        or f"{store.root} is empty"
    )
    return 0


def _show(store: Store, keys: list[str], options: Mapping[str, Any]) -> int:
    for key in _given(keys, "show", 1):
        item = care.find(store, key)
        content: dict[str, Any] = _plain(item)
        if item.kind == "stage":
            record = _record(store, item)
            tensors = record.pop("tensors")
            content |= {**record, "tensors": len(tensors)}
        print(json.dumps(content, indent=1, sort_keys=True))
    return 0


def _explain(store: Store, keys: list[str], options: Mapping[str, Any]) -> int:
    _given(keys, "explain", 2)
    if len(keys) > 2:
        raise ConfigError(f"explain takes 2 keys; found {len(keys)}")
    one, other = (_record(store, care.find(store, key, ("stage",))) for key in keys)
    differing = explain(one["ingredients"], other["ingredients"])
    if options["format"] == "json":
        print(json.dumps([{"ingredient": n, "a": a, "b": b} for n, a, b in differing], indent=1))
        return 0
    for name, first, second in differing:
        print(f"{name}: {_value(first)} | {_value(second)}")
    if not differing:
        same = one["weights_hash"] == other["weights_hash"]
        print("the same stage" if one["key"] == other["key"] else f"nothing differs (equal weights: {same})")
    return 0


def _verify(store: Store, keys: list[str], options: Mapping[str, Any]) -> int:
    found = [care.find(store, key) for key in keys] if keys else care.items(store)
    checked = [item for item in found if item.kind != "damaged"]
    faults = [fault for item in checked if (fault := care.verify(store, item)) is not None]
    if options["format"] == "json":
        print(
            json.dumps(
                {
                    "checked": len(checked),
                    "faults": [{**_plain(f.item), "reason": f.reason} for f in faults],
                },
                indent=1,
            )
        )
    else:
        for fault in faults:
            print(f"{fault.item.kind} {fault.item.key}: {fault.reason}")
        print(
            f"{len(checked)} checked, {size(sum(item.size for item in checked))}: "
            + (f"{len(faults)} damaged; whoever needs them computes them again" if faults else "all whole")
        )
    return 1 if faults else 0


def _gc(store: Store, keys: list[str], options: Mapping[str, Any]) -> int:
    apply = options["apply"] == "true"
    listed = care.items(store)  # before the references: what is filed from now on is not looked at
    remains = list(care.drafts(store))
    folders = _run_folders(store, options["runs"])
    kept, jobs = care.references(folders, store.root)
    if apply and not jobs and not options["runs"]:
        raise StoreError(
            f"no job folder below {folders[0]} refers to anything; if that is right, say so with runs={folders[0]}"
        )
    spare = care.unused(store, listed, kept)
    if apply:
        for item in spare:
            care.remove(store, item)
        for path in remains:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    total = sum(item.size for item in spare)
    if options["format"] == "json":
        print(json.dumps({"removed": apply, "bytes": total, "items": [_plain(i) for i in spare]}, indent=1))
        return 0
    for item in spare:
        print(f"{item.kind:<8} {item.key[:12]:<12} {size(item.size):>10}  {item.about}")
    done = "removed" if apply else "would be removed; apply=true does it"
    print(
        f"{jobs} job folders below {', '.join(map(str, folders))} keep {len(kept)} things; {len(spare)} "
        f"others, {size(total)}, {done}"
    )
    return 0


def _rm(store: Store, keys: list[str], options: Mapping[str, Any]) -> int:
    wanted = [care.find(store, key, least=LEAST) for key in _given(keys, "rm", 1)]
    found = [*{(item.kind, item.key): item for item in wanted}.values()]
    for item in found:
        if (who := care.worker(store, item)) is not None:
            raise StoreError(f"{item.kind} {item.key}: {who} works on it")
    if options["force"] == "false" and any(item.kind == "stage" for item in found):
        kept, _ = care.references(_run_folders(store, options["runs"]), store.root)
        for item in found:
            if item.kind == "stage" and item.key in kept:
                raise StoreError(
                    f"stage {item.key}: {kept[item.key].parent} rests on it; delete that folder first, "
                    "or add force=true"
                )
    for item in found:
        care.remove(store, item)
        print(f"removed {item.kind} {item.key}, {size(item.size)}")
    return 0


def _run_folders(store: Store, named: Sequence[str]) -> list[Path]:
    """Where job folders may lie that use the store: beside it (beside the link, if it is one, too), and `named`."""
    for text in named:
        if not text.strip() or not Path(text).is_dir():
            raise ConfigError(f"runs={text} is not a folder; name one that holds job folders")
    beside = [store.root.absolute().parent, store.root.resolve().parent]
    return [*dict.fromkeys([*beside, *map(Path, named)])]


def _record(store: Store, item: care.Item) -> dict[str, Any]:
    """A stage's record. Raises StoreError, and leaves it where it is, if it is damaged."""
    try:
        return store.read_record(item.key)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"stage {item.key}: its record is damaged ({error}); whoever needs it computes it again"
        ) from None


def _given(keys: list[str], command: str, least: int) -> list[str]:
    if len(keys) < least:
        raise ConfigError(
            f"{command} needs {least} key{'s' if least > 1 else ''}; lmm-forget store ls lists them"
        )
    return keys


def _plain(item: care.Item) -> dict[str, Any]:
    return {**vars(replace(item)), "path": str(item.path)}


def _value(value: Any) -> str:
    return "-" if value is None else json.dumps(value)
