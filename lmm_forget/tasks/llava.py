"""Task from LLaVA-style JSON, a list of conversations about images; most training sets for LMMs use this format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError, DataError, shorten_value
from lmm_forget.tasks.conversations import Exchange, parse_exchanges
from lmm_forget.tasks.file_rows import FileRow, FileRows
from lmm_forget.tasks.images import get_image_name, parse_image_source
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.task import SPLITS
from lmm_forget.tasks.text_values import convert_to_text

TURN_POLICIES = ("one", "first", "each")
UNSUPPORTED_KEYS = ("video", "videos", "audio", "audios", "tools", "functions")
"""Keys that change the question of an item and are not supported; items with them are refused."""
_KNOWN_KEYS = ("id", "image", "images", "image_id", "conversations", "messages", "system", "split")


class LlavaTask(JsonlTask):
    """Questions from a JSON list of {id, image | images, conversations: [{from: human, value}, {from: gpt, value}]}.

    `messages: [{role: user, content}, …]` is read in the same way. `conversations.parse_exchanges` describes the names
    of speakers, system turns (the key `system` is one, in front of all others) and `<image>` marks, which stand for the
    images in their order. A question is shown the images of all turns up to its own. The marks are removed from the
    text, because the model's chat format puts the images in front.

    `turns` decides about items with several exchanges: `one` (the item cannot be used), `first` (only the first
    exchange is used), or `each` (every exchange becomes a sample of its own, without the earlier questions and answers,
    but with the system turns and images up to it). `keep` is the number of items to read, chosen by a hash of their ids
    (None: all). Splits, `path`, `images_root` and the other arguments are those of `JsonlTask`.
    """

    def __init__(self, *, turns: str = "one", keep: int | None = None, **task_options: Any) -> None:
        super().__init__(**task_options)
        if turns not in TURN_POLICIES:
            raise ConfigError(
                f"task {self.name}: turns={turns} is not known; choose one of: {', '.join(TURN_POLICIES)}"
            )
        self.turns = turns
        self.keep = keep

    def read_file(self, path: Path, root: Path | None) -> FileRows:
        """See `JsonlTask.read_file`."""
        return read_llava_rows(path, root, turn_policy=self.turns, max_items=self.keep)


def read_llava_rows(
    path: Path, images_root: Path | None, *, turn_policy: str = "one", max_items: int | None = None
) -> FileRows:
    """Read a LLaVA-style JSON file; see `LlavaTask`. Items that cannot be used are bad rows.

    Raises DataError if the file itself cannot be read.
    """
    items = _load_items(path)
    if max_items is not None and max_items < len(items):
        ranked = sorted(
            range(len(items)),
            key=lambda i: hashlib.sha256(f"{_get_item_name(items[i], i)}".encode()).digest(),
        )
        item_numbers = sorted(ranked[:max_items])
    else:
        item_numbers = list(range(len(items)))
    file_rows = FileRows()
    for item_number in item_numbers:
        item = items[item_number]
        location = f"{path}: item {item_number} (id {shorten_value(_get_item_name(item, item_number))})"
        try:
            rows = list(_build_item_rows(item, location, item_number, images_root or path.parent, turn_policy))
        except DataError as error:
            item_fields = item if isinstance(item, Mapping) else {}
            file_rows.reject_row(location, str(error), item_fields.get("split"), item_fields.get("id", item_number))
            continue
        for row in rows:
            file_rows.add_row(row)
    return file_rows.reject_rows_without_split()


def _load_items(path: Path) -> list[Any]:
    if not path.is_file():
        raise DataError(f"{path} is a folder, not a JSON file" if path.exists() else f"{path} is missing")
    try:
        items = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_build_json_object)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not valid JSON ({str(error).splitlines()[0]}); one object per line is .jsonl"
        ) from None
    if not isinstance(items, list) or not items:
        raise DataError(f"{path}: {'an empty list' if items == [] else 'not a list'}; it must list conversations")
    return items


class _DuplicateKeyDict(dict[str, Any]):
    """A JSON object with a repeated key; `duplicate_key` is the first one."""

    duplicate_key = ""


def _build_json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) == len(pairs):
        return mapping
    keys = [key for key, _ in pairs]
    ambiguous = _DuplicateKeyDict(mapping)
    ambiguous.duplicate_key = next(key for key in keys if keys.count(key) > 1)
    return ambiguous


def _reject_duplicate_keys(value: Any, location: str) -> None:
    """Raise DataError for a repeated key anywhere in an item: only one of its values could be read."""
    if isinstance(value, _DuplicateKeyDict):
        raise DataError(f"{location}: the key {shorten_value(value.duplicate_key)!r} stands twice")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _reject_duplicate_keys(child, location)


def _get_item_name(item: Any, item_number: int) -> str:
    """The id of an item as text, or its number if it has no usable id."""
    try:
        return convert_to_text(item.get("id", item_number), "") if isinstance(item, Mapping) else str(item_number)
    except DataError:
        return str(item_number)


def _build_item_rows(
    item: Any, location: str, item_number: int, images_root: Path, turn_policy: str
) -> Iterator[FileRow]:
    """The rows of one item. Raises DataError beginning with `location`."""
    if not isinstance(item, dict):
        raise DataError(f"{location}: a {type(item).__name__}, not an object")
    _reject_duplicate_keys(item, location)
    unsupported = next((key for key in UNSUPPORTED_KEYS if item.get(key)), None)
    if unsupported is not None:
        raise DataError(f"{location}: it has {unsupported!r}, which is not supported; models get images only")
    split = item.get("split")
    if split is not None and split not in SPLITS:
        raise DataError(f"{location}: split {shorten_value(split)!r} is not one of {', '.join(SPLITS)}")
    name = convert_to_text(item.get("id", item_number), f"{location}: 'id'")
    item_exchanges = parse_exchanges(item, _list_image_names(item, location), location)
    if len(item_exchanges) > 1 and turn_policy == "one":
        raise DataError(
            f"{location}: {len(item_exchanges)} exchanges; turns=first keeps one, turns=each makes a sample of each"
        )
    image_id = item.get("image_id")
    for turn, exchange in enumerate(item_exchanges if turn_policy == "each" else item_exchanges[:1]):
        has_several_turns = len(item_exchanges) > 1 and turn_policy == "each"
        yield FileRow(
            id=f"{name}#{turn}" if has_several_turns else name,
            location=f"{location}, exchange {turn}" if has_several_turns else location,
            image_id=None if image_id is None else convert_to_text(image_id, f"{location}: 'image_id'"),
            choices=None,
            split=split,
            meta={key: value for key, value in item.items() if key not in _KNOWN_KEYS},
            **_build_row_fields(exchange, images_root),
        )


def _build_row_fields(exchange: Exchange, images_root: Path) -> dict[str, Any]:
    """The fields of a row that come from its exchange."""
    images = tuple(parse_image_source(name, images_root) for name in exchange.image_names)
    return {
        "images": images,
        "image_names": tuple(get_image_name(image, images_root) for image in images),
        "question": exchange.question,
        "answers": (exchange.answer,),
        "system": exchange.system,
    }


def _list_image_names(item: Mapping[str, Any], location: str) -> list[str]:
    """The names of an item's images: the value of `image` or `images`, one name or a list."""
    image_values = {key: item[key] for key in ("image", "images") if item.get(key) is not None}
    if len(image_values) > 1:
        raise DataError(f"{location}: both 'image' and 'images'; give one of them")
    for key, value in image_values.items():
        names = value if isinstance(value, list) else [value]
        return [convert_to_text(name, f"{location}: {key!r}", strip=False) for name in names]
    return []
