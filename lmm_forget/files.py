"""Files that appear whole and can be checked: written beside their place, synced, renamed; JSON under its own seal."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

SEAL = "checksum"
"""Field of a sealed JSON object: SHA-256 (hex) over everything else in it."""


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> Path:
    """Make `path` hold `content`: readers see the old content or the new, never a part. Returns `path`.

    Text is written as UTF-8. `durable` waits until file and folder have reached the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)
    return path


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
