"""The tiny LMMs: Hugging Face's model and processor classes with small sizes, and one small tokenizer for all.

All three encode an image of 64 x 64 as 4 x 4 cells of 16 x 16 pixels, the cells in which the synthetic images are
drawn. They have the same decoder size and the same words in the prompt. They differ where the real families differ:
vision tower, projector, positions, and the tokens before and after an image in Qwen's prompt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)

from lmm_forget.tiny.canvas import SIZE
from lmm_forget.tiny.renderers import BENCHMARKS, CAPTIONS, INSTRUCTIONS, SKILLS

WEIGHTS = Path(__file__).parent / "weights"
PATCH = 16
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
_EXTRA = ["<|im_start|>", "<image>", "<video>"]
# ChatML as in LLaVA-OneVision's checkpoints: images first, then the text of the turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Qwen's models separate neighbouring images by the tokens around them, so each image has its own pair of tokens, and
# parts keep the order of the message, as in Qwen2.5-VL's checkpoints. Without images the text equals that of the
# template above; with one image the pair replaces the blank and the line break around the image there.
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
QWEN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] }}"
    "{% if message['content'] is string %}{{ ' \\n' + message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><image><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><video><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}"
    "{% if loop.first %}{{ ' \\n' }}{% elif loop.previtem['type'] == 'text' %}{{ '\\n' }}{% endif %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _iterate_corpus(per_renderer: int = 400) -> Iterator[str]:
    """All texts of the synthetic tasks, with blanks between capitals, so that each capital becomes a token."""
    for name, render in {**SKILLS, **BENCHMARKS, **CAPTIONS}.items():
        for i in range(per_renderer):
            for question in render(random.Random(f"vocabulary/{name}/{i}")).questions:
                for text in (question.text, *question.answers):
                    yield re.sub(r"[A-Z]{2,}", lambda m: " ".join(m.group()), text)
                    yield " " + text.lower()
    for text in INSTRUCTIONS.values():
        yield from [text] * 50
    yield from ["user", "assistant", "system"] * 50


def fit_tokenizer(vocab_size: int = 1024) -> Tokenizer:
    """Fit a byte-level BPE tokenizer to the texts of the synthetic tasks; each digit and capital is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_iterate_corpus(), trainer)
    return bpe


def load_packaged_tokenizer() -> Tokenizer:
    """The tokenizer in the package, the same for all tiny models; `fit_tokenizer` made it."""
    return Tokenizer.from_file(str(WEIGHTS / "tiny_onevision" / "tokenizer.json"))


def _wrap_tokenizer(
    base_tokenizer: Tokenizer | None, extra_tokens: list[str] | dict[str, str], template: str = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    """Add roles of special tokens and the chat template to `base_tokenizer` (None: the tokenizer in the package).

    Tokens of `extra_tokens` that it lacks are appended to its vocabulary.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=base_tokenizer or load_packaged_tokenizer(),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=extra_tokens,
        chat_template=template,
        model_max_length=512,
        padding_side="left",
    )


def build_onevision(base_tokenizer: Tokenizer | None = None) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A LLaVA-OneVision of 3.7 M parameters (random weights): SigLIP tower, projector, six Qwen2 layers.

    An image of 64 x 64 is one base tile and one grid tile of 4 x 4 patches: 36 image tokens.
    """
    tokenizer = _wrap_tokenizer(base_tokenizer, _EXTRA)
    size = {"height": SIZE, "width": SIZE}
    images = {
        "size": size,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_grid_pinpoints": [[SIZE, SIZE]],
    }
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(**images),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(SIZE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(**_make_decoder_settings(tokenizer))
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[SIZE, SIZE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    return _set_stop_tokens(LlavaOnevisionForConditionalGeneration(config), tokenizer), processor


def build_next(base_tokenizer: Tokenizer | None = None) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A LLaVA-NeXT of 3.9 M parameters (random weights): CLIP tower, projector, six Llama layers.

    As in the real models, image features come from the last but one layer of the tower, so its fifth layer is unused.
    An image of 64 x 64 is one base tile and one grid tile of 4 x 4 patches: 36 image tokens.
    """
    tokenizer = _wrap_tokenizer(base_tokenizer, _EXTRA)
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": SIZE},
            crop_size={"height": SIZE, "width": SIZE},
            image_grid_pinpoints=[[SIZE, SIZE]],
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_make_decoder_settings(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=[[SIZE, SIZE]],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return _set_stop_tokens(LlavaNextForConditionalGeneration(config), tokenizer), processor


def build_qwen2_5_vl(base_tokenizer: Tokenizer | None = None) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A Qwen2.5-VL of 3.4 M parameters (random weights): windowed tower with merger, six Qwen2.5 layers with M-RoPE.

    An image of 64 x 64 is 8 x 8 patches in four windows, merged two by two: 16 image tokens, between a start token and
    an end token. Larger images are resized to that number of pixels.
    """
    # Qwen's processor reads the names of these tokens from its tokenizer.
    roles = {"image_token": "<image>", "video_token": "<video>"}
    around = {"vision_bos_token": VISION_START, "vision_eos_token": VISION_END}
    tokenizer = _wrap_tokenizer(base_tokenizer, roles | around, QWEN_CHAT_TEMPLATE)
    size = {"shortest_edge": SIZE * SIZE, "longest_edge": SIZE * SIZE}
    patch = PATCH // 2
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size, patch_size=patch),
        tokenizer,
        Qwen2VLVideoProcessor(size=size, patch_size=patch),
        chat_template=QWEN_CHAT_TEMPLATE,
    )
    decoder = _make_decoder_settings(tokenizer)
    # The sections divide the 16 frequencies of a head in the same ratio as 16, 24 and 24 divide the real model's 64.
    decoder["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": patch,
            "window_size": 2 * PATCH,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": decoder["hidden_size"],
        },
        text_config=decoder,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids(VISION_START),
        vision_end_token_id=tokenizer.convert_tokens_to_ids(VISION_END),
        tie_word_embeddings=False,
    )
    return _set_stop_tokens(Qwen2_5_VLForConditionalGeneration(config), tokenizer), processor


def _make_decoder_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The configuration that the three decoders share."""
    return {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _set_stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Set the end and padding tokens for generation."""
    assert model.generation_config is not None
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


BUILDERS = {"next": build_next, "onevision": build_onevision, "qwen2_5_vl": build_qwen2_5_vl}
