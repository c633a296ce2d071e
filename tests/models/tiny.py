"""Tiny random models of the three families with real processors, chat templates and a byte-level tokenizer.

`tiny_lmm("llava_onevision")` builds the real Hugging Face classes with two decoder layers, two tower layers and tiles
of 56 x 56 pixels, in a second and without a network. Keyword arguments change the decoder's configuration
(`num_hidden_layers`, `hidden_size`, `max_position_embeddings`, ...); `tie_word_embeddings`, `vision_feature_layer`,
`vision_layers`, `vision` (extra vision settings), `seed` and `dtype` work for every family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers import LlavaNextImageProcessor as NextImages
from transformers import LlavaOnevisionImageProcessor as OnevisionImages
from transformers import Qwen2VLImageProcessor as QwenImages

from lmm_forget.models.loading import LMM, assemble_model
from lmm_forget.models.registry import resolve_family

FAMILIES = ("llava_onevision", "llava_next", "qwen2_5_vl")

# The chat templates that the real checkpoints ship.
ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{'<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] + '<|eot_id|>' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_SPECIAL = {
    "llava_onevision": [*_CHATML, "<image>", "<video>"],
    "llava_next": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<image>",
        "<pad>",
    ],
    "qwen2_5_vl": [*_CHATML, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
}


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte (ids 0-255) and the family's special tokens from 256 on."""
    if family == "llava_next":
        # Llama-3's tokenizer writes the BOS token itself; its chat template does not.
        roles = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<pad>"}
        return byte_tokenizer(_SPECIAL[family], roles, writes_bos=True)
    return byte_tokenizer(_SPECIAL[family], {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})


def byte_tokenizer(
    special: list[str],
    roles: dict[str, str],
    named: dict[str, str] | None = None,
    *,
    writes_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """One token per byte and the `special` ones behind; `named` become attributes (`tokenizer.image_token`)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if writes_bos:
        core.add_special_tokens(special)
        bos = roles["bos_token"]
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **roles, extra_special_tokens=named or {})
    tokenizer.add_special_tokens({"additional_special_tokens": special}, replace_extra_special_tokens=False)
    return tokenizer


def tiny_processor(family: str, tile: int = 56, patch: int = 14) -> ProcessorMixin:
    """The family's real processor: a `tile` x `tile` base view and one or two tiles (LLaVA), or free size (Qwen)."""
    tokenizer = tiny_tokenizer(family)
    size = {"height": tile, "width": tile}
    if family == "llava_onevision":
        return LlavaOnevisionProcessor(
            image_processor=OnevisionImages(size=size, image_grid_pinpoints=grids(tile)),
            tokenizer=tokenizer,
            video_processor=LlavaOnevisionVideoProcessor(size=size),
            num_image_tokens=(tile // patch) ** 2,
            vision_feature_select_strategy="full",
            chat_template=ONEVISION_TEMPLATE,
        )
    if family == "llava_next":
        return LlavaNextProcessor(
            image_processor=NextImages(size={"shortest_edge": tile}, crop_size=size, image_grid_pinpoints=grids(tile)),
            tokenizer=tokenizer,
            patch_size=patch,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=LLAMA3_TEMPLATE,
        )
    return Qwen2_5_VLProcessor(
        image_processor=QwenImages(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=QWEN_TEMPLATE,
    )


def grids(tile: int) -> list[list[int]]:
    """One, two side by side or two stacked tiles."""
    return [[tile, tile], [tile, 2 * tile], [2 * tile, tile]]


def tiny_config(family: str, tokenizer: PreTrainedTokenizerFast, **config: Any) -> Any:
    """A real configuration of the family; see the module's docstring for the keyword arguments."""
    tie = bool(config.pop("tie_word_embeddings", False))
    feature_layer = config.pop("vision_feature_layer", None)
    vision_layers = config.pop("vision_layers", 2)
    extra: Mapping[str, Any] = config.pop("vision", {})
    text = {
        "model_type": {"llava_next": "llama", "qwen2_5_vl": "qwen2_5_vl_text"}.get(family, "qwen2"),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "tie_word_embeddings": tie,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **config,
    }
    token = tokenizer.convert_tokens_to_ids
    if family == "qwen2_5_vl":
        head = text["hidden_size"] // text["num_attention_heads"]
        text["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [head // 2 - 2 * (head // 8), head // 8, head // 8],
        }
        vision = {
            "depth": vision_layers,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 14,
            "out_hidden_size": text["hidden_size"],
            "fullatt_block_indexes": [vision_layers - 1],
            **extra,
        }
        return Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=token("<|image_pad|>"),
            video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"),
            vision_end_token_id=token("<|vision_end|>"),
            tie_word_embeddings=tie,
        )
    tile = extra.get("image_size", 56)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": 2,
        "image_size": tile,
        "patch_size": 14,
        **extra,
    }
    common = {
        "text_config": text,
        "image_token_index": token("<image>"),
        "image_grid_pinpoints": grids(tile),
        "tie_word_embeddings": tie,
    }
    if family == "llava_onevision":
        vision = {"model_type": "siglip_vision_model", "vision_use_head": False, **vision}
        layer = -1 if feature_layer is None else feature_layer
        return LlavaOnevisionConfig(
            vision_config=vision, video_token_index=token("<video>"), vision_feature_layer=layer, **common
        )
    vision = {"model_type": "clip_vision_model", "projection_dim": 32, **vision}
    layer = -2 if feature_layer is None else feature_layer
    return LlavaNextConfig(vision_config=vision, vision_feature_layer=layer, **common)


def tiny_lmm(family: str, **config: Any) -> LMM:
    """A tiny random LMM of `family` ("llava_onevision", "llava_next" or "qwen2_5_vl") on the CPU, in eval mode.

    The weights depend on `seed` (default 0) only; the global random state is left alone.
    """
    seed, dtype = config.pop("seed", 0), config.pop("dtype", torch.float32)
    patch = config.get("vision", {}).get("patch_size", 14)
    processor = tiny_processor(family, tile=config.get("vision", {}).get("image_size", 56), patch=patch)
    settings = tiny_config(family, processor.tokenizer, **config)
    settings._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = resolve_family(settings).hf_class(settings)
    return assemble_model(model.to(dtype).eval(), processor, {"name": f"tiny_{family}", "family": family})


def picture(width: int = 56, height: int = 56, seed: int = 0) -> Image.Image:
    """A small noise picture."""
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())
