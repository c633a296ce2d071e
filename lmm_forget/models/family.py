"""What every model family says about itself: its parts, its prompt, and how a batch is encoded.

Encoding is the same for all families and uses only what their own processors return. A training sequence is the
generation prompt's token ids followed by the ids of "answer + end token", so training sees exactly the prefix that
`generate` will see.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.models.chat import closing_token, conversation, refuse_reserved, render
from lmm_forget.models.components import ComponentMap, Parts
from lmm_forget.models.mapping import map_parts

IGNORE = -100
"""The label of a token that no loss counts (the convention of torch's cross-entropy)."""

_PER_TOKEN = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}
"""Keys with one entry per token, and their value on answer tokens (padding is 0 in all of them)."""


@dataclass
class Encoded:
    """A batch ready for `model(**batch)` or `model.generate(**batch)`.

    `batch` holds every key the processor returned; `input_ids` is [B, L]. `labels` is [B, L] with -100 everywhere
    except on the answer and its end token, or None for prompts. `lengths[i]` counts sample i's tokens without padding.
    """

    batch: dict[str, Tensor]
    labels: Tensor | None
    lengths: list[int]


class Family(ABC):
    """A model family, bound to one configuration (`context` is the longest sequence its decoder accepts, in tokens)."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    hf_class: type[PreTrainedModel]
    image_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any) -> None:
        self.config = config
        self.context: int = config.get_text_config().max_position_embeddings

    def parts(self, model: PreTrainedModel) -> Parts:
        """The modules that make up a loaded model of this family. Raises ConfigError listing what cannot be told."""
        return map_parts(model, self.hidden_state())

    def hidden_state(self) -> int | Sequence[int] | None:
        """Which of the tower's hidden states the projector reads; None: the tower's last output."""
        return None

    @abstractmethod
    def apply_image_budget(self, config: Any, processor: ProcessorMixin, image: Mapping[str, Any]) -> None:
        """Bound the tokens one image may take; `image` has only keys of `image_keys`, none of them None."""

    def agreement(self, config: Any, processor: Any) -> Iterator[tuple[str, Any, Any]]:
        """What processor and model must agree on, beyond tokens: (name, the processor's value, the model's)."""
        yield from ()

    def verify(  # noqa: B027  (nothing to check where the map is written down)
        self, model: PreTrainedModel, processor: ProcessorMixin, components: ComponentMap
    ) -> None:
        """Check the map on the loaded model where that is needed. Raises ConfigError."""

    def components(self, model: PreTrainedModel) -> ComponentMap:
        """The component map of `model`. Raises ConfigError when it is not this family's Hugging Face class."""
        if not isinstance(model, self.hf_class):
            raise ConfigError(
                f"{type(model).__name__} cannot be mapped: pass a loaded {self.hf_class.__name__}"
            )
        return ComponentMap(model, self.parts(model))

    def prompt(
        self, processor: ProcessorMixin, question: str, n_images: int, system: str | None = None
    ) -> str:
        """The chat text up to and including the assistant header: `n_images` images, then the question.

        `system` stands above it as the system prompt; without one, what the template says by itself. Raises DataError
        where the chat template takes none.
        """
        return render(
            processor, conversation(processor, question, n_images, system), add_generation_prompt=True
        )

    def end_of_answer(self, processor: ProcessorMixin) -> str:
        """The special token that closes an assistant turn in the processor's own chat template."""
        return closing_token(processor)

    def answer_opening(self, processor: ProcessorMixin) -> str:
        """What stands between the assistant header and the answer's first word."""
        return ""

    def encode(
        self,
        processor: ProcessorMixin,
        questions: Sequence[str],
        images: Sequence[Sequence[Image]],
        answers: Sequence[str] | None = None,
        systems: Sequence[str | None] | None = None,
    ) -> Encoded:
        """Encode a batch: left-padded prompts without `answers`, right-padded prompt + answer + end token with them.

        `systems` are the questions' system prompts, None for one (or all) without. Raises DataError, naming the
        position in the batch, when a text holds a reserved token or when a sequence is longer than the decoder's
        context; when a picture is not RGB, or the processor cannot take it; when the chat template takes no system
        prompt, or leaves nothing between two pictures that the model tells apart by what stands between them.
        """
        systems = [None] * len(questions) if systems is None else systems
        refuse_reserved(processor, questions, "question")
        refuse_reserved(processor, [system or "" for system in systems], "system prompt")
        _refuse_unread(images)
        prompts = self._prompts(processor, questions, images, systems)
        batch = _process(processor, prompts, images)
        _refuse_merged(processor, batch, images)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        if answers is None:
            self._check_context(lengths, answer=False)
            return Encoded(batch, None, lengths)
        refuse_reserved(processor, answers, "answer")
        opening, end = self.answer_opening(processor), self.end_of_answer(processor)
        texts = [opening + answer + end for answer in answers]
        endings = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        totals = [n + len(ids) for n, ids in zip(lengths, endings, strict=True)]
        self._check_context(totals, answer=True)
        labels = _append(batch, lengths, endings, processor.tokenizer.pad_token_id)
        return Encoded(batch, labels, totals)

    def _prompts(
        self,
        processor: ProcessorMixin,
        questions: Sequence[str],
        images: Sequence[Sequence[Image]],
        systems: Sequence[str | None],
    ) -> list[str]:
        found = []
        for i, (question, shown, system) in enumerate(zip(questions, images, systems, strict=True)):
            try:
                found.append(self.prompt(processor, question, len(shown), system))
            except DataError as error:
                raise DataError(f"sample {i} of the batch: {error}") from None
        return found

    def _check_context(self, lengths: list[int], *, answer: bool) -> None:
        for i, n in enumerate(lengths):
            if n > self.context:
                what = "prompt and answer have" if answer else "prompt has"
                raise DataError(
                    f"sample {i} of the batch: {what} {n} tokens, the model's context is {self.context}; "
                    "shorten the text or lower the image budget (model.image)"
                )


def family_for(model_or_config: Any) -> Family:
    """The family of a model or configuration, bound to it. Raises ConfigError listing the known model types."""
    config = getattr(model_or_config, "config", model_or_config)
    return family_for_type(getattr(config, "model_type", None))(config)


def family_for_type(model_type: str | None) -> type[Family]:
    """The family class of a Transformers `model_type`; the generic one for image-text-to-text models without their own.

    Raises ConfigError listing the known ones.
    """
    from lmm_forget.models.generic import Generic, is_image_text_to_text

    known = {known_type: cls for cls in _families() for known_type in cls.model_types}
    if model_type in known:
        return known[model_type]
    if is_image_text_to_text(model_type):
        return Generic
    raise ConfigError(
        f"model type {model_type!r} is not supported; supported: {', '.join(sorted(known))}, "
        "and what Transformers' AutoModelForImageTextToText lists"
    )


def _families() -> tuple[type[Family], ...]:
    from lmm_forget.models.llava_next import LlavaNext
    from lmm_forget.models.llava_onevision import LlavaOnevision
    from lmm_forget.models.qwen2_5_vl import Qwen25VL

    return LlavaOnevision, LlavaNext, Qwen25VL


def limit_tiles(config: Any, processor: ProcessorMixin, image: Mapping[str, Any]) -> None:
    """Keep only the grids of at most `max_tiles` tiles, in the model and in its processor (they must agree)."""
    limit, tile = int(image["max_tiles"]), config.vision_config.image_size
    grids = [list(g) for g in config.image_grid_pinpoints if (g[0] // tile) * (g[1] // tile) <= limit]
    if not grids:
        raise ConfigError(
            f"model.image.max_tiles={limit} leaves no grid; the smallest has "
            f"{min((h // tile) * (w // tile) for h, w in config.image_grid_pinpoints)} tiles"
        )
    config.image_grid_pinpoints = grids
    processor.image_processor.image_grid_pinpoints = grids


def limit_pixels(processor: ProcessorMixin, image: Mapping[str, Any]) -> None:
    """Bound the pixels of a resized image by `min_pixels` and `max_pixels`, as Qwen's processors do.

    Raises ConfigError when the smallest exceeds the largest, or when the largest is less than one token.
    """
    images: Any = processor.image_processor
    size = dict(images.size)
    edges = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    size |= {edges[key]: int(value) for key, value in image.items()}
    low, high = size["shortest_edge"], size["longest_edge"]
    token = (images.patch_size * images.merge_size) ** 2
    if not token <= low <= high:
        raise ConfigError(
            f"model.image: min_pixels is {low} and max_pixels {high}; they have to rise from {token}, one token"
        )
    images.size = type(images.size)(**size)


def _refuse_unread(images: Sequence[Sequence[Image]]) -> None:
    for i, per_sample in enumerate(images):
        for picture in per_sample:
            if picture.mode != "RGB" or 0 in picture.size:
                raise DataError(
                    f"sample {i} of the batch: a picture of {_size(picture)} in mode {picture.mode}; "
                    "pictures have to be RGB (lmm_forget.tasks.images.to_rgb)"
                )


def _process(
    processor: ProcessorMixin, prompts: list[str], images: Sequence[Sequence[Image]]
) -> dict[str, Tensor]:
    """`_call` on the whole batch. Raises DataError naming the sample whose pictures the processor cannot take."""
    try:
        return _call(processor, prompts, images)
    except (ValueError, RuntimeError, ZeroDivisionError, IndexError):
        for i, (prompt, per_sample) in enumerate(zip(prompts, images, strict=True)):
            try:
                _call(processor, [prompt], [per_sample])
            except (ValueError, RuntimeError, ZeroDivisionError, IndexError) as error:
                sizes = ", ".join(map(_size, per_sample)) or "no pictures"
                cause = str(error).strip().split("\n")[0] or type(error).__name__
                raise DataError(
                    f"sample {i} of the batch: {type(processor).__name__} cannot take it ({sizes}): {cause}"
                ) from None
        raise


def _refuse_merged(
    processor: ProcessorMixin, batch: Mapping[str, Tensor], images: Sequence[Sequence[Image]]
) -> None:
    """Refuse pictures side by side where positions are given per run of image tokens, as Qwen's `get_rope_index` does.

    Such processors return `image_grid_thw` and `mm_token_type_ids` (1 on image tokens).
    """
    if "image_grid_thw" not in batch or "mm_token_type_ids" not in batch:
        return
    is_image = batch["mm_token_type_ids"] == 1
    runs = is_image[:, :1].sum(dim=1) + (is_image[:, 1:] & ~is_image[:, :-1]).sum(dim=1)
    for i, (seen, per_sample) in enumerate(zip(runs.tolist(), images, strict=True)):
        if seen < len(per_sample):
            raise DataError(
                f"sample {i} of the batch: its {len(per_sample)} pictures stand side by side in the prompt, and the "
                f"model would take them for {seen}; the chat template of its {type(processor).__name__} has to put "
                "tokens around each picture, as <|vision_start|> and <|vision_end|>"
            )


def _size(picture: Image) -> str:
    return f"{picture.width} x {picture.height} pixels"


def _call(
    processor: ProcessorMixin, prompts: list[str], images: Sequence[Sequence[Image]]
) -> dict[str, Tensor]:
    """Left-padded prompts, with every key that the processor returns."""
    nested = [list(per_sample) for per_sample in images]
    tokenizer = processor.tokenizer
    # A template may already write the BOS token; the tokenizer must then not add a second one.
    doubled = tokenizer.bos_token is not None and prompts[0].startswith(tokenizer.bos_token)
    return dict(
        processor(
            images=nested if any(nested) else None,
            text=prompts,
            padding=True,
            padding_side="left",
            add_special_tokens=not doubled,
            return_tensors="pt",
        )
    )


def _append(batch: dict[str, Tensor], lengths: list[int], endings: list[list[int]], pad_id: int) -> Tensor:
    """Turn left-padded prompts [B, P] into right-padded prompt + ending [B, L] in place; returns the labels [B, L]."""
    rows, width = len(lengths), max(n + len(e) for n, e in zip(lengths, endings, strict=True))
    prompt_width = batch["input_ids"].shape[1]
    strange = [k for k, v in batch.items() if k not in ("input_ids", *_PER_TOKEN) and _is_per_token(batch, v)]
    if strange:
        raise ConfigError(
            f"the processor returns {strange[0]!r} per token, whose value on answers is unknown; "
            "a family of its own in lmm_forget/models can say it"
        )
    labels = torch.full((rows, width), IGNORE, dtype=torch.long)
    fills = {"input_ids": pad_id, **{key: 0 for key in _PER_TOKEN if key in batch}}
    grown = {key: torch.full((rows, width), fill, dtype=batch[key].dtype) for key, fill in fills.items()}
    for i, (n, ids) in enumerate(zip(lengths, endings, strict=True)):
        ending = torch.tensor(ids, dtype=torch.long)
        stop = n + len(ids)
        labels[i, n:stop] = ending
        for key, target in grown.items():
            target[i, :n] = batch[key][i, prompt_width - n :]
            target[i, n:stop] = ending if key == "input_ids" else _PER_TOKEN[key]
    batch.update(grown)
    return labels


def _is_per_token(batch: Mapping[str, Tensor], value: Any) -> bool:
    integers = isinstance(value, Tensor) and not value.is_floating_point()
    return integers and value.shape == batch["input_ids"].shape
