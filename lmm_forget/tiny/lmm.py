"""The tiny LMMs: real Hugging Face classes with small numbers, a small tokenizer, and the real processor."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from lmm_forget.tiny.canvas import SIZE
from lmm_forget.tiny.world import BENCHMARKS, CAPTIONS, INSTRUCTIONS, SKILLS

WEIGHTS = Path(__file__).parent / "weights"
PATCH = 16
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
# ChatML as LLaVA-OneVision's checkpoints carry it: images first, then the text of the turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _corpus(per_renderer: int = 400) -> Iterator[str]:
    """Texts of the world; runs of capitals are spaced out, so that words on signs stay single letters."""
    for name, render in {**SKILLS, **BENCHMARKS, **CAPTIONS}.items():
        for i in range(per_renderer):
            for q in render(random.Random(f"vocabulary/{name}/{i}")).questions:
                for text in (q.text, *q.answers):
                    yield re.sub(r"[A-Z]{2,}", lambda m: " ".join(m.group()), text)
                    yield " " + text.lower()
    for text in INSTRUCTIONS.values():
        yield from [text] * 50
    yield from ["user", "assistant", "system"] * 50


def build_tokenizer(vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer fitted to the world's words; digits and capitals of a sign stay single tokens."""
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
    bpe.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        padding_side="left",
    )


def build_onevision() -> tuple[LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor]:
    """A LLaVA-OneVision of 3.7 M parameters (random weights): SigLIP tower, projector, six Qwen2 layers.

    A picture of 64 x 64 is one base tile and one grid tile of 4 x 4 patches: 36 image tokens.
    """
    tokenizer = build_tokenizer()
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
    text = Qwen2Config(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
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
    model = LlavaOnevisionForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


BUILDERS = {"onevision": build_onevision}
