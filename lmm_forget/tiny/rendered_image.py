"""What a renderer returns: one picture and everything that may be asked about it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Question:
    """One question about a picture: text, accepted answers (the first is taught), lettered choices, groups."""

    text: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RenderedImage:
    """A picture with its questions; the questions of one picture share its image id."""

    image: Image.Image
    questions: tuple[Question, ...]


Renderer = Callable[[random.Random], RenderedImage]
