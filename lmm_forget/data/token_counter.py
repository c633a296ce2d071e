"""Count the tokens of a sample for a model, with only its processor loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from lmm_forget.data.inspection import CountTokensFunction


def make_token_counter(spec: Mapping[str, Any]) -> tuple[CountTokensFunction, int]:
    """A function that counts the tokens of (question, images, answer, system prompt), and the context length.

    `spec` is a `model` config node; its processor is loaded, its weights are not. Raises ConfigError.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.utils import logging

    from lmm_forget.models.model_source import resolve_model_source
    from lmm_forget.models.registry import resolve_family

    logging.set_verbosity_error()
    source, _ = resolve_model_source(spec)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(f"the processor of {source} cannot be loaded ({cause}); set model.path to a copy") from None
    family = resolve_family(config)
    image_limits = {key: value for key, value in (spec.get("image") or {}).items() if value is not None}
    if image_limits:
        family.apply_image_limits(config, processor, image_limits)
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token

    def count_tokens(question: str, images: Sequence[Image], answer: str, system: str | None = None) -> int:
        return int(family.encode_batch(processor, [question], [list(images)], [answer], [system]).lengths[0])

    return count_tokens, family.context_length
