"""Files that appear whole and can be checked: written beside their place, synced, renamed; JSON under its own seal.

Everything the package writes gets the permissions that the user's umask gives a new file, and an error of the
operating system names the file it is about.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHECKSUM_KEY = "checksum"
"""Field of a sealed JSON object: SHA-256 (hex) over everything else in it."""


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> Path:
    """Make `path` hold `content`: readers see the old content or the new, never a part. Returns `path`.

    Text is written as UTF-8. `durable` waits until file and folder have reached the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_temporary_file(path) as temporary_path, open(temporary_path, "xb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    if durable:
        fsync_path(path.parent)
    return path


@contextmanager
def atomic_temporary_file(path: Path) -> Iterator[Path]:
    """A file beside `path`, for the block to write; at its end it becomes `path`, after an error it is taken away.

    An OSError of the block names `path`.
    """
    temporary_path = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    with add_path_to_os_errors(path):
        try:
            yield temporary_path
            os.replace(temporary_path, path)
        except BaseException:
            with suppress(OSError):
                temporary_path.unlink(missing_ok=True)
            raise


@contextmanager
def add_path_to_os_errors(path: Path) -> Iterator[None]:
    """Let an OSError of the block name the file: a full disk's does not, and a draft's name tells nobody anything."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or _is_temporary_file_of(error.filename, path)):
            error.filename, error.filename2 = str(path), None
            error.strerror = os.strerror(error.errno)  # pyarrow's is longer than a line
        raise


def _is_temporary_file_of(file_name: object, path: Path) -> bool:
    candidate = Path(os.fsdecode(file_name)) if isinstance(file_name, (str, bytes, os.PathLike)) else None
    return (
        candidate is not None and candidate.parent == path.parent and candidate.name.startswith(f".{path.name[:200]}.")
    )


def apply_default_permissions(path: Path) -> None:
    """Give a file the permissions that any new file gets; some libraries (safetensors) let only its owner read it."""
    path.chmod(0o666 & ~_read_umask())


def _read_umask() -> int:
    """The process's umask, read without setting it where the system tells: other threads create files meanwhile."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def fsync_path(path: Path) -> None:
    """Wait until a file, or the entries of a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def compute_file_checksum(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dump_json_with_checksum(content: Mapping[str, Any], *, indent: int | None = 1) -> str:
    """A JSON object with its own checksum, as text that `unseal` reads back and checks."""
    unchecked_content = {key: value for key, value in content.items() if key != CHECKSUM_KEY}
    return (
        json.dumps(
            {**unchecked_content, CHECKSUM_KEY: _compute_json_checksum(unchecked_content)},
            sort_keys=True,
            indent=indent,
            allow_nan=False,
        )
        + "\n"
    )


def load_json_with_checksum(text: str) -> dict[str, Any]:
    """The content of a sealed JSON object, without its checksum. Raises ValueError if a single bit of it changed."""
    content = json.loads(text)
    if not isinstance(content, dict) or CHECKSUM_KEY not in content:
        raise ValueError("it has no checksum")
    if content.pop(CHECKSUM_KEY) != _compute_json_checksum(content):
        raise ValueError("its checksum does not match its content")
    return content


def _compute_json_checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
