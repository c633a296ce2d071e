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

SEAL = "checksum"
"""Field of a sealed JSON object: SHA-256 (hex) over everything else in it."""


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> Path:
    """Make `path` hold `content`: readers see the old content or the new, never a part. Returns `path`.

    Text is written as UTF-8. `durable` waits until file and folder have reached the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(path) as draft, open(draft, "xb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    if durable:
        sync(path.parent)
    return path


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A file beside `path`, for the block to write; at its end it becomes `path`, after an error it is taken away.

    An OSError of the block names `path`.
    """
    draft = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    with naming(path):
        try:
            yield draft
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block name the file: a full disk's does not, and a draft's name tells nobody anything."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or _is_draft(error.filename, path)):
            error.filename, error.filename2 = str(path), None
            error.strerror = os.strerror(error.errno)  # pyarrow's is longer than a line
        raise


def _is_draft(name: object, path: Path) -> bool:
    found = Path(os.fsdecode(name)) if isinstance(name, (str, bytes, os.PathLike)) else None
    return found is not None and found.parent == path.parent and found.name.startswith(f".{path.name[:200]}.")


def usual_mode(path: Path) -> None:
    """Give a file the permissions that any new file gets; some libraries (safetensors) let only its owner read it."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    """The process's umask, read without setting it where the system tells: other threads create files meanwhile."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(handle)
    finally:
        os.close(handle)


def file_checksum(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(content: Mapping[str, Any], *, indent: int | None = 1) -> str:
    """A JSON object with its own checksum, as text that `unseal` reads back and checks."""
    bare = {key: value for key, value in content.items() if key != SEAL}
    return json.dumps({**bare, SEAL: _digest(bare)}, sort_keys=True, indent=indent, allow_nan=False) + "\n"


def unseal(text: str) -> dict[str, Any]:
    """The content of a sealed JSON object, without its checksum. Raises ValueError if a single bit of it changed."""
    content = json.loads(text)
    if not isinstance(content, dict) or SEAL not in content:
        raise ValueError("it has no checksum")
    if content.pop(SEAL) != _digest(content):
        raise ValueError("its checksum does not match its content")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
