"""The result of a renderer: an image with its questions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Question:
    """A question about an image; the fields are those of `Sample` (training uses the first of `answers`)."""

    text: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RenderedImage:
    """An image with its questions, which share the image id."""

    image: Image.Image
    questions: tuple[Question, ...]


Renderer = Callable[[random.Random], RenderedImage]
