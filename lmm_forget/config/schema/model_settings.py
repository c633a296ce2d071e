"""Settings of the `model` group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmm_forget.config.schema.setting import Effect, OpenGroup, group, setting
from lmm_forget.config.schema.value_rules import (
    ANYTHING,
    TEXT,
    TEXT_OR_NULL,
    mapping,
    number,
    positive_number,
    share,
    whole_number,
)

_FILLS = "copied to {}, where it counts, and absent from the resolved configuration"


@dataclass(frozen=True, kw_only=True)
class ImageSettings(OpenGroup):
    """`model.image`: what bounds the tokens of a picture."""

    max_tiles: int | None = setting(
        "tiles that a picture may be cut into beside the base view (LLaVA); null: as the checkpoint has it",
        whole_number(1, None),
        Effect.WEIGHTS | Effect.ANSWERS,
        default=None,
    )
    min_pixels: int | None = setting(
        "fewest pixels after resizing (Qwen2.5-VL); null: as the checkpoint has it",
        whole_number(1, None),
        Effect.WEIGHTS | Effect.ANSWERS,
        default=None,
    )
    max_pixels: int | None = setting(
        "most pixels after resizing (Qwen2.5-VL); null: as the checkpoint has it",
        whole_number(1, None),
        Effect.WEIGHTS | Effect.ANSWERS,
        default=None,
    )


@dataclass(frozen=True, kw_only=True)
class ModelTrainingDefaults(OpenGroup):
    """`model.training`: values that suit the model, which the `training` group takes over."""

    global_batch_size: int | None = setting(
        "default of training.global_batch_size", whole_number(1, None), default=None
    )
    learning_rate: float | None = setting(
        "learning rate where neither training nor the recipe nor learning_rates has one",
        positive_number(None),
        default=None,
    )
    learning_rates: Mapping[str, float] | None = setting(
        "learning rates by recipe name, where one rate does not fit all",
        mapping("rates by recipe, e.g. {lora: 1e-3}", None),
        default=None,
    )
    lora_rank: int | None = setting("rank of recipe=lora; absent: the paper's 256", whole_number(1, None), default=None)
    vision_learning_rate: float | None = setting(
        "default of training.vision_learning_rate", positive_number(None), default=None
    )
    epochs: float | None = setting("default of training.epochs", positive_number(None), default=None)
    max_steps: int | None = setting("default of training.max_steps", whole_number(1, None), default=None)
    warmup_ratio: float | None = setting("default of training.warmup_ratio", share(None), default=None)
    weight_decay: float | None = setting("default of training.weight_decay", number(0, None), default=None)
    max_grad_norm: float | None = setting("default of training.max_grad_norm", positive_number(None), default=None)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(OpenGroup):
    """The `model` group: the LMM that is trained."""

    name: str = setting("name in tables and records", TEXT)
    family: str | None = setting(
        "llava_onevision | llava_next | qwen2_5_vl | generic; null: whatever the checkpoint is",
        TEXT_OR_NULL,
        default=None,
    )
    data_source: str | None = setting(
        "default of data.source: tiny (embedded stand-ins) | real (the data sets themselves)",
        TEXT_OR_NULL,
        default=None,
    )
    hub_id: str | None = setting("repository on the Hugging Face hub", TEXT_OR_NULL, default=None)
    revision: str | None = setting(
        "commit or tag on the hub; null: the newest, and the one that was read is recorded", TEXT_OR_NULL, default=None
    )
    path: str | None = setting(
        "folder with a copy in Hugging Face format, used instead of the hub; package:NAME is an embedded model",
        ANYTHING,
        Effect.LOCATION,
        default=None,
    )
    architecture: str | None = setting(
        "name of the packaged shapes with which `lmm-forget plan` needs neither weights nor a network",
        TEXT_OR_NULL,
        default=None,
    )
    dtype: str | None = setting(
        "numbers that the base is held in: auto (the checkpoint's own) | float32 | bfloat16 | float16",
        TEXT_OR_NULL,
        Effect.WEIGHTS | Effect.ANSWERS,
        default=None,
    )
    attention: str | None = setting(
        "attention implementation: eager | sdpa | flash_attention_2 (has to be installed)",
        TEXT_OR_NULL,
        Effect.WEIGHTS | Effect.ANSWERS,
        default=None,
    )
    image: ImageSettings = group(
        "what bounds the tokens of a picture",
        mapping("keys and values, e.g. {max_tiles: 4}", None),
        Effect.WEIGHTS | Effect.ANSWERS,
        schema=ImageSettings,
        default_factory=ImageSettings,
    )
    micro_batch_size: int | str | None = setting(
        f"samples per forward pass in training; {_FILLS.format('hardware')}",
        whole_number(1, "auto", None),
        Effect.NEITHER,
        default=None,
    )
    eval_batch_size: int | None = setting(
        f"questions per generate call; {_FILLS.format('hardware')}", whole_number(1, None), Effect.NEITHER, default=None
    )
    training: ModelTrainingDefaults = group(
        f"values that suit the model; {_FILLS.format('training')}",
        mapping("keys and values", None),
        schema=ModelTrainingDefaults,
        default_factory=ModelTrainingDefaults,
    )
