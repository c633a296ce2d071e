"""The interface of a model family: its parts, its prompt, and the encoding of batches.

Encoding is the same for all families and uses only what their own processors return. A training sequence is the token
ids of the generation prompt followed by those of "answer + end token", so training and generation have exactly the same
prefix.
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
    find_answer_end_token,
    reject_reserved_tokens,
    render_chat,
)
from lmm_forget.models.components import ComponentMap, ModelParts
from lmm_forget.models.part_detection import map_model_parts

IGNORE_INDEX = -100
"""The label of tokens that the loss ignores, as in torch's cross-entropy."""

_PER_TOKEN_DEFAULTS = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}
"""Keys with one entry per token -> their value on answer tokens (on padding all are 0)."""


@dataclass
class EncodedInputs:
    """A batch for `model(**tensors)` or `model.generate(**tensors)`.

    `tensors` has every key that the processor returned; `input_ids` is [B, L]. `labels` is [B, L] with -100 everywhere
    except on the answer and its end token, or None for prompts. `lengths[i]` is the number of sample i's tokens without
    padding.
    """

    tensors: dict[str, Tensor]
    labels: Tensor | None
    lengths: list[int]


class Family(ABC):
    """A model family for one configuration. `context_length` is the decoder's longest sequence, in tokens."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    hf_class: type[PreTrainedModel]
    image_limit_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any) -> None:
        self.config = config
        self.context_length: int = config.get_text_config().max_position_embeddings

    def find_parts(self, model: PreTrainedModel) -> ModelParts:
        """The parts of a loaded model of this family. Raises ConfigError if a part is missing or ambiguous."""
        return map_model_parts(model, self.get_vision_feature_layer())

    def get_vision_feature_layer(self) -> int | Sequence[int] | None:
        """Index of the tower's hidden state that the projector reads, or several; None: the tower's last output."""
        return None

    @abstractmethod
    def apply_image_limits(self, config: Any, processor: ProcessorMixin, image_limits: Mapping[str, Any]) -> None:
        """Limit the tokens of one image; `image_limits` has only keys of `image_limit_keys`, none of them None."""

    def iterate_processor_checks(self, config: Any, processor: Any) -> Iterator[tuple[str, Any, Any]]:
        """Properties besides tokens in which processor and model must agree: (name, processor's value, model's)."""
        yield from ()

    def verify_components(  # noqa: B027  (only families with derived maps check them)
        self, model: PreTrainedModel, processor: ProcessorMixin, components: ComponentMap
    ) -> None:
        """Check a derived component map on the loaded model. Raises ConfigError."""

    def map_components(self, model: PreTrainedModel) -> ComponentMap:
        """The component map of `model`. Raises ConfigError if it is not of this family's Hugging Face class."""
        if not isinstance(model, self.hf_class):
            raise ConfigError(f"{type(model).__name__} cannot be mapped: pass a loaded {self.hf_class.__name__}")
        return ComponentMap(model, self.find_parts(model))

    def render_prompt(
        self, processor: ProcessorMixin, question: str, num_images: int, system: str | None = None
    ) -> str:
        """The chat text up to and including the assistant header: `num_images` images, then the question.

        `system` is the system prompt (None: the template's default). Raises DataError if the chat template does not
        accept one.
        """
        return render_chat(
            processor,
            build_chat_messages(processor, question, num_images, system),
            add_generation_prompt=True,
        )

    def get_end_of_answer_token(self, processor: ProcessorMixin) -> str:
        """The special token that ends an assistant turn in the processor's chat template."""
        return find_answer_end_token(processor)

    def get_answer_prefix(self, processor: ProcessorMixin) -> str:
        """The text between the assistant header and the first word of the answer."""
        return ""

    def encode_batch(
        self,
        processor: ProcessorMixin,
        questions: Sequence[str],
        images: Sequence[Sequence[Image]],
        answers: Sequence[str] | None = None,
        systems: Sequence[str | None] | None = None,
    ) -> EncodedInputs:
        """Encode a batch: without `answers` left-padded prompts, with them right-padded prompt + answer + end token.

        `systems` are the questions' system prompts (None for a question, or for all, without one). Raises DataError,
        naming the position in the batch, if a text contains a reserved token, a sequence is longer than the decoder's
        context, an image is not RGB or the processor cannot use it, the chat template does not accept a system prompt,
        or the template puts no token between two images that the model separates by such tokens.
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
    """Keep only grids of at most `image_limits["max_tiles"]` tiles, in both the model's config and its processor.

    Raises ConfigError if no grid is left.
    """
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
    """Set the limits `min_pixels` and `max_pixels` of a resized image in a processor of Qwen's kind.

    Raises ConfigError if the minimum exceeds the maximum or is less than one token.
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
        for image in per_sample:
            if image.mode != "RGB" or 0 in image.size:
                raise DataError(
                    f"sample {i} of the batch: an image of {_format_size(image)} in mode {image.mode}; "
                    "images have to be RGB (lmm_forget.tasks.images.convert_to_rgb)"
                )


def _process_batch(
    processor: ProcessorMixin, prompts: list[str], images: Sequence[Sequence[Image]]
) -> dict[str, Tensor]:
    """`_call_processor` on the whole batch. Raises DataError naming the sample that the processor cannot use."""
    try:
        return _call_processor(processor, prompts, images)
    except (ValueError, RuntimeError, ZeroDivisionError, IndexError):
        for i, (prompt, per_sample) in enumerate(zip(prompts, images, strict=True)):
            try:
                _call_processor(processor, [prompt], [per_sample])
            except (ValueError, RuntimeError, ZeroDivisionError, IndexError) as error:
                sizes = ", ".join(map(_format_size, per_sample)) or "no images"
                cause = str(error).strip().split("\n")[0] or type(error).__name__
                raise DataError(
                    f"sample {i} of the batch: {type(processor).__name__} cannot take it ({sizes}): {cause}"
                ) from None
        raise


def _check_images_are_separated(
    processor: ProcessorMixin, batch: Mapping[str, Tensor], images: Sequence[Sequence[Image]]
) -> None:
    """Raise DataError if the tokens of two images are adjacent in a model that would take them for one image.

    Qwen's `get_rope_index` gives positions per run of image tokens. Processors of such models return `image_grid_thw`
    and `mm_token_type_ids` (1 on image tokens).
    """
    if "image_grid_thw" not in batch or "mm_token_type_ids" not in batch:
        return
    is_image = batch["mm_token_type_ids"] == 1
    runs = is_image[:, :1].sum(dim=1) + (is_image[:, 1:] & ~is_image[:, :-1]).sum(dim=1)
    for i, (num_runs, per_sample) in enumerate(zip(runs.tolist(), images, strict=True)):
        if num_runs < len(per_sample):
            raise DataError(
                f"sample {i} of the batch: its {len(per_sample)} images stand side by side in the prompt, and the "
                f"model would take them for {num_runs}; the chat template of its {type(processor).__name__} has to put "
                "tokens around each image, such as <|vision_start|> and <|vision_end|>"
            )


def _format_size(image: Image) -> str:
    return f"{image.width} x {image.height} pixels"


def _call_processor(
    processor: ProcessorMixin, prompts: list[str], images: Sequence[Sequence[Image]]
) -> dict[str, Tensor]:
    """Run the processor on left-padded prompts; returns all its tensors."""
    nested = [list(per_sample) for per_sample in images]
    tokenizer = processor.tokenizer
    # If the template already writes the BOS token, the tokenizer must not add a second one.
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
    """Replace left-padded prompts [B, P] by right-padded prompt + answer [B, L] in place; returns labels [B, L]."""
    rows, width = len(lengths), max(n + len(e) for n, e in zip(lengths, answer_ids, strict=True))
    prompt_width = batch["input_ids"].shape[1]
    unknown_keys = [
        k for k, v in batch.items() if k not in ("input_ids", *_PER_TOKEN_DEFAULTS) and _is_per_token(batch, v)
    ]
    if unknown_keys:
        raise ConfigError(
            f"the processor returns {unknown_keys[0]!r} per token, whose value on answers is unknown; "
            "a family of its own in lmm_forget/models can define it"
        )
    labels = torch.full((rows, width), IGNORE_INDEX, dtype=torch.long)
    fills = {"input_ids": pad_id, **{key: 0 for key in _PER_TOKEN_DEFAULTS if key in batch}}
    padded = {key: torch.full((rows, width), fill, dtype=batch[key].dtype) for key, fill in fills.items()}
    for i, (n, ids) in enumerate(zip(lengths, answer_ids, strict=True)):
        answer = torch.tensor(ids, dtype=torch.long)
        stop = n + len(ids)
        labels[i, n:stop] = answer
        for key, target in padded.items():
            target[i, :n] = batch[key][i, prompt_width - n :]
            target[i, n:stop] = answer if key == "input_ids" else _PER_TOKEN_DEFAULTS[key]
    batch.update(padded)
    return labels


def _is_per_token(batch: Mapping[str, Tensor], value: Any) -> bool:
    has_integers = isinstance(value, Tensor) and not value.is_floating_point()
    return has_integers and value.shape == batch["input_ids"].shape
