"""What a loaded model is beside its weights, as hashes: part of every stage key and answer key.

Two folders with equal weights can compute different things: another `rope_theta`, another chat template, another
end token. Whatever Transformers reads from a folder and uses is covered here as it was loaded, by content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from lmm_forget.models.weight_hashes import hash_tensor

_NOT_SETTINGS = frozenset(
    {
        # Where something was loaded from, and which version wrote it.
        *("name_or_path", "_name_or_path", "_commit_hash", "transformers_version", "architectures"),
        *(
            "vocab_file",
            "merges_file",
            "tokenizer_file",
            "is_local",
            "local_files_only",
            "_from_model_config",
        ),
        # How a tokenizer was last called.
        *("padding", "truncation"),
    }
)
"""Entries of configurations that change nothing of what is computed."""


def fingerprint_model_parts(
    model: PreTrainedModel, processor: ProcessorMixin, end_token_ids: Iterable[int]
) -> dict[str, str]:
    """SHA-256 (hex) of each part of a loaded model that decides answers and is no weight.

    The parts: `config` (the effective configuration, all sub-configurations and the attention implementation included),
    `generation` (generation settings and the tokens that end an answer), `buffers` (tensors of the checkpoint that are
    no parameters), `chat_template`, `tokenizer` and `processor` (image settings and image tokens).
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: hash_tensor(tensor) for name, tensor in model.state_dict().items() if name not in parameters}
    generation = model.generation_config
    tokenizer = processor.tokenizer
    processor_settings = {
        key: value for key, value in processor.to_dict().items() if key not in ("tokenizer", "chat_template")
    }
    parts = {
        "config": [type(model).__name__, model.config.to_dict(), model.config._attn_implementation],
        "generation": [generation.to_dict() if generation is not None else None, sorted(end_token_ids)],
        "buffers": buffers,
        "chat_template": [processor.chat_template, tokenizer.chat_template],
        "tokenizer": [
            json.loads(tokenizer.backend_tokenizer.to_str()),
            tokenizer.special_tokens_map,
            {key: value for key, value in tokenizer.init_kwargs.items() if key != "chat_template"},
        ],
        "processor": [type(processor).__name__, type(processor.image_processor).__name__, processor_settings],
    }
    return {name: _hash_settings(part) for name, part in parts.items()}


def _hash_settings(value: Any) -> str:
    return hashlib.sha256(json.dumps(_drop_non_settings(value), sort_keys=True, default=str).encode()).hexdigest()


def _drop_non_settings(value: Any) -> Any:
    """The value with its keys as text, without entries that are no settings."""
    if isinstance(value, Mapping):
        return {str(key): _drop_non_settings(each) for key, each in value.items() if str(key) not in _NOT_SETTINGS}
    if isinstance(value, list | tuple):
        return [_drop_non_settings(each) for each in value]
    return value
