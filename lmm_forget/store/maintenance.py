"""Store maintenance: lists the entries, verifies them, and finds those that no job refers to."""

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
from lmm_forget.files import compute_file_checksum, load_json_with_checksum
from lmm_forget.store import measurements, probe_cache
from lmm_forget.store.archive import (
    DELTA_FILE,
    METHOD_STATE_FILE,
    PATHS_FOLDER,
    QUARANTINE_FOLDER,
    RECORD_FILE,
    SNAPSHOT_FILE,
    STAGES_FOLDER,
    Store,
    read_method_state,
)
from lmm_forget.store.response_cache import RESPONSES_FOLDER, scan_response_file
from lmm_forget.store.stage_checkpoints import CHECKPOINTS_FOLDER, STATE_FILE, TENSORS_FILE

REFERENCES_FILE = "store.json"
"""File of a job's folder that names what the job rests on."""
ENTRY_KINDS = ("stage", "answers", "partial", "probe", "measured", "damaged")


@dataclass(frozen=True)
class StoreEntry:
    """An entry of a store: its kind (one of `ENTRY_KINDS`), key, size in bytes, and one line about it."""

    kind: str
    key: str
    size: int
    about: str
    path: Path


@dataclass(frozen=True)
class VerificationFailure:
    """A damaged entry, and what is wrong with it in one line."""

    entry: StoreEntry
    reason: str


def list_entries(store: Store) -> list[StoreEntry]:
    """Everything in the store, by kind and key. Raises StoreError if there is no store."""
    if not store.root.is_dir():
        raise StoreError(f"there is no store {store.root}; name one with store=FOLDER")
    entries = []
    for kind, folder in (
        ("stage", STAGES_FOLDER),
        ("answers", RESPONSES_FOLDER),
        ("partial", CHECKPOINTS_FOLDER),
        ("damaged", QUARANTINE_FOLDER),
    ):
        for path in sorted(_list_visible_paths(store.root / folder)):
            entries.append(StoreEntry(kind, path.name, _measure_size(path), _describe_entry(kind, path), path))
    for key, files in probe_cache.list_probe_files(store.root).items():
        entries.append(
            StoreEntry(
                "probe",
                key,
                sum(map(_measure_size, files)),
                probe_cache.describe_probe_file(files[0]),
                files[0],
            )
        )
    for key, path in measurements.list_measurements(store.root).items():
        entries.append(StoreEntry("measured", key, _measure_size(path), _describe_entry("measured", path), path))
    return sorted(entries, key=lambda item: ENTRY_KINDS.index(item.kind))


def find_entry(store: Store, key: str, kinds: tuple[str, ...] = ENTRY_KINDS, min_length: int = 1) -> StoreEntry:
    """The one entry of these kinds whose key begins with `key`; an entry with exactly this key takes precedence.

    Raises StoreError for none or several, for a blank `key`, and for one of fewer than `min_length` characters.
    """
    hint = f"lmm-forget store ls store={store.root} lists all"
    if not key.strip():
        raise StoreError(f"a key is {key!r}, which every key begins with; {hint}")
    candidates = [item for item in list_entries(store) if item.key.startswith(key)]
    candidates = [item for item in candidates if item.key == key] or candidates
    matching = [item for item in candidates if item.kind in kinds]
    if {item.kind for item in matching} == {"stage", "partial"} and len({item.key for item in matching}) == 1:
        matching = [item for item in matching if item.kind == "stage"]
    if candidates and not matching:
        raise StoreError(f"{key} is of kind {candidates[0].kind}; expected {' or '.join(kinds)}")
    if len(matching) != 1:
        described_count = "nothing" if not matching else f"{len(matching)} things"
        raise StoreError(f"{described_count} in {store.root} begins with {key!r}; {hint}")
    if len(key) < min_length and key != matching[0].key:
        raise StoreError(
            f"{key!r} is short for the key of something to remove; give at least {min_length} characters of "
            f"{matching[0].key}"
        )
    return matching[0]


def verify_entry(store: Store, entry: StoreEntry) -> VerificationFailure | None:
    """Read every byte of an entry and compare it with its checksums; None if it is intact."""
    try:
        if entry.kind == "stage":
            _verify_stage(store, entry)
        elif entry.kind == "measured":
            measurements.read_measurement(entry.path)
        elif entry.kind == "probe":
            probe_cache.verify_probe_file(entry.path)
        elif entry.kind == "answers":
            num_corrupt_lines = sum(scan_response_file(path)[1] for path in entry.path.glob("*.jsonl"))
            if num_corrupt_lines:
                return VerificationFailure(
                    entry, f"{num_corrupt_lines} damaged lines; they are left out and evaluated again"
                )
        elif entry.kind == "partial":
            for state in entry.path.glob(f"step-*/{STATE_FILE}"):
                if load_json_with_checksum(state.read_text(encoding="utf-8"))["tensors"] != compute_file_checksum(
                    state.with_name(TENSORS_FILE)
                ):
                    return VerificationFailure(entry, f"{state.parent.name}/{TENSORS_FILE} does not match its checksum")
    except Exception as error:  # a damaged file may raise any error in its reader
        return VerificationFailure(entry, " ".join(f"{error or type(error).__name__}".split()))
    return None


def _verify_stage(store: Store, entry: StoreEntry) -> None:
    """Read a stage's record, delta, method state and snapshot. Raises whatever a damaged file makes its reader say."""
    from lmm_forget.store.checked_tensors import read_checked_tensors  # imports torch, as does the next one
    from lmm_forget.store.delta_file import read_delta

    record = store.read_record(entry.key)
    for _ in read_delta(entry.path / DELTA_FILE, record):
        pass
    if record.get("method_state") is not None:
        read_method_state(entry.path / METHOD_STATE_FILE, record["method_state"])
    if (entry.path / SNAPSHOT_FILE).exists():
        read_checked_tensors(entry.path / SNAPSHOT_FILE)


def collect_references(run_folders: Iterable[Path], store_folder: Path | None = None) -> tuple[dict[str, Path], int]:
    """(keys that jobs below `run_folders` refer to, each with one file that names it; number of those files).

    Links are followed, each folder is read once, and `store_folder` is skipped. Raises StoreError for everything that
    may hold references and cannot be read: a folder, a broken link, a damaged reference file, a finished job without
    one. Without that error, entries that are still needed could be taken for unreferenced ones.
    """
    referenced_keys: dict[str, Path] = {}
    files = find_reference_files(run_folders, store_folder)
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            optional_lists = [content.get(kind, []) for kind in ("probes", "measured")]
            for key_list in (content["stages"], content["models"], *optional_lists):
                if not isinstance(key_list, list):
                    raise TypeError
                for key in key_list:
                    referenced_keys.setdefault(str(key), path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path} does not say what its job rests on ({type(error).__name__}); run that job's command again, or "
                "delete its folder"
            ) from None
    return referenced_keys, len(files)


def find_reference_files(run_folders: Iterable[Path], store_folder: Path | None = None) -> list[Path]:
    """The files called `REFERENCES_FILE` below `run_folders`; follows links and raises as `collect_references` does."""
    reference_paths: list[Path] = []
    visited: set[tuple[int, int]] = set() if store_folder is None else _get_file_identity(store_folder)
    pending = list(run_folders)
    while pending:
        folder = pending.pop()
        folder_identity = _get_file_identity(folder)
        if folder_identity <= visited:
            continue
        visited |= folder_identity
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be read ({error.strerror}), so what it refers to is not known; make it readable"
            ) from None
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                _get_file_identity(path)  # raises if the link is broken
            if entry.is_dir():
                pending.append(path)
            elif entry.name == REFERENCES_FILE:
                reference_paths.append(path)
        names = {entry.name for entry in entries}
        if "results.json" in names and REFERENCES_FILE not in names:
            raise StoreError(
                f"{folder} is a finished job without {REFERENCES_FILE}, so what it rests on is not known; run "
                "that job's "
                "command again, or delete its folder"
            )
    return sorted(reference_paths)


def _get_file_identity(path: Path) -> set[tuple[int, int]]:
    """Device and inode of a folder or file, equal under all its names. Raises StoreError for a broken link."""
    try:
        status = path.stat()
    except OSError as error:
        link = f" is a link to {os.readlink(path)}, which" if path.is_symlink() else ""
        raise StoreError(
            f"{path}{link} cannot be read ({error.strerror}), so what it refers to is not known; bring it back, or "
            f"delete {'the link' if link else 'it'}"
        ) from None
    return {(status.st_dev, status.st_ino)}


def find_unreferenced_entries(
    store: Store, entries: Iterable[StoreEntry], referenced_keys: Collection[str]
) -> list[StoreEntry]:
    """Those of `entries` that are damaged, or that are not in `referenced_keys` and that no process works on.

    List `entries` before reading the references: what a job stores in between has no reference yet.
    """

    def is_unreferenced(item: StoreEntry) -> bool:
        return item.key not in referenced_keys and find_lease_holder(store, item) is None

    def is_damaged(item: StoreEntry) -> bool:
        return item.kind == "damaged" or (item.kind == "measured" and verify_entry(store, item) is not None)

    return [item for item in entries if is_damaged(item) or is_unreferenced(item)]


def find_lease_holder(store: Store, entry: StoreEntry) -> str | None:
    """A description of the process that works on an entry now; None if there is none."""
    names = ("probe", "reference") if entry.kind == "probe" else ("stage",)
    lease_names = [f"{name}-{entry.key}" for name in names]
    return next((store.leases.describe_holder(name) for name in lease_names if store.leases.is_live(name)), None)


def remove_entry(store: Store, entry: StoreEntry) -> None:
    """Remove an entry: hide it by one rename, then delete its files. Raises StoreError."""
    try:
        if entry.kind == "probe":
            for path in probe_cache.list_probe_files(store.root).get(entry.key, ()):
                path.unlink()
            return
        hidden_path = entry.path.with_name(f".{entry.path.name}.removed")
        shutil.rmtree(hidden_path, ignore_errors=True)
        entry.path.rename(hidden_path)
        shutil.rmtree(hidden_path) if hidden_path.is_dir() else hidden_path.unlink()
    except FileNotFoundError:
        return  # another process removed it first
    except OSError as error:
        raise StoreError(f"cannot remove {entry.path} ({error.strerror})") from error
    if entry.kind == "stage":
        for path in _list_visible_paths(store.root / PATHS_FOLDER):
            with suppress(OSError, ValueError):
                if load_json_with_checksum(path.read_text(encoding="utf-8"))["stage"] == entry.key:
                    path.unlink()


def find_leftover_drafts(store: Store) -> Iterator[Path]:
    """What dead processes left behind: drafts of stages, hidden remains of removed entries."""
    for folder in (STAGES_FOLDER, RESPONSES_FOLDER, CHECKPOINTS_FOLDER, PATHS_FOLDER):
        with suppress(OSError):
            for path in sorted((store.root / folder).iterdir()):
                if path.name.startswith(".") and not store.leases.is_live(f"stage-{path.name.split('.')[1]}"):
                    yield path
    for path in sorted((store.root / STAGES_FOLDER).glob(f"*/.{SNAPSHOT_FILE}.*")):
        if not store.leases.is_live(f"stage-{path.parent.name}"):
            yield path
    if not store.leases.has_live_leases():  # whoever looks into a model holds some claim, of the stage if no other
        yield from probe_cache.find_incomplete_probe_files(store.root)


def _list_visible_paths(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []


def _measure_size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _describe_entry(kind: str, path: Path) -> str:
    if kind == "stage":
        record = _read_json_or_empty(path / RECORD_FILE)
        config = (record.get("ingredients") or {}).get("config") or {}
        recipe, seed = (config.get("recipe") or {}).get("name"), config.get("seed")
        parent = str((record.get("ingredients") or {}).get("parent"))[:8]
        extras = "".join(
            f", with {what}"
            for file, what in ((METHOD_STATE_FILE, "the method's state"), (SNAPSHOT_FILE, "a full snapshot"))
            if (path / file).exists()
        )
        return f"{record.get('task')}, {recipe}, seed {seed}, {record.get('steps')} steps, on {parent}{extras}"
    if kind == "answers":
        line_counts = [scan_response_file(file) for file in path.glob("*.jsonl")]
        return f"{sum(good for good, _, _ in line_counts)} answers in {len(line_counts)} files"
    if kind == "measured":
        content = _read_json_or_empty(path)
        return f"micro-batch {content.get('micro_batch_size')} on {(content.get('about') or {}).get('device')}"
    if kind == "partial":
        return ", ".join(sorted(child.name for child in path.glob("step-*"))) or "nothing whole"
    return "failed its checksum; kept for inspection"


def _read_json_or_empty(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}
