"""Parse conversations in the formats of ShareGPT, LLaVA and OpenAI into questions with answers and images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.tasks.text_values import IMAGE_MARK, convert_to_optional_text, convert_to_text, parse_question

SPEAKER_ROLES = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "system": "system",
}
"""Name of a speaker in a file -> its role here."""
_TOOL_CALL_KEYS = ("tool_calls", "function_call")
_TURN_FORMATS = {"conversations": ("from", "value"), "messages": ("role", "content")}

_UNSUPPORTED_MARK = re.compile(r"<(?:video|audio|speech|point_cloud)>")


@dataclass(frozen=True)
class Exchange:
    """A question with its answer, the names of all images shown up to it, and the system prompt up to it."""

    question: str
    answer: str
    image_names: tuple[str, ...]
    system: str | None


@dataclass(frozen=True)
class _Turn:
    """One turn. `text` has a mark for every image, `image_names` the name that the turn gives to each mark, or None."""

    role: str
    text: str
    image_names: tuple[str | None, ...]


def parse_exchanges(item: Mapping[str, Any], image_names: Sequence[str], location: str) -> list[Exchange]:
    """The exchanges of an item with the key `conversations` or `messages`, whose image files are `image_names`.

    A turn is `{from, value}` or `{role, content}` in either list; its speaker is a key of `SPEAKER_ROLES`. Its content
    is a text, or a list of texts and images (`{type: image}`, with a name of its own or without). Every `<image>` mark,
    and every image without a name, stands for the next of `image_names`; a question is shown all images up to its own
    turn. A system turn holds from where it stands: the system prompt of an exchange is all system turns before it, one
    per line. Raises DataError, beginning with `location`, for an unknown speaker, an empty turn, questions and answers
    that do not alternate, images outside questions, a system turn after the last answer, and a number of marks that
    is not the number of images.
    """
    turns = [_parse_turn(turn, location, number) for number, turn in enumerate(_get_turn_list(item, location))]
    spoken = [turn for turn in turns if turn.role != "system"]
    if len(spoken) % 2 or not spoken:
        raise DataError(f"{location}: {len(spoken)} turns; questions and answers must alternate")
    for human_turn, reply_turn in zip(spoken[::2], spoken[1::2], strict=True):
        if (human_turn.role, reply_turn.role) != ("human", "gpt"):
            raise DataError(
                f"{location}: turns from {human_turn.role!r} and {reply_turn.role!r}, not human and gpt; "
                "questions and answers must "
                "alternate"
            )
    if turns[-1].role == "system":
        raise DataError(f"{location}: a system turn after the last answer, which belongs to no question")
    mark_count = sum(name is None for turn in turns for name in turn.image_names)
    if mark_count != len(image_names):
        raise DataError(
            f"{location}: {mark_count} {IMAGE_MARK} mark{'s' * (mark_count != 1)} and {len(image_names)} "
            f"image{'s' * (len(image_names) != 1)}; "
            "each image needs one"
        )
    return _pair_turns(
        turns, image_names, convert_to_optional_text(item.get("system"), f"{location}: 'system'"), location
    )


def _pair_turns(
    turns: Sequence[_Turn], image_names: Sequence[str], system: str | None, location: str
) -> list[Exchange]:
    """The exchanges of alternating turns; every mark gets its image."""
    remaining_images = iter(image_names)
    shown_images: list[str] = []
    system_texts = [] if system is None else [system]
    paired: list[Exchange] = []
    question = ""
    for turn in turns:
        shown_images += [next(remaining_images) if name is None else name for name in turn.image_names]
        if turn.role == "system":
            system_texts.append(turn.text)
        elif turn.role == "human":
            question = parse_question(turn.text, f"{location}: 'human turn'")
        else:
            paired.append(Exchange(question, turn.text, tuple(shown_images), "\n".join(system_texts) or None))
    return paired


def _get_turn_list(item: Mapping[str, Any], location: str) -> list[Any]:
    present_keys = [key for key in _TURN_FORMATS if item.get(key) is not None]
    if len(present_keys) > 1:
        raise DataError(f"{location}: both 'conversations' and 'messages'; give one of them")
    turns = item[present_keys[0]] if present_keys else None
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{location}: no 'conversations' list; it has {', '.join(map(repr, item))}")
    return turns


def _parse_turn(turn: Any, location: str, turn_number: int) -> _Turn:
    if not isinstance(turn, Mapping):
        raise DataError(f"{location}: turn {turn_number} is a {type(turn).__name__}, not an object")
    turn_keys = next((keys for keys in _TURN_FORMATS.values() if keys[0] in turn), None)
    if turn_keys is None:
        raise DataError(f"{location}: turn {turn_number} has no speaker; it has {', '.join(map(repr, turn))}")
    speaker, content = turn[turn_keys[0]], turn.get(turn_keys[1])
    role = SPEAKER_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise DataError(
            f"{location}: turn {turn_number} is from {str(speaker)[:40]!r}; there are "
            f"{', '.join(SPEAKER_ROLES)}, and no other "
            "turn can be used"
        )
    tool_call = next((key for key in _TOOL_CALL_KEYS if turn.get(key)), None)
    if tool_call is not None:
        raise DataError(f"{location}: turn {turn_number} calls a tool ({tool_call!r}), which cannot be used")
    text, image_names = _parse_content(content, f"{location}: '{role} turn'")
    unsupported_mark = _UNSUPPORTED_MARK.search(text)
    if unsupported_mark and role == "human":
        raise DataError(f"{location}: turn {turn_number} has the mark {unsupported_mark[0]}; models get images only")
    if image_names and role != "human":
        raise DataError(
            f"{location}: turn {turn_number}, a {role} turn, has {len(image_names)} {IMAGE_MARK} "
            f"mark{'s' * (len(image_names) != 1)}; only "
            "questions have images"
        )
    return _Turn(role, text, image_names)


def _parse_content(content: Any, location: str) -> tuple[str, tuple[str | None, ...]]:
    """The text of a turn with a mark for every image, and for every mark the name that the turn gives, or None."""
    if not isinstance(content, list):
        text = convert_to_text(content, location)
        return text, (None,) * text.count(IMAGE_MARK)
    text = ""
    image_names: list[str | None] = []
    for part in content:
        if isinstance(part, str) or (isinstance(part, Mapping) and part.get("type") == "text"):
            part_text = part if isinstance(part, str) else part.get("text")
            if not isinstance(part_text, str):
                raise DataError(f"{location} has a part whose text is no text")
            text += part_text
            image_names += [None] * part_text.count(IMAGE_MARK)
        elif isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
            text += IMAGE_MARK
            image_names.append(_get_part_image_name(part, location))
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise DataError(f"{location} has a part of type {str(kind)[:40]!r}; there are text, image and image_url")
    return convert_to_text(text, location), tuple(image_names)


def _get_part_image_name(part: Mapping[str, Any], location: str) -> str | None:
    """The name in an image part of a content list; None if the part stands for the next of the item's images."""
    for key in ("image", "image_url", "url", "path"):
        value = part.get(key)
        if isinstance(value, Mapping):
            value = value.get("url")
        if value is not None:
            return convert_to_text(value, f"{location}, {key!r}", strip=False)
    return None
