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
from lmm_forget.models.chat import (
    build_chat_messages,
    find_closing_token,
    reject_reserved_tokens,
    render_chat,
)
from lmm_forget.models.components import ComponentMap, ModelParts
from lmm_forget.models.part_detection import map_model_parts

IGNORE_INDEX = -100
"""The label of a token that no loss counts (the convention of torch's cross-entropy)."""

_PER_TOKEN_DEFAULTS = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}
"""Keys with one entry per token, and their value on answer tokens (padding is 0 in all of them)."""


@dataclass
class EncodedInputs:
    """A batch ready for `model(**batch)` or `model.generate(**batch)`.

    `batch` holds every key the processor returned; `input_ids` is [B, L]. `labels` is [B, L] with -100 everywhere
    except on the answer and its end token, or None for prompts. `lengths[i]` counts sample i's tokens without padding.
    """

    tensors: dict[str, Tensor]
    labels: Tensor | None
    lengths: list[int]


class Family(ABC):
    """A model family, bound to one configuration (`context` is the longest sequence its decoder accepts, in tokens)."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    hf_class: type[PreTrainedModel]
    image_limit_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any) -> None:
        self.config = config
        self.context_length: int = config.get_text_config().max_position_embeddings

    def find_parts(self, model: PreTrainedModel) -> ModelParts:
        """The modules that make up a loaded model of this family. Raises ConfigError listing what cannot be told."""
        return map_model_parts(model, self.get_vision_feature_layer())

    def get_vision_feature_layer(self) -> int | Sequence[int] | None:
        """Which of the tower's hidden states the projector reads; None: the tower's last output."""
        return None

    @abstractmethod
    def apply_image_limits(self, config: Any, processor: ProcessorMixin, image_limits: Mapping[str, Any]) -> None:
        """Bound the tokens one image may take; `image` has only keys of `image_limit_keys`, none of them None."""

    def iterate_processor_checks(self, config: Any, processor: Any) -> Iterator[tuple[str, Any, Any]]:
        """What processor and model must agree on, beyond tokens: (name, the processor's value, the model's)."""
        yield from ()

    def verify_components(  # noqa: B027  (nothing to check where the map is written down)
        self, model: PreTrainedModel, processor: ProcessorMixin, components: ComponentMap
    ) -> None:
        """Check the map on the loaded model where that is needed. Raises ConfigError."""

    def map_components(self, model: PreTrainedModel) -> ComponentMap:
        """The component map of `model`. Raises ConfigError when it is not this family's Hugging Face class."""
        if not isinstance(model, self.hf_class):
            raise ConfigError(f"{type(model).__name__} cannot be mapped: pass a loaded {self.hf_class.__name__}")
        return ComponentMap(model, self.find_parts(model))

    def render_prompt(
        self, processor: ProcessorMixin, question: str, num_images: int, system: str | None = None
    ) -> str:
        """The chat text up to and including the assistant header: `n_images` images, then the question.

        `system` stands above it as the system prompt; without one, what the template says by itself. Raises DataError
        where the chat template takes none.
        """
        return render_chat(
            processor,
            build_chat_messages(processor, question, num_images, system),
            add_generation_prompt=True,
        )

    def get_end_of_answer_token(self, processor: ProcessorMixin) -> str:
        """The special token that closes an assistant turn in the processor's own chat template."""
        return find_closing_token(processor)

    def get_answer_prefix(self, processor: ProcessorMixin) -> str:
        """What stands between the assistant header and the answer's first word."""
        return ""

    def encode_batch(
        self,
        processor: ProcessorMixin,
        questions: Sequence[str],
        images: Sequence[Sequence[Image]],
        answers: Sequence[str] | None = None,
        systems: Sequence[str | None] | None = None,
    ) -> EncodedInputs:
        """Encode a batch: left-padded prompts without `answers`, right-padded prompt + answer + end token with them.

        `systems` are the questions' system prompts, None for one (or all) without. Raises DataError, naming the
        position in the batch, when a text holds a reserved token or when a sequence is longer than the decoder's
        context; when a picture is not RGB, or the processor cannot take it; when the chat template takes no system
        prompt, or leaves nothing between two pictures that the model tells apart by what stands between them.
        """
        systems = [None] * len(questions) if systems is None else systems
        reject_reserved_tokens(processor, questions, "question")
        reject_reserved_tokens(processor, [system or "" for system in systems], "system prompt")
        _check_images_are_rgb(images)
        prompts = self._render_prompts(processor, questions, images, systems)
        batch = _process_batch(processor, prompts, images)
        _check_images_are_separated(processor, batch, images)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        if answers is None:
            self._check_context_length(lengths, with_answer=False)
            return EncodedInputs(batch, None, lengths)
        reject_reserved_tokens(processor, answers, "answer")
        prefix, end_token = self.get_answer_prefix(processor), self.get_end_of_answer_token(processor)
        texts = [prefix + answer + end_token for answer in answers]
        answer_ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        totals = [n + len(ids) for n, ids in zip(lengths, answer_ids, strict=True)]
        self._check_context_length(totals, with_answer=True)
        labels = _append_answers(batch, lengths, answer_ids, processor.tokenizer.pad_token_id)
        return EncodedInputs(batch, labels, totals)

    def _render_prompts(
        self,
        processor: ProcessorMixin,
        questions: Sequence[str],
        images: Sequence[Sequence[Image]],
        systems: Sequence[str | None],
    ) -> list[str]:
        prompts = []
        for i, (question, sample_images, system) in enumerate(zip(questions, images, systems, strict=True)):
            try:
                prompts.append(self.render_prompt(processor, question, len(sample_images), system))
            except DataError as error:
                raise DataError(f"sample {i} of the batch: {error}") from None
        return prompts

    def _check_context_length(self, lengths: list[int], *, with_answer: bool) -> None:
        for i, length in enumerate(lengths):
            if length > self.context_length:
                subject = "prompt and answer have" if with_answer else "prompt has"
                raise DataError(
                    f"sample {i} of the batch: {subject} {length} tokens, the model's context is "
                    f"{self.context_length}; "
                    "shorten the text or lower the image budget (model.image)"
                )


def limit_tiles(config: Any, processor: ProcessorMixin, image_limits: Mapping[str, Any]) -> None:
    """Keep only the grids of at most `max_tiles` tiles, in the model and in its processor (they must agree)."""
    limit, tile = int(image_limits["max_tiles"]), config.vision_config.image_size
    grids = [list(g) for g in config.image_grid_pinpoints if (g[0] // tile) * (g[1] // tile) <= limit]
    if not grids:
        raise ConfigError(
            f"model.image.max_tiles={limit} leaves no grid; the smallest has "
            f"{min((h // tile) * (w // tile) for h, w in config.image_grid_pinpoints)} tiles"
        )
    config.image_grid_pinpoints = grids
    processor.image_processor.image_grid_pinpoints = grids


def limit_pixels(processor: ProcessorMixin, image_limits: Mapping[str, Any]) -> None:
    """Bound the pixels of a resized image by `min_pixels` and `max_pixels`, as Qwen's processors do.

    Raises ConfigError when the smallest exceeds the largest, or when the largest is less than one token.
    """
    images: Any = processor.image_processor
    size = dict(images.size)
    edges = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    size |= {edges[key]: int(value) for key, value in image_limits.items()}
    low, high = size["shortest_edge"], size["longest_edge"]
    token = (images.patch_size * images.merge_size) ** 2
    if not token <= low <= high:
        raise ConfigError(
            f"model.image: min_pixels is {low} and max_pixels {high}; they have to rise from {token}, one token"
        )
    images.size = type(images.size)(**size)


def _check_images_are_rgb(images: Sequence[Sequence[Image]]) -> None:
    for i, per_sample in enumerate(images):
        for picture in per_sample:
            if picture.mode != "RGB" or 0 in picture.size:
                raise DataError(
                    f"sample {i} of the batch: a picture of {_format_size(picture)} in mode {picture.mode}; "
                    "pictures have to be RGB (lmm_forget.tasks.images.convert_to_rgb)"
                )


def _process_batch(
    processor: ProcessorMixin, prompts: list[str], images: Sequence[Sequence[Image]]
) -> dict[str, Tensor]:
    """`_call_processor` on the whole batch. Raises DataError naming the sample whose pictures the processor
    cannot take.
    """
    try:
        return _call_processor(processor, prompts, images)
    except (ValueError, RuntimeError, ZeroDivisionError, IndexError):
        for i, (prompt, per_sample) in enumerate(zip(prompts, images, strict=True)):
            try:
                _call_processor(processor, [prompt], [per_sample])
            except (ValueError, RuntimeError, ZeroDivisionError, IndexError) as error:
                sizes = ", ".join(map(_format_size, per_sample)) or "no pictures"
                cause = str(error).strip().split("\n")[0] or type(error).__name__
                raise DataError(
                    f"sample {i} of the batch: {type(processor).__name__} cannot take it ({sizes}): {cause}"
                ) from None
        raise


def _check_images_are_separated(
    processor: ProcessorMixin, batch: Mapping[str, Tensor], images: Sequence[Sequence[Image]]
) -> None:
    """Refuse pictures side by side where positions are given per run of image tokens, as Qwen's `get_rope_index` does.

    Such processors return `image_grid_thw` and `mm_token_type_ids` (1 on image tokens).
    """
    if "image_grid_thw" not in batch or "mm_token_type_ids" not in batch:
        return
    is_image = batch["mm_token_type_ids"] == 1
    runs = is_image[:, :1].sum(dim=1) + (is_image[:, 1:] & ~is_image[:, :-1]).sum(dim=1)
    for i, (num_seen, per_sample) in enumerate(zip(runs.tolist(), images, strict=True)):
        if num_seen < len(per_sample):
            raise DataError(
                f"sample {i} of the batch: its {len(per_sample)} pictures stand side by side in the prompt, and the "
                f"model would take them for {num_seen}; the chat template of its {type(processor).__name__} has to put "
                "tokens around each picture, as <|vision_start|> and <|vision_end|>"
            )


def _format_size(image: Image) -> str:
    return f"{image.width} x {image.height} pixels"


def _call_processor(
    processor: ProcessorMixin, prompts: list[str], images: Sequence[Sequence[Image]]
) -> dict[str, Tensor]:
    """Left-padded prompts, with every key that the processor returns."""
    nested = [list(per_sample) for per_sample in images]
    tokenizer = processor.tokenizer
    # A template may already write the BOS token; the tokenizer must then not add a second one.
    has_bos_token = tokenizer.bos_token is not None and prompts[0].startswith(tokenizer.bos_token)
    return dict(
        processor(
            images=nested if any(nested) else None,
            text=prompts,
            padding=True,
            padding_side="left",
            add_special_tokens=not has_bos_token,
            return_tensors="pt",
        )
    )


def _append_answers(batch: dict[str, Tensor], lengths: list[int], answer_ids: list[list[int]], pad_id: int) -> Tensor:
    """Turn left-padded prompts [B, P] into right-padded prompt + ending [B, L] in place; returns the labels [B, L]."""
    rows, width = len(lengths), max(n + len(e) for n, e in zip(lengths, answer_ids, strict=True))
    prompt_width = batch["input_ids"].shape[1]
    unknown_keys = [
        k for k, v in batch.items() if k not in ("input_ids", *_PER_TOKEN_DEFAULTS) and _is_per_token(batch, v)
    ]
    if unknown_keys:
        raise ConfigError(
            f"the processor returns {unknown_keys[0]!r} per token, whose value on answers is unknown; "
            "a family of its own in lmm_forget/models can say it"
        )
    labels = torch.full((rows, width), IGNORE_INDEX, dtype=torch.long)
    fills = {"input_ids": pad_id, **{key: 0 for key in _PER_TOKEN_DEFAULTS if key in batch}}
    padded = {key: torch.full((rows, width), fill, dtype=batch[key].dtype) for key, fill in fills.items()}
    for i, (n, ids) in enumerate(zip(lengths, answer_ids, strict=True)):
        ending = torch.tensor(ids, dtype=torch.long)
        stop = n + len(ids)
        labels[i, n:stop] = ending
        for key, target in padded.items():
            target[i, :n] = batch[key][i, prompt_width - n :]
            target[i, n:stop] = ending if key == "input_ids" else _PER_TOKEN_DEFAULTS[key]
    batch.update(padded)
    return labels


def _is_per_token(batch: Mapping[str, Tensor], value: Any) -> bool:
    integers = isinstance(value, Tensor) and not value.is_floating_point()
    return integers and value.shape == batch["input_ids"].shape
