"""Hash everything of a loaded model except its weights; part of every stage key and answer key.

Two folders with equal weights can give different answers: by another `rope_theta`, chat template or end token. This
module hashes the content of everything that Transformers reads from a folder and uses, in its loaded form.
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
        # The folder it was loaded from, and the version that wrote it.
        *("name_or_path", "_name_or_path", "_commit_hash", "transformers_version", "architectures"),
        *(
            "vocab_file",
            "merges_file",
            "tokenizer_file",
            "is_local",
            "local_files_only",
            "_from_model_config",
        ),
        # Arguments of the tokenizer's last call.
        *("padding", "truncation"),
    }
)
"""Entries of configurations that do not affect results."""


def fingerprint_model_parts(
    model: PreTrainedModel, processor: ProcessorMixin, end_token_ids: Iterable[int]
) -> dict[str, str]:
    """Part -> SHA-256 (hex), for each part of a loaded model other than its weights that affects answers.

    The parts are `config` (the effective configuration with all sub-configurations and the attention implementation),
    `generation` (generation settings and the tokens that end an answer), `buffers` (tensors of the checkpoint that are
    not parameters), `chat_template`, `tokenizer` and `processor` (image settings and image tokens).
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
    """Remove the entries in `_NOT_SETTINGS` at every level, and convert keys to text."""
    if isinstance(value, Mapping):
        return {str(key): _drop_non_settings(entry) for key, entry in value.items() if str(key) not in _NOT_SETTINGS}
    if isinstance(value, list | tuple):
        return [_drop_non_settings(entry) for entry in value]
    return value
