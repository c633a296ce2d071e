"""LLaVA-style JSON: a list of conversations about images, as most training sets for LMMs are published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError, DataError, brief
from lmm_forget.tasks.base import SPLITS
from lmm_forget.tasks.conversations import Exchange, exchanges
from lmm_forget.tasks.images import name_of, source_of
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.rows import FileRows, Row
from lmm_forget.tasks.values import text_of

TURNS = ("one", "first", "each")
NOT_SHOWN = ("video", "videos", "audio", "audios", "tools", "functions")
"""Keys of an item that are a part of its question elsewhere: without them it would be another question."""
_READ = ("id", "image", "images", "image_id", "conversations", "messages", "system", "split")


class LlavaTask(JsonlTask):
    """Questions from a JSON list of {id, image | images, conversations: [{from: human, value}, {from: gpt, value}]}.

    `messages: [{role: user, content}, …]` is read as `conversations` is; see `conversations.exchanges` for the names
    of the speakers, for system turns (a key `system` is one, in front) and for `<image>` marks, which show the images
    in their order. A question is shown the pictures of all turns up to its own. The marks are taken out of the text,
    since a model's own chat format puts the pictures in front.

    `turns` says what becomes of an item with several exchanges: `one` (it cannot be used), `first` (only the first is
    kept), or `each` (every one is asked by itself, without what was said before, but with the system turns and the
    pictures up to it). `keep` reads only so many items, chosen by a hash of their ids. Splits, `path`, `images_root`
    and the rest are those of `JsonlTask`.
    """

    def __init__(self, *, turns: str = "one", keep: int | None = None, **given: Any) -> None:
        super().__init__(**given)
        if turns not in TURNS:
            raise ConfigError(
                f"task {self.name}: turns={turns} is not known; choose one of: {', '.join(TURNS)}"
            )
        self.turns = turns
        self.keep = keep

    def read_file(self, path: Path, root: Path | None) -> FileRows:
        """See `JsonlTask.read_file`."""
        return read_llava(path, root, turns=self.turns, keep=self.keep)


def read_llava(
    path: Path, images_root: Path | None, *, turns: str = "one", keep: int | None = None
) -> FileRows:
    """Rows of a LLaVA-style JSON file, and which items cannot be used; see `LlavaTask`. DataError for no such file."""
    items = _items(path)
    if keep is not None and keep < len(items):
        ranked = sorted(
            range(len(items)), key=lambda i: hashlib.sha256(f"{_name(items[i], i)}".encode()).digest()
        )
        chosen = sorted(ranked[:keep])
    else:
        chosen = list(range(len(items)))
    found = FileRows()
    for number in chosen:
        item = items[number]
        where = f"{path}: item {number} (id {brief(_name(item, number))})"
        try:
            rows = list(_item_rows(item, where, number, images_root or path.parent, turns))
        except DataError as error:
            given = item if isinstance(item, Mapping) else {}
            found.refuse(where, str(error), given.get("split"), given.get("id", number))
            continue
        for row in rows:
            found.add(row)
    return found.close()


def _items(path: Path) -> list[Any]:
    if not path.is_file():
        raise DataError(f"{path} is a folder, not a JSON file" if path.exists() else f"{path} is missing")
    try:
        found = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_object)
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


class _Ambiguous(dict[str, Any]):
    """An object in which a key stands twice, `key` the first such: of the values only one could be read."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    odd = _Ambiguous(found)
    odd.key = next(key for key in keys if keys.count(key) > 1)
    return odd


def _refuse_unread(value: Any, where: str) -> None:
    """Raise DataError for what no reader here takes: a key that stands twice, anywhere in an item."""
    if isinstance(value, _Ambiguous):
        raise DataError(f"{where}: the key {brief(value.key)!r} stands twice")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_unread(each, where)


def _name(item: Any, number: int) -> str:
    """What an item is called: its id, or its number where it has none (or none that is a text)."""
    try:
        return text_of(item.get("id", number), "") if isinstance(item, Mapping) else str(number)
    except DataError:
        return str(number)


def _item_rows(item: Any, where: str, number: int, root: Path, turns: str) -> Iterator[Row]:
    """The rows of one item. Raises DataError beginning with `where`."""
    if not isinstance(item, dict):
        raise DataError(f"{where}: a {type(item).__name__}, not an object")
    _refuse_unread(item, where)
    unshown = next((key for key in NOT_SHOWN if item.get(key)), None)
    if unshown is not None:
        raise DataError(f"{where}: it has {unshown!r}, which models are not shown here; only pictures are")
    split = item.get("split")
    if split is not None and split not in SPLITS:
        raise DataError(f"{where}: split {brief(split)!r} is not one of {', '.join(SPLITS)}")
    name = text_of(item.get("id", number), f"{where}: 'id'")
    talk = exchanges(item, _names(item, where), where)
    if len(talk) > 1 and turns == "one":
        raise DataError(
            f"{where}: {len(talk)} exchanges; turns=first keeps one, turns=each asks each by itself"
        )
    given = item.get("image_id")
    for turn, exchange in enumerate(talk if turns == "each" else talk[:1]):
        several = len(talk) > 1 and turns == "each"
        yield Row(
            id=f"{name}#{turn}" if several else name,
            where=f"{where}, exchange {turn}" if several else where,
            image_id=None if given is None else text_of(given, f"{where}: 'image_id'"),
            choices=None,
            split=split,
            meta={key: value for key, value in item.items() if key not in _READ},
            **_said(exchange, root),
        )


def _said(exchange: Exchange, root: Path) -> dict[str, Any]:
    """What a row takes from its exchange."""
    images = tuple(source_of(name, root) for name in exchange.images)
    return {
        "images": images,
        "names": tuple(name_of(image, root) for image in images),
        "question": exchange.question,
        "answers": (exchange.answer,),
        "system": exchange.system,
    }


def _names(item: Mapping[str, Any], where: str) -> list[str]:
    """The names of the item's images, under `image` or `images`, a single one or a list."""
    given = {key: item[key] for key in ("image", "images") if item.get(key) is not None}
    if len(given) > 1:
        raise DataError(f"{where}: both 'image' and 'images'; give one of them")
    for key, found in given.items():
        names = found if isinstance(found, list) else [found]
        return [text_of(name, f"{where}: {key!r}", strip=False) for name in names]
    return []
