"""Conversations as ShareGPT, LLaVA and OpenAI write them: who says what, and which pictures a question is about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.tasks.values import MARK, optional_text, question_of, text_of

ROLES = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "system": "system",
}
"""Names of speakers, and whom they stand for."""
_CALLS = ("tool_calls", "function_call")
_FORMS = {"conversations": ("from", "value"), "messages": ("role", "content")}

_OTHER_MARK = re.compile(r"<(?:video|audio|speech|point_cloud)>")


@dataclass(frozen=True)
class Exchange:
    """A question with its answer, the names of all pictures shown so far, and what the system said so far."""

    question: str
    answer: str
    images: tuple[str, ...]
    system: str | None


@dataclass(frozen=True)
class _Turn:
    """One turn; its pictures stand as marks in `text`, `own` are the names that it gives itself, by mark."""

    who: str
    text: str
    own: tuple[str | None, ...]


def exchanges(item: Mapping[str, Any], images: Sequence[str], where: str) -> list[Exchange]:
    """The exchanges of an item with `conversations` or `messages`, whose pictures are the files `images`.

    A turn is `{from, value}` or `{role, content}` in either list; the speakers are those of `ROLES`. Content is a text,
    or a list of texts and of pictures (`{type: image}`, with a name of its own or without). Every `<image>` mark, and
    every picture without a name, shows the next of `images`: a question is shown all pictures up to its own turn. What
    a system turn says, wherever it stands, holds from there on: the system prompt of an exchange is all of it so far,
    one per line. Nothing is left out: raises DataError, beginning with `where`, for a turn of anybody else, an empty
    one, questions and answers that do not alternate, pictures in anything but a question, a system turn behind the
    last answer, and as many marks as there are not images.
    """
    turns = [_turn(turn, where, number) for number, turn in enumerate(_list(item, where))]
    spoken = [turn for turn in turns if turn.who != "system"]
    if len(spoken) % 2 or not spoken:
        raise DataError(f"{where}: {len(spoken)} turns; questions and answers must alternate")
    for asked, said in zip(spoken[::2], spoken[1::2], strict=True):
        if (asked.who, said.who) != ("human", "gpt"):
            raise DataError(
                f"{where}: turns from {asked.who!r} and {said.who!r}, not human and gpt; questions and answers must "
                "alternate"
            )
    if turns[-1].who == "system":
        raise DataError(f"{where}: a system turn behind the last answer, which no question can be asked with")
    marks = sum(name is None for turn in turns for name in turn.own)
    if marks != len(images):
        raise DataError(
            f"{where}: {marks} {MARK} mark{'s' * (marks != 1)} and {len(images)} image{'s' * (len(images) != 1)}; "
            "each image needs one"
        )
    return _pairs(turns, images, optional_text(item.get("system"), f"{where}: 'system'"), where)


def _pairs(turns: Sequence[_Turn], images: Sequence[str], system: str | None, where: str) -> list[Exchange]:
    """The exchanges of turns that alternate, every mark with its image."""
    following = iter(images)
    shown: list[str] = []
    told = [] if system is None else [system]
    found: list[Exchange] = []
    question = ""
    for turn in turns:
        shown += [next(following) if name is None else name for name in turn.own]
        if turn.who == "system":
            told.append(turn.text)
        elif turn.who == "human":
            question = question_of(turn.text, f"{where}: 'human turn'")
        else:
            found.append(Exchange(question, turn.text, tuple(shown), "\n".join(told) or None))
    return found


def _list(item: Mapping[str, Any], where: str) -> list[Any]:
    given = [key for key in _FORMS if item.get(key) is not None]
    if len(given) > 1:
        raise DataError(f"{where}: both 'conversations' and 'messages'; give one of them")
    turns = item[given[0]] if given else None
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: no 'conversations' list; it has {', '.join(map(repr, item))}")
    return turns


def _turn(turn: Any, where: str, number: int) -> _Turn:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: turn {number} is a {type(turn).__name__}, not an object")
    form = next((keys for keys in _FORMS.values() if keys[0] in turn), None)
    if form is None:
        raise DataError(
            f"{where}: turn {number} does not say whom it is from; it has {', '.join(map(repr, turn))}"
        )
    speaker, content = turn[form[0]], turn.get(form[1])
    who = ROLES.get(speaker) if isinstance(speaker, str) else None
    if who is None:
        raise DataError(
            f"{where}: turn {number} is from {str(speaker)[:40]!r}; there are {', '.join(ROLES)}, and no other "
            "turn can be taught or asked"
        )
    called = next((key for key in _CALLS if turn.get(key)), None)
    if called is not None:
        raise DataError(
            f"{where}: turn {number} calls a tool ({called!r}), which can be neither taught nor asked"
        )
    text, own = _content(content, f"{where}: '{who} turn'")
    other = _OTHER_MARK.search(text)
    if other and who == "human":
        raise DataError(f"{where}: turn {number} has the mark {other[0]}; models are shown pictures only")
    if own and who != "human":
        raise DataError(
            f"{where}: turn {number}, a {who} turn, has {len(own)} {MARK} mark{'s' * (len(own) != 1)}; only "
            "questions show pictures"
        )
    return _Turn(who, text, own)


def _content(content: Any, where: str) -> tuple[str, tuple[str | None, ...]]:
    """The text of a turn, a mark for every picture, and the names that it gives to its pictures itself."""
    if not isinstance(content, list):
        text = text_of(content, where)
        return text, (None,) * text.count(MARK)
    text = ""
    own: list[str | None] = []
    for part in content:
        if isinstance(part, str) or (isinstance(part, Mapping) and part.get("type") == "text"):
            said = part if isinstance(part, str) else part.get("text")
            if not isinstance(said, str):
                raise DataError(f"{where} has a part whose text is no text")
            text += said
            own += [None] * said.count(MARK)
        elif isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
            text += MARK
            own.append(_named(part, where))
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise DataError(
                f"{where} has a part of type {str(kind)[:40]!r}; there are text, image and image_url"
            )
    return text_of(text, where), tuple(own)


def _named(part: Mapping[str, Any], where: str) -> str | None:
    """The name that a picture in a list of contents gives itself; None for the next of the item's images."""
    for key in ("image", "image_url", "url", "path"):
        found = part.get(key)
        if isinstance(found, Mapping):
            found = found.get("url")
        if found is not None:
            return text_of(found, f"{where}, {key!r}", strip=False)
    return None
