"""Tiny random models that have no family of their own: Qwen3-VL, InternVL, SmolVLM (Idefics3) and Gemma 3.

`other_lmm("gemma3")` builds the real Hugging Face classes with real processors and the chat formats of the released
checkpoints, in a second and without a network.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from lmm_forget.models.loading import LMM, assemble_model
from tests.models.tiny import QWEN_TEMPLATE, byte_tokenizer

OTHERS = ("qwen3_vl", "internvl", "idefics3", "gemma3")

INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'}}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{{'<|im_end|>\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\\n' }}{% endif %}"
)
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{{ '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHATML_ROLES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
TILE, PATCH = 56, 14


def other_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the special tokens that the processor of `kind` asks for."""
    if kind == "qwen3_vl":
        slots = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
        return byte_tokenizer([*_CHATML, *slots], _CHATML_ROLES)
    if kind == "internvl":
        named = {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
        return byte_tokenizer([*_CHATML, *named.values()], _CHATML_ROLES, named)
    if kind == "idefics3":
        slots = ["<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"]
        roles = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
        places = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
        return byte_tokenizer(["<|im_start|>", "<|im_end|>", *slots, *places], roles)
    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", *named.values()]
    roles = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return byte_tokenizer(special, roles, named, writes_bos=True)


def other_processor(kind: str) -> ProcessorMixin:
    """The real processor of `kind`, cutting pictures into tiles of 56 x 56 where it cuts them."""
    tokenizer = other_tokenizer(kind)
    square = {"height": TILE, "width": TILE}
    if kind == "qwen3_vl":
        size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
        images = Qwen2VLImageProcessor(size=size, patch_size=PATCH)
        return Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    if kind == "internvl":
        images = GotOcr2ImageProcessor(size=square, crop_to_patches=True, min_patches=1, max_patches=2)
        return InternVLProcessor(
            images, tokenizer, InternVLVideoProcessor(size=square), 4, chat_template=INTERNVL_TEMPLATE
        )
    if kind == "idefics3":
        images = Idefics3ImageProcessor(size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE})
        return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=SMOLVLM_TEMPLATE)
    images = Gemma3ImageProcessor(size=square)
    return Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=GEMMA_TEMPLATE)


def other_config(kind: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A real configuration with two decoder layers and two tower layers."""
    token = tokenizer.convert_tokens_to_ids
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tower = {"hidden_size": 24, "intermediate_size": 48, "patch_size": PATCH}
    plain = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": TILE}
    if kind == "qwen3_vl":
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        own = {"depth": 2, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 64}
        return Qwen3VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={**tower, **own, "deepstack_visual_indexes": [0]},
            image_token_id=token("<|image_pad|>"),
            video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"),
            vision_end_token_id=token("<|vision_end|>"),
        )
    if kind == "internvl":
        sizes = {"image_size": (TILE, TILE), "patch_size": (PATCH, PATCH)}
        return InternVLConfig(
            text_config={"model_type": "qwen2", **text},
            vision_config={**plain, **tower, **sizes},
            image_token_id=token("<IMG_CONTEXT>"),
            image_seq_length=4,
            tie_word_embeddings=False,
        )
    if kind == "idefics3":
        return Idefics3Config(
            text_config={"model_type": "llama", **text},
            vision_config={**plain, **tower},
            image_token_id=token("<image>"),
            scale_factor=2,
        )
    return Gemma3Config(
        text_config={**text, "query_pre_attn_scalar": 8, "sliding_window": 64},
        vision_config={**plain, **tower, "model_type": "siglip_vision_model", "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=token("<image_soft_token>"),
        boi_token_index=token("<start_of_image>"),
        eoi_token_index=token("<end_of_image>"),
    )


def other_lmm(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, feature_layer: int | None = None) -> LMM:
    """A tiny random LMM of `kind` (see `OTHERS`) on the CPU, in eval mode; weights depend on `seed` only.

    `feature_layer` is InternVL's `vision_feature_layer`.
    """
    processor = other_processor(kind)
    config = other_config(kind, processor.tokenizer)
    if feature_layer is not None:
        config.vision_feature_layer = feature_layer
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        # Parameters that start at zero would hide whether images reach the decoder.
        for p in model.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.02)
    return assemble_model(model.to(dtype).eval(), processor, {"name": f"tiny_{kind}", "family": "generic"})
