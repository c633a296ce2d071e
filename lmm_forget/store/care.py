"""Looking after a store: what is there, whether it is whole, and what nobody refers to any more."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmm_forget.errors import StoreError
from lmm_forget.files import file_checksum, unseal
from lmm_forget.store import looks
from lmm_forget.store.answers import ANSWERS, scan
from lmm_forget.store.archive import DAMAGED, DELTA, PATHS, RECORD, STAGES, Store, read_delta
from lmm_forget.store.partial import PARTIAL, STATE, TENSORS

REFERENCES = "store.json"
"""File of a job's folder that names what the job rests on."""
KINDS = ("stage", "answers", "partial", "probe", "damaged")


@dataclass(frozen=True)
class Item:
    """Something in a store: its kind (one of KINDS), key, bytes, and one line about it."""

    kind: str
    key: str
    size: int
    about: str
    path: Path


@dataclass(frozen=True)
class Fault:
    """What is wrong with an item, in one line."""

    item: Item
    reason: str


def items(store: Store) -> list[Item]:
    """Everything in the store, by kind and key. Raises StoreError if there is no store."""
    if not store.root.is_dir():
        raise StoreError(f"there is no store {store.root}; name one with store=FOLDER")
    found = []
    for kind, folder in (
        ("stage", STAGES),
        ("answers", ANSWERS),
        ("partial", PARTIAL),
        ("damaged", DAMAGED),
    ):
        for path in sorted(_children(store.root / folder)):
            found.append(Item(kind, path.name, _bytes(path), _about(kind, path), path))
    for key, files in looks.filed(store.root).items():
        found.append(Item("probe", key, sum(map(_bytes, files)), looks.about(files[0]), files[0]))
    return sorted(found, key=lambda item: KINDS.index(item.kind))


def find(store: Store, key: str, kinds: tuple[str, ...] = KINDS, least: int = 1) -> Item:
    """The one item whose key begins with `key`; a whole key is meant before the beginning of another one.

    Raises StoreError for none or several, for a blank key, and for one of fewer than `least` characters.
    """
    where = f"lmm-forget store ls store={store.root} lists all"
    if not key.strip():
        raise StoreError(f"a key is {key!r}, which every key begins with; {where}")
    named = [item for item in items(store) if item.key.startswith(key)]
    named = [item for item in named if item.key == key] or named
    matching = [item for item in named if item.kind in kinds]
    if {item.kind for item in matching} == {"stage", "partial"} and len({item.key for item in matching}) == 1:
        matching = [item for item in matching if item.kind == "stage"]
    if named and not matching:
        raise StoreError(f"{key} is of kind {named[0].kind}; expected {' or '.join(kinds)}")
    if len(matching) != 1:
        what = "nothing" if not matching else f"{len(matching)} things"
        raise StoreError(f"{what} in {store.root} begins with {key!r}; {where}")
    if len(key) < least and key != matching[0].key:
        raise StoreError(
            f"{key!r} is short for the key of something to remove; give at least {least} characters of "
            f"{matching[0].key}"
        )
    return matching[0]


def verify(store: Store, item: Item) -> Fault | None:
    """Read every byte of an item again and compare it with its checksums."""
    try:
        if item.kind == "stage":
            record = store.read_record(item.key)
            for _ in read_delta(item.path / DELTA, record["tensors"]):
                pass
        elif item.kind == "probe":
            looks.check(item.path)
        elif item.kind == "answers":
            bad = sum(scan(path)[1] for path in item.path.glob("*.jsonl"))
            if bad:
                return Fault(item, f"{bad} damaged lines; they are left out and asked again")
        elif item.kind == "partial":
            for state in item.path.glob(f"step-*/{STATE}"):
                if unseal(state.read_text(encoding="utf-8"))["tensors"] != file_checksum(
                    state.with_name(TENSORS)
                ):
                    return Fault(item, f"{state.parent.name}/{TENSORS} does not match its checksum")
    except Exception as error:  # whatever a damaged file makes its reader say
        return Fault(item, " ".join(f"{error or type(error).__name__}".split()))
    return None


def references(runs: Iterable[Path], store: Path | None = None) -> tuple[dict[str, Path], int]:
    """(every key that a job folder below `runs` refers to, with one file that names it; number of those folders).

    Links are followed, each folder is read once, and `store` (a store's folder) is not looked into. Raises StoreError
    for whatever may refer to something and cannot be read: a folder, a link to nowhere, a file that does not say what
    its job rests on, a job with results and no such file. What that keeps cannot be told from what nobody needs.
    """
    keys: dict[str, Path] = {}
    files = reference_files(runs, store)
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for each in (content["stages"], content["models"], content.get("probes", [])):
                if not isinstance(each, list):
                    raise TypeError
                for key in each:
                    keys.setdefault(str(key), path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path} does not say what its job rests on ({type(error).__name__}); run that job's command again, or "
                "delete its folder"
            ) from None
    return keys, len(files)


def reference_files(runs: Iterable[Path], store: Path | None = None) -> list[Path]:
    """The files named REFERENCES below `runs`, wherever links lead; see `references`, also for what it raises."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set() if store is None else _identity(store)
    waiting = list(runs)
    while waiting:
        folder = waiting.pop()
        here = _identity(folder)
        if here <= seen:
            continue
        seen |= here
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be read ({error.strerror}), so what it refers to is not known; make it readable"
            ) from None
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                _identity(path)  # that it leads somewhere
            if entry.is_dir():
                waiting.append(path)
            elif entry.name == REFERENCES:
                found.append(path)
        names = {entry.name for entry in entries}
        if "results.json" in names and REFERENCES not in names:
            raise StoreError(
                f"{folder} is a finished job without {REFERENCES}, so what it rests on is not known; run that job's "
                "command again, or delete its folder"
            )
    return sorted(found)


def _identity(path: Path) -> set[tuple[int, int]]:
    """Which folder or file this is, whatever it is called. Raises StoreError for a link that leads nowhere."""
    try:
        status = path.stat()
    except OSError as error:
        link = f" is a link to {os.readlink(path)}, which" if path.is_symlink() else ""
        raise StoreError(
            f"{path}{link} cannot be read ({error.strerror}), so what it refers to is not known; bring it back, or "
            f"delete {'the link' if link else 'it'}"
        ) from None
    return {(status.st_dev, status.st_ino)}


def unused(store: Store, listed: Iterable[Item], kept: Collection[str]) -> list[Item]:
    """Those of `listed` that no key in `kept` names and nobody works on; what was found damaged is never kept.

    What is `listed` before the references are read, and not after: what a job files in between is no one's yet.
    """

    def spare(item: Item) -> bool:
        return item.key not in kept and worker(store, item) is None

    return [item for item in listed if item.kind == "damaged" or spare(item)]


def worker(store: Store, item: Item) -> str | None:
    """Who works on an item now; None if nobody does."""
    names = ("probe", "imprint") if item.kind == "probe" else ("stage",)
    claims = [f"{name}-{item.key}" for name in names]
    return next((store.claims.holder(claim) for claim in claims if store.claims.live(claim)), None)


def remove(store: Store, item: Item) -> None:
    """Take an item out of the store: first out of sight in one step, then its bytes. Raises StoreError."""
    try:
        if item.kind == "probe":
            for path in looks.filed(store.root).get(item.key, ()):
                path.unlink()
            return
        hidden = item.path.with_name(f".{item.path.name}.removed")
        shutil.rmtree(hidden, ignore_errors=True)
        item.path.rename(hidden)
        shutil.rmtree(hidden) if hidden.is_dir() else hidden.unlink()
    except FileNotFoundError:
        return  # somebody else was faster
    except OSError as error:
        raise StoreError(f"cannot remove {item.path} ({error.strerror})") from error
    if item.kind == "stage":
        for path in _children(store.root / PATHS):
            with suppress(OSError, ValueError):
                if unseal(path.read_text(encoding="utf-8"))["stage"] == item.key:
                    path.unlink()


def drafts(store: Store) -> Iterator[Path]:
    """What dead processes left half-written: drafts of stages, hidden remains of removals."""
    for folder in (STAGES, ANSWERS, PARTIAL, PATHS):
        with suppress(OSError):
            for path in sorted((store.root / folder).iterdir()):
                if path.name.startswith(".") and not store.claims.live(f"stage-{path.name.split('.')[1]}"):
                    yield path
    if not store.claims.anybody():  # whoever looks into a model holds some claim, of the stage if no other
        yield from looks.halves(store.root)


def _children(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _about(kind: str, path: Path) -> str:
    if kind == "stage":
        record = _peek(path / RECORD)
        config = (record.get("ingredients") or {}).get("config") or {}
        recipe, seed = (config.get("recipe") or {}).get("name"), config.get("seed")
        parent = str((record.get("ingredients") or {}).get("parent"))[:8]
        return f"{record.get('task')}, {recipe}, seed {seed}, {record.get('steps')} steps, on {parent}"
    if kind == "answers":
        counts = [scan(file) for file in path.glob("*.jsonl")]
        return f"{sum(good for good, _, _ in counts)} answers in {len(counts)} files"
    if kind == "partial":
        return ", ".join(sorted(child.name for child in path.glob("step-*"))) or "nothing whole"
    return "failed its checksum; kept for inspection"


def _peek(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}
