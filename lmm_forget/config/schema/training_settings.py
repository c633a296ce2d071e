"""Settings of what is trained and evaluated: groups `recipe`, `sequence`, `suite`, `training`, `data`, and tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmm_forget.config.schema.setting import Effect, OpenGroup, group, setting
from lmm_forget.config.schema.value_rules import (
    ANYTHING,
    BETAS,
    BOOLEAN,
    NAMES,
    RULE_LIST,
    TEXT,
    choice,
    mapping,
    number,
    positive_number,
    share,
    whole_number,
)

_BOTH = Effect.WEIGHTS | Effect.ANSWERS
TASK_ROLES = ("target", "held_out", "captions")


@dataclass(frozen=True, kw_only=True)
class RecipeSettings(OpenGroup):
    """The `recipe` group: which parameters move, and how."""

    name: str = setting("name in tables and records", TEXT)
    layers: Any = setting(
        "decoder layers that may move: all | upper_half | lower_half | 14:28 | 3 | a list", ANYTHING, default="all"
    )
    learning_rate: float | None = setting(
        "learning rate that suits the recipe; null: the model decides", positive_number(None), default=None
    )
    method: Mapping[str, Any] = setting(
        "class that trains (_target_) and its own fields, see docs/methods.md", ANYTHING, default_factory=dict
    )
    rules: tuple[Mapping[str, Any], ...] = setting("components and sublayers whose tensors move", RULE_LIST, default=())


@dataclass(frozen=True, kw_only=True)
class SequenceSettings(OpenGroup):
    """The `sequence` group: which skills are trained, in which order."""

    name: str = setting("name in tables and records", TEXT)
    tasks: tuple[str, ...] = setting("tasks in the order of training; a name may stand twice", NAMES)
    order: Any = setting(
        "of sequence=order: lexicographic index of a permutation, or the order as a list of positions or names",
        ANYTHING,
        default=None,
    )
    task: str | None = setting("of sequence=single: the one task to train", ANYTHING, default=None)


@dataclass(frozen=True, kw_only=True)
class SubsetSettings:
    """`suite.subset`: a fixed part of each benchmark."""

    samples: int = setting("questions per benchmark", whole_number(1), Effect.ANSWERS)
    seed: int = setting("seed of the hash that chooses them", whole_number(0), Effect.ANSWERS, default=0)
    by: Mapping[str, str] | None = setting(
        "column by benchmark; every group of it keeps its share",
        mapping("a column for each of some benchmarks, e.g. {ai2d: category}", None),
        Effect.ANSWERS,
        default=None,
    )


@dataclass(frozen=True, kw_only=True)
class SuiteSettings(OpenGroup):
    """The `suite` group: the held-out benchmarks evaluated after every stage."""

    name: str = setting("name in tables and records", TEXT, Effect.ANSWERS)
    tasks: tuple[str, ...] = setting("benchmarks, never trained", NAMES, Effect.ANSWERS)
    subset: SubsetSettings | None = group(
        "a fixed part of each benchmark; null: all questions",
        mapping("keys and values, e.g. {samples: 250}", None),
        Effect.ANSWERS,
        schema=SubsetSettings,
        default=None,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The `training` group: how a stage is trained."""

    global_batch_size: int = setting("samples per optimizer step, over all devices and micro-batches", whole_number(1))
    learning_rate: float = setting(
        "peak learning rate; null: the recipe's, else the model's for this recipe, else the model's", positive_number()
    )
    vision_learning_rate: float | None = setting(
        "peak learning rate of the vision tower where a recipe trains it", positive_number(None)
    )
    epochs: float = setting("passes over a task's train split", positive_number())
    max_steps: int | None = setting(
        "optimizer steps after which a stage ends in any case; null: no limit", whole_number(1, None)
    )
    warmup_ratio: float = setting(
        "share of the steps in which the learning rate rises linearly; it then falls along a cosine", share()
    )
    weight_decay: float = setting("weight decay of AdamW", number(0))
    betas: tuple[float, float] = setting("betas of AdamW", BETAS)
    max_grad_norm: float | None = setting("largest gradient norm; null: no clipping", positive_number(None))
    attention_dropout: float | None = setting(
        "dropout on the language model's attention weights while it is trained; null: as the checkpoint has it",
        share(None),
    )
    loss: str = setting(
        "sample_mean: every answer weighs the same, however long; token_mean: every answer token does",
        choice("sample_mean", "token_mean"),
    )
    learning_rate_source: str | None = setting(
        "who chose the learning rate (command line, experiment, training, recipe, model); written, never set",
        ANYTHING,
        Effect.ANSWERS,
        default=None,
    )


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The `data` group: which data the task names refer to."""

    source: str = setting(
        "tiny: the embedded stand-ins (task cub200 means tiny_cub200); real: the data sets themselves",
        choice("tiny", "real"),
    )
    train_samples: int | None = setting("at most so many train samples per task; null: all", whole_number(1, None))
    eval_samples: int | None = setting(
        "at most so many questions per task; null: all", whole_number(1, None), Effect.ANSWERS
    )
    scoring: str = setting(
        "which score results call `value`: strict (this project's definition) | compat (what the public code computes)",
        choice("strict", "compat"),
        Effect.ANSWERS,
    )
    on_bad_sample: str = setting(
        "a sample that cannot be read: fail (ends the job before training, with a count) | skip (left out and counted)",
        choice("fail", "skip"),
    )
    validation: bool = setting(
        "true: score targets on their validation split, for choosing learning rates", BOOLEAN, Effect.ANSWERS
    )


@dataclass(frozen=True, kw_only=True)
class TaskSettings(OpenGroup):
    """One entry of `tasks`: a task's YAML; fields that are not named here are arguments of its class."""

    _target_: str = setting("class of the task", TEXT, _BOTH)
    name: str = setting("name in tables and records", TEXT, _BOTH)
    role: str = setting(
        "target (is trained) | held_out (benchmark) | captions (prompts of probes)", choice(*TASK_ROLES), _BOTH
    )
    max_new_tokens: int = setting("most tokens of an answer", whole_number(1), _BOTH)
    scorer: Mapping[str, Any] | None = setting(
        "class that scores an answer, and its fields", ANYTHING, _BOTH, default=None
    )
    subset: Mapping[str, Any] | None = setting(
        "part of the test split, written from suite.subset: {samples, seed, by}", ANYTHING, _BOTH, default=None
    )
    path: str | None = setting("local copy of the data", ANYTHING, Effect.LOCATION, default=None)
    images_root: str | None = setting(
        "folder that paths of pictures are relative to", ANYTHING, Effect.LOCATION, default=None
    )
    train_path: str | None = setting("local copy of the train split", ANYTHING, Effect.LOCATION, default=None)
    streaming: bool | None = setting(
        "whether rows are read while they are fetched", ANYTHING, Effect.LOCATION, default=None
    )
