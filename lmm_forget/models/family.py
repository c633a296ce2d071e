"""What every model family must say about itself: its parts, its prompt, and how a batch is encoded.

Encoding is the same for all families and uses only what their own processors return. A training sequence is the
generation prompt's token ids followed by the ids of "answer + end token", so training sees exactly the prefix that
`generate` will see.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.models.components import ComponentMap, Parts

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
    hf_class: ClassVar[type[PreTrainedModel]]
    image_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any) -> None:
        self.config = config
        self.context: int = config.get_text_config().max_position_embeddings

    @abstractmethod
    def parts(self, model: PreTrainedModel) -> Parts:
        """The modules that make up a loaded model of this family."""

    @abstractmethod
    def apply_image_budget(self, config: Any, processor: ProcessorMixin, image: Mapping[str, Any]) -> None:
        """Bound the tokens one image may take; `image` has only keys of `image_keys`, none of them None."""

    def components(self, model: PreTrainedModel) -> ComponentMap:
        """The component map of `model`. Raises ConfigError when it is not this family's Hugging Face class."""
        if not isinstance(model, self.hf_class):
            raise ConfigError(
                f"{type(model).__name__} cannot be mapped: pass a loaded {self.hf_class.__name__}"
            )
        return ComponentMap(model, self.parts(model))

    def prompt(self, processor: ProcessorMixin, question: str, n_images: int) -> str:
        """The chat text up to and including the assistant header: `n_images` images, then the question."""
        return _render(processor, _user_turn(question, n_images), add_generation_prompt=True)

    def end_of_answer(self, processor: ProcessorMixin) -> str:
        """The special token that closes an assistant turn in the processor's own chat template."""
        return _closing_token(processor)

    def encode(
        self,
        processor: ProcessorMixin,
        questions: Sequence[str],
        images: Sequence[Sequence[Image]],
        answers: Sequence[str] | None = None,
    ) -> Encoded:
        """Encode a batch: left-padded prompts without `answers`, right-padded prompt + answer + end token with them.

        Raises DataError, naming the position in the batch, when a text holds a reserved token or when a sequence is
        longer than the decoder's context.
        """
        _refuse_reserved(processor, questions, "question")
        prompts = [self.prompt(processor, q, len(i)) for q, i in zip(questions, images, strict=True)]
        batch = _process(processor, prompts, images)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        if answers is None:
            self._check_context(lengths, answer=False)
            return Encoded(batch, None, lengths)
        _refuse_reserved(processor, answers, "answer")
        end = self.end_of_answer(processor)
        endings = processor.tokenizer([a + end for a in answers], add_special_tokens=False)["input_ids"]
        totals = [n + len(ids) for n, ids in zip(lengths, endings, strict=True)]
        self._check_context(totals, answer=True)
        labels = _append(batch, lengths, endings, processor.tokenizer.pad_token_id)
        return Encoded(batch, labels, totals)

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
    """The family class of a Transformers `model_type`. Raises ConfigError listing the known ones."""
    known = {known_type: cls for cls in _families() for known_type in cls.model_types}
    if model_type not in known:
        raise ConfigError(
            f"model type {model_type!r} is not supported; supported: {', '.join(sorted(known))}"
        )
    return known[model_type]


def _families() -> tuple[type[Family], ...]:
    from lmm_forget.models.llava_next import LlavaNext
    from lmm_forget.models.llava_onevision import LlavaOnevision
    from lmm_forget.models.qwen2_5_vl import Qwen25VL

    return LlavaOnevision, LlavaNext, Qwen25VL


def dead_ends(
    tower: nn.Module, layers: nn.ModuleList, selected: int | Sequence[int]
) -> tuple[nn.Module, ...]:
    """Modules of a SigLIP or CLIP tower that the features taken at `vision_feature_layer` never pass through.

    Hidden state k is the output of layer k - 1 *before* the final norm, hidden state 0 the embeddings. So the layers
    behind the last selected state, `post_layernorm` and SigLIP's pooling head get no gradient.
    """
    states = len(layers) + 1
    chosen = [selected] if isinstance(selected, int) else list(selected)
    last = max(k % states for k in chosen)
    behind = [layers[i] for i in range(last, len(layers))]
    tail = [getattr(tower, name, None) for name in ("post_layernorm", "head")]
    return (*behind, *(module for module in tail if isinstance(module, nn.Module)))


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


def _user_turn(question: str, n_images: int) -> list[dict[str, Any]]:
    content: list[dict[str, str]] = [{"type": "image"} for _ in range(n_images)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def _render(processor: ProcessorMixin, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
    """Render `messages` with the processor's chat template. Raises ConfigError when it has none."""
    if not (processor.chat_template or processor.tokenizer.chat_template):
        raise ConfigError(
            f"{type(processor).__name__} has no chat template; the checkpoint's processor files lack one"
        )
    text = processor.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=False
    )
    return text if isinstance(text, str) else text[0]


def _closing_token(processor: ProcessorMixin) -> str:
    """The first special token behind the answer of a rendered turn; the tokenizer's EOS if there is none."""
    mark = "ANSWER-ENDS-HERE"
    reply = {"role": "assistant", "content": [{"type": "text", "text": mark}]}
    rest = _render(processor, [*_user_turn("?", 0), reply], add_generation_prompt=False).rpartition(mark)[2]
    found = [(rest.index(token), token) for token in _reserved(processor) if token in rest]
    return min(found)[1] if found else processor.tokenizer.eos_token


def _reserved(processor: ProcessorMixin) -> tuple[str, ...]:
    """Every special token, those added without a role (`<|im_start|>`) included."""
    tokenizer = processor.tokenizer
    added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return tuple(
        dict.fromkeys([*tokenizer.all_special_tokens, *added, getattr(processor, "image_token", "<image>")])
    )


def _refuse_reserved(processor: ProcessorMixin, texts: Sequence[str], what: str) -> None:
    """Raise DataError for a text that would smuggle a control token (an image slot, an end of turn) into the chat."""
    if not any("<" in text or "[" in text for text in texts):
        return
    reserved = _reserved(processor)
    for i, text in enumerate(texts):
        for token in reserved:
            if token in text:
                raise DataError(
                    f"sample {i} of the batch: its {what} contains the model's reserved token {token}; "
                    "remove it from the data"
                )


def _process(
    processor: ProcessorMixin, prompts: list[str], images: Sequence[Sequence[Image]]
) -> dict[str, Tensor]:
    """Call the processor on the whole batch; left-padded, with every key that it returns."""
    nested = [list(per_sample) for per_sample in images if len(per_sample)]
    tokenizer = processor.tokenizer
    # A template may already write the BOS token; the tokenizer must then not add a second one.
    doubled = tokenizer.bos_token is not None and prompts[0].startswith(tokenizer.bos_token)
    return dict(
        processor(
            images=nested or None,
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
