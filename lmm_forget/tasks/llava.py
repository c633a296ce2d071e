"""LLaVA-style JSON: a list of conversations about images, as most training sets for LMMs are published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError, DataError, brief
from lmm_forget.tasks.base import SPLITS
from lmm_forget.tasks.cells import without_marks
from lmm_forget.tasks.images import name_of, source_of
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.rows import Row, checked_ids, text_of

MARK = "<image>"
TURNS = ("one", "first", "each")
_ASKERS, _ANSWERERS = ("human", "user"), ("gpt", "assistant")
_READ = ("id", "image", "images", "image_id", "conversations", "split")


class LlavaTask(JsonlTask):
    """Questions from a JSON list of {id, image | images, conversations: [{from: human, value}, {from: gpt, value}]}.

    Every image needs its `<image>` mark in the conversation; the marks are taken out of the text, since a model's
    own chat format puts the pictures in front. `turns` says what becomes of an item with several exchanges: `one`
    (an error), `first` (only the first is kept), or `each` (every one is asked by itself, without what was said
    before). `keep` reads only so many items, chosen by a hash of their ids. Splits, `path`, `images_root` and the
    rest are those of `JsonlTask`.
    """

    def __init__(self, *, turns: str = "one", keep: int | None = None, **given: Any) -> None:
        super().__init__(**given)
        if turns not in TURNS:
            raise ConfigError(
                f"task {self.name}: turns={turns} is not known; choose one of: {', '.join(TURNS)}"
            )
        self.turns = turns
        self.keep = keep

    def read_file(self, path: Path, root: Path | None) -> list[Row]:
        """See `JsonlTask.read_file`."""
        return read_llava(path, root, turns=self.turns, keep=self.keep)


def read_llava(
    path: Path, images_root: Path | None, *, turns: str = "one", keep: int | None = None
) -> list[Row]:
    """Rows of a LLaVA-style JSON file; see `LlavaTask`. DataError with the item's place and id for a bad one."""
    items = _items(path)
    if keep is not None and keep < len(items):
        ranked = sorted(
            range(len(items)), key=lambda i: hashlib.sha256(f"{_name(items[i], i)}".encode()).digest()
        )
        chosen = sorted(ranked[:keep])
    else:
        chosen = list(range(len(items)))
    rows: list[Row] = []
    for number in chosen:
        rows += _item_rows(items[number], path, number, images_root or path.parent, turns)
    return checked_ids(rows)


def _items(path: Path) -> list[Any]:
    if not path.is_file():
        raise DataError(f"{path} is a folder, not a JSON file" if path.exists() else f"{path} is missing")
    try:
        found = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not valid JSON ({str(error).splitlines()[0]}); one object per line is .jsonl"
        ) from None
    if not isinstance(found, list) or not found:
        raise DataError(
            f"{path}: {'an empty list' if found == [] else 'not a list'}; it must list conversations"
        )
    return found


def _name(item: Any, number: int) -> str:
    return str(item.get("id", number)) if isinstance(item, Mapping) else str(number)


def _item_rows(item: Any, path: Path, number: int, root: Path, turns: str) -> list[Row]:
    where = f"{path}: item {number} (id {brief(_name(item, number))})"
    if not isinstance(item, dict):
        raise DataError(f"{where}: a {type(item).__name__}, not an object")
    split = item.get("split")
    if split is not None and split not in SPLITS:
        raise DataError(f"{where}: split {brief(split)!r} is not one of {', '.join(SPLITS)}")
    names = _names(item, where)
    exchanges = _exchanges(item, where)
    marks = sum(question.count(MARK) for question, _ in exchanges)
    if marks != len(names):
        raise DataError(
            f"{where}: {marks} {MARK} mark{'s' * (marks != 1)} and {len(names)} image{'s' * (len(names) != 1)}; "
            "each image needs one"
        )
    if len(exchanges) > 1 and turns == "one":
        raise DataError(
            f"{where}: {len(exchanges)} exchanges; turns=first keeps one, turns=each asks each by itself"
        )
    if turns == "first":
        exchanges = exchanges[:1]
    given = item.get("image_id")
    images = tuple(source_of(name, root) for name in names)
    rows = []
    for turn, (question, answer) in enumerate(exchanges):
        asked = without_marks(question)
        rows.append(
            Row(
                id=_name(item, number) + (f"#{turn}" if len(exchanges) > 1 else ""),
                where=where,
                images=images,
                names=tuple(name_of(image, root) for image in images),
                image_id=None if given is None else text_of(given, where, "image_id"),
                question=text_of(asked, where, "human turn"),
                answers=(text_of(answer, where, "gpt turn"),),
                choices=None,
                split=split,
                meta={key: value for key, value in item.items() if key not in _READ},
            )
        )
    return rows


def _names(item: Mapping[str, Any], where: str) -> list[str]:
    found = item.get("image", item.get("images"))
    names = found if isinstance(found, list) else [] if found is None else [found]
    return [text_of(name, where, "image") for name in names]


def _exchanges(item: Mapping[str, Any], where: str) -> list[tuple[str, Any]]:
    """Pairs of what the human and the model say."""
    turns = item.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: no 'conversations' list; it has {', '.join(map(repr, item))}")
    spoken = [turn for turn in turns if isinstance(turn, dict) and turn.get("from") != "system"]
    if len(spoken) % 2 or len(spoken) < 2:
        raise DataError(f"{where}: {len(spoken)} turns; questions and answers must alternate")
    pairs = []
    for asked, said in zip(spoken[::2], spoken[1::2], strict=True):
        if asked.get("from") not in _ASKERS or said.get("from") not in _ANSWERERS:
            raise DataError(
                f"{where}: turns from {asked.get('from')!r} and {said.get('from')!r}, not human and gpt"
            )
        pairs.append((text_of(asked.get("value"), where, "human turn"), said.get("value")))
    return pairs
