"""What models said: every question is put to a model once, whichever job, task or limit asks for it.

    <store>/answers/<model>/<writer>.jsonl     one line per batch, under a checksum of its own

<model> is a digest of everything about the asking but the question (see keys.answering_key); a question's key covers
its rendered prompt, its images and the generation limit. Files are only ever appended to, each by the one process
that made it, so several writers need no lock; a line that was torn by a kill or damaged later is left out and counted.
A line holds a whole batch: what was asked together is there together or not at all, so that a resumed evaluation
forms the same batches, and the same last bits, as an uninterrupted one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.files import sealed, sync, unseal

if TYPE_CHECKING:
    from lmm_forget.store.archive import Store

ANSWERS = "answers"


@dataclass(frozen=True)
class Kept:
    """One answer as it is kept: text, number of generated tokens, smallest logit gap on the way."""

    text: str
    tokens: int
    gap: float


class Said:
    """The answers of one model, by question key; reads what everybody wrote, appends to a file of its own."""

    def __init__(self, store: Store, model: str) -> None:
        self.store, self.folder = store, store.root / ANSWERS / model
        self._found: dict[str, Kept] = {}
        self._read: dict[Path, int] = {}
        self._own: Path | None = None
        self.damaged = 0

    def refresh(self) -> Mapping[str, Kept]:
        """Everything that has been said so far, what others wrote in the meantime included."""
        try:
            files = sorted(self.folder.glob("*.jsonl"))
        except OSError:
            files = []
        for path in files:
            self._take_in(path)
        return self._found

    def add(self, answers: Mapping[str, Kept]) -> None:
        """Append one batch. Raises StoreError where the store cannot be written."""
        line = sealed(
            {"answers": {key: [kept.text, kept.tokens, kept.gap] for key, kept in answers.items()}},
            indent=None,
        )
        path = self._own or self.folder / f"{secrets.token_hex(8)}.jsonl"
        with self.store.writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                before = file.tell()
                try:
                    file.write(line.encode("utf-8"))
                    file.flush()
                except OSError:
                    os.truncate(path, before)  # a part of a line would be counted as damage
                    raise
            if self._own is None:
                sync(self.folder)
        self._own = path
        self._found.update(answers)
        self._read[path] = path.stat().st_size

    def _take_in(self, path: Path) -> None:
        """Read the lines of a file that are new to us; an unfinished last line is left for later."""
        start = self._read.get(path, 0)
        try:
            with open(path, "rb") as file:
                file.seek(start)
                data = file.read()
        except OSError:
            return
        whole = data.rfind(b"\n") + 1
        self._read[path] = start + whole
        for line in data[:whole].splitlines():
            try:
                self._found.update(_parse(line))
            except ValueError:
                self.damaged += 1
                self.store.note(f"{path}: a line is damaged and was left out; its questions are asked again")


def scan(path: Path) -> tuple[int, int, int]:
    """(answers, damaged lines, bytes of an unfinished last line) of one file."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    good, bad = 0, 0
    for line in data[:whole].splitlines():
        try:
            good += len(_parse(line))
        except ValueError:
            bad += 1
    return good, bad, len(data) - whole


def _parse(line: bytes) -> dict[str, Kept]:
    try:
        content: Any = unseal(line.decode("utf-8"))["answers"]
        found = {
            str(key): Kept(str(text), int(tokens), float(gap)) for key, (text, tokens, gap) in content.items()
        }
    except (UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
    return found


def question_key(prompt: str, images: list[str], max_new_tokens: int) -> str:
    """Key of a question: its prompt as rendered for the model, the hashes of its images, the answer's length limit."""
    from lmm_forget.store.keys import digest

    return digest([prompt, images, max_new_tokens])
