"""What a processor does to text and images, as one hash: part of every stage key and answer key."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from transformers import ProcessorMixin

# Where it was loaded from, and how it was last called, do not change what it computes.
_NOT_SETTINGS = ("name_or_path", "_name_or_path", "tokenizer_file", "padding", "truncation")


def processor_fingerprint(processor: ProcessorMixin) -> str:
    """SHA-256 (hex) over the chat template, the tokenizer's whole state and the image settings."""
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    images = {k: v for k, v in processor.image_processor.to_dict().items() if k not in _NOT_SETTINGS}
    settings = {
        "tokenizer": {k: v for k, v in tokenizer.items() if k not in _NOT_SETTINGS},
        "template": processor.chat_template or processor.tokenizer.chat_template,
        "images": images,
    }
    text = json.dumps(settings, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> str:
    return str(value)
