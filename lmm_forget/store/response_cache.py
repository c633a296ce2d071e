"""The cache of generated answers: a model answers every question once, whichever job or task needs the answer.

    <store>/answers/<model>/<writer>.jsonl     one line per batch, with a checksum of its own

<model> is a hash of everything that decides an answer besides the question (keys.compute_response_cache_key); a
question's key covers its rendered prompt, its images and the generation limit. Each file is only appended to, by the
one process that created it, so that several writers need no lock. A line that was cut off by a kill or damaged later
is left out and counted. A line holds a whole batch: a batch is stored completely or not at all, so that a resumed
evaluation forms the same batches, and gets the same last bits, as an uninterrupted one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.files import dump_json_with_checksum, fsync_path, load_json_with_checksum
from lmm_forget.store.keys import hash_json

if TYPE_CHECKING:
    from lmm_forget.store.archive import Store

RESPONSES_FOLDER = "answers"


@dataclass(frozen=True)
class CachedResponse:
    """A stored answer: its text, its number of generated tokens, and the smallest logit margin among them."""

    text: str
    tokens: int
    logit_margin: float


class MemoryResponseCache:
    """The responses of one model, by question key, in this process only."""

    def __init__(self) -> None:
        self._responses: dict[str, CachedResponse] = {}

    def refresh(self) -> Mapping[str, CachedResponse]:
        """All responses so far."""
        return self._responses

    def append_batch(self, responses: Mapping[str, CachedResponse]) -> None:
        """Add the responses of one batch."""
        self._responses.update(responses)

    def try_lease(self, question_keys: Sequence[str]) -> AbstractContextManager[bool]:
        """Try to be the only one that generates for these questions during the block; gives whether it is."""
        return nullcontext(True)


class ResponseCache(MemoryResponseCache):
    """The responses of one model in the store; reads what every process wrote, appends to a file of its own."""

    def __init__(self, store: Store, model_key: str) -> None:
        super().__init__()
        self.store, self.model_key = store, model_key
        self.folder = store.root / RESPONSES_FOLDER / model_key
        self._read_offsets: dict[Path, int] = {}
        self._own_file: Path | None = None
        self.num_corrupt_lines = 0

    def refresh(self) -> Mapping[str, CachedResponse]:
        """All answers stored so far, also those that other processes wrote in the meantime."""
        try:
            files = sorted(self.folder.glob("*.jsonl"))
        except OSError:
            files = []
        for path in files:
            self._read_new_lines(path)
        return super().refresh()

    def append_batch(self, responses: Mapping[str, CachedResponse]) -> None:
        """Append one batch. Raises StoreError where the store cannot be written."""
        line = dump_json_with_checksum(
            {
                "answers": {
                    key: [response.text, response.tokens, response.logit_margin] for key, response in responses.items()
                }
            },
            indent=None,
        )
        path = self._own_file or self.folder / f"{secrets.token_hex(8)}.jsonl"
        with self.store.wrap_write_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                size_before = file.tell()
                try:
                    file.write(line.encode("utf-8"))
                    file.flush()
                except OSError:
                    os.truncate(path, size_before)  # half a line would be counted as damage
                    raise
            if self._own_file is None:
                fsync_path(self.folder)
        self._own_file = path
        super().append_batch(responses)
        self._read_offsets[path] = path.stat().st_size

    def try_lease(self, question_keys: Sequence[str]) -> AbstractContextManager[bool]:
        """See `MemoryResponseCache.try_lease`; among all jobs that use the store."""
        return self.store.acquire_lease(f"answers-{hash_json([self.model_key, list(question_keys)])}", wait=False)

    def _read_new_lines(self, path: Path) -> None:
        """Read the lines that were added to a file since the last call; an unfinished last line is left for later."""
        start = self._read_offsets.get(path, 0)
        try:
            with open(path, "rb") as file:
                file.seek(start)
                data = file.read()
        except OSError:
            return
        complete_bytes = data.rfind(b"\n") + 1
        self._read_offsets[path] = start + complete_bytes
        for line in data[:complete_bytes].splitlines():
            try:
                self._responses.update(_parse_batch(line))
            except ValueError:
                self.num_corrupt_lines += 1
                self.store.note(f"{path}: a line is damaged and was left out; its questions are evaluated again")


def scan_response_file(path: Path) -> tuple[int, int, int]:
    """(answers, damaged lines, bytes of an unfinished last line) of one file."""
    data = path.read_bytes()
    complete_bytes = data.rfind(b"\n") + 1
    num_responses, num_corrupt_lines = 0, 0
    for line in data[:complete_bytes].splitlines():
        try:
            num_responses += len(_parse_batch(line))
        except ValueError:
            num_corrupt_lines += 1
    return num_responses, num_corrupt_lines, len(data) - complete_bytes


def _parse_batch(line: bytes) -> dict[str, CachedResponse]:
    try:
        content: Any = load_json_with_checksum(line.decode("utf-8"))["answers"]
        responses = {
            str(key): CachedResponse(str(text), int(tokens), float(margin))
            for key, (text, tokens, margin) in content.items()
        }
    except (UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
    return responses


def compute_question_key(prompt: str, image_hashes: list[str], max_new_tokens: int) -> str:
    """Key of a question: a hash of its prompt as rendered for the model, its images' hashes, and the token limit."""
    return hash_json([prompt, image_hashes, max_new_tokens])
