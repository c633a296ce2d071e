"""What a stage's key covers: everything that moves a weight, and nothing that does not."""

import copy
from typing import Any

import pytest

from lmm_forget.store.keys import (
    FIELDS_WITHOUT_WEIGHT_EFFECT,
    compute_config_keys,
    compute_response_cache_key,
    compute_stage_key,
    diff_ingredients,
    select_training_config,
    truncate_to_minor_version,
)

CONFIG: dict[str, Any] = {
    "name": "demo",
    "seed": 0,
    "store": "multirun/.store",
    "checkpoint_every": 100,
    "objective": "heldout_forgetting",
    "model": {"name": "m", "path": "somewhere", "dtype": "float32", "attention": "eager"},
    "recipe": {"name": "sa_proj", "rules": [{"component": "language"}], "layers": "all"},
    "sequence": {"name": "paper", "tasks": ["a", "b"]},
    "suite": {"name": "paper", "tasks": ["h"]},
    "probe": {"name": "none"},
    "training": {"global_batch_size": 8, "learning_rate": 1e-4, "learning_rate_source": "model"},
    "data": {"source": "tiny", "train_samples": None, "eval_samples": None, "validation": False},
    "hardware": {
        "accelerator": "cpu",
        "precision": "bf16",
        "micro_batch_size": 8,
        "threads": 1,
        "max_parallel_jobs": "auto",
        "devices": 1,
    },
    "logger": {"name": "csv"},
    "tasks": {"a": {"n_train": 10}, "b": {"n_train": 20}, "h": {"n_test": 5}},
}
REST: dict[str, Any] = {
    "parent_weights_hash": "p",
    "data_fingerprint": "d",
    "model_fingerprints": {"config": "c", "chat_template": "x"},
    "versions": {
        "torch": "2.14.1+cpu",
        "torchvision": "0.29.1",
        "transformers": "5.23.0",
        "tokenizers": "0.23.3",
        "lightning": "2.6.6",
    },
}


def key(config: dict[str, Any] = CONFIG, task: str = "a", **changes: Any) -> str:
    return compute_stage_key(config, task, **{**REST, **changes})[0]


def changed(path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    node = config
    for part in parents:
        node = node[part]
    node[last] = value
    return config


@pytest.mark.parametrize(
    "path",
    [
        "name",
        "store",
        "logger",
        "checkpoint_every",
        "objective",
        "suite",
        "probe.name",
        "sequence",
        "model.path",
        "hardware.micro_batch_size",
        "hardware.threads",
        "hardware.max_parallel_jobs",
        "hardware.devices",
        "hardware.nodes",
        "hardware.num_workers",
        "hardware.eval_batch_size",
        "data.eval_samples",
        "data.validation",
        "data.scoring",
        "training.learning_rate_source",
        "tasks.b",
        "tasks.h",
    ],
)
def test_what_moves_no_weight_is_not_in_the_key(path: str) -> None:
    assert key(changed(path, "other")) == key()


@pytest.mark.parametrize(
    "path",
    [
        "seed",
        "model.name",
        "model.dtype",
        "model.attention",
        "recipe.layers",
        "recipe.rules",
        "training.learning_rate",
        "training.global_batch_size",
        "data.source",
        "data.train_samples",
        "hardware.precision",
        "hardware.accelerator",
        "tasks.a.n_train",
        # Fields that do not exist yet count until somebody lists them.
        "a_new_field",
        "training.a_new_field",
        "hardware.a_new_field",
        "recipe.a_new_field",
    ],
)
def test_everything_else_is(path: str) -> None:
    assert key(changed(path, "other")) != key()


def test_moving_a_tasks_files_changes_nothing() -> None:
    assert key(changed("tasks.a", {"n_train": 10, "path": "elsewhere", "images_root": "there"})) == key()


def test_the_short_list_is_the_one_in_the_design() -> None:
    assert FIELDS_WITHOUT_WEIGHT_EFFECT["hardware"] >= {
        "devices",
        "nodes",
        "micro_batch_size",
        "num_workers",
        "threads",
    }
    assert FIELDS_WITHOUT_WEIGHT_EFFECT[""] >= {
        "logger",
        "store",
        "name",
        "paths",
        "progress",
        "checkpoint_every",
        "suite",
        "probe",
    }
    assert sum(map(len, FIELDS_WITHOUT_WEIGHT_EFFECT.values())) < 26


def test_parent_data_model_code_and_minor_versions_count() -> None:
    others = [
        key(parent_weights_hash="q"),
        key(data_fingerprint="e"),
        key(model_fingerprints={"config": "c", "chat_template": "y"}),
        key(task="b"),
        key(code_fingerprints={"method": "1"}),
        key(code_fingerprints={"task": "1"}),
        key(code_fingerprints={"task": "2"}),
    ]
    assert len({key(), *others}) == len(others) + 1
    assert key(code_fingerprints={"task": None}) == key()
    newer = {"torch": "2.14.9", "torchvision": "0.29.7", "transformers": "5.23.7", "tokenizers": "0.23.9"}
    assert key(versions={**newer, "lightning": "3"}) == key()
    for name in newer:
        assert key(versions={**newer, name: "99.0"}) != key()


def test_equal_prefixes_of_two_orders_share_their_stages() -> None:
    other = changed("sequence.tasks", ["a", "c"])
    assert key(other) == key()


def test_the_view_does_not_alias_the_configuration() -> None:
    before = copy.deepcopy(CONFIG)
    view = select_training_config(CONFIG, "a")
    view["task"]["n_train"] = 0
    view["training"]["learning_rate"] = 0
    assert before == CONFIG


def answering(weights: str = "w", **changes: Any) -> str:
    usual = {
        "model_fingerprints": REST["model_fingerprints"],
        "model_config": CONFIG["model"],
        "versions": REST["versions"],
    }
    return compute_response_cache_key(weights, **{**usual, **changes})


def test_answers_depend_on_weights_model_numerics_and_versions() -> None:
    others = [
        answering("v"),
        answering(model_fingerprints={"config": "d", "chat_template": "x"}),
        answering(model_config={**CONFIG["model"], "attention": "sdpa"}),
        answering(model_config={**CONFIG["model"], "dtype": "bfloat16"}),
        answering(versions={**REST["versions"], "torch": "2.15"}),
    ]
    assert len({answering(), *others}) == len(others) + 1
    assert answering(model_config={**CONFIG["model"], "path": "elsewhere"}) == answering()


def test_paths_of_equal_beginnings_are_equal_as_far_as_they_go() -> None:
    one = changed("sequence.tasks", ["a", "b"])
    assert compute_config_keys(one)[:1] == compute_config_keys(changed("sequence.tasks", ["a"]))
    assert compute_config_keys(one) != compute_config_keys(changed("sequence.tasks", ["b", "a"]))
    assert not set(compute_config_keys(one)) & set(compute_config_keys({**one, "seed": 99}))
    assert compute_config_keys({**one, "store": "elsewhere"}) == compute_config_keys(one)


def test_the_difference_of_two_keys_is_named() -> None:
    _, first = compute_stage_key(CONFIG, "a", **REST)
    _, second = compute_stage_key({**CONFIG, "seed": 99}, "a", **{**REST, "parent_weights_hash": "q"})
    assert diff_ingredients(first, first) == []
    assert {name: (one, other) for name, one, other in diff_ingredients(first, second)} == {
        "config.seed": (CONFIG["seed"], 99),
        "parent": (REST["parent_weights_hash"], "q"),
    }


def test_minor_versions() -> None:
    assert (
        truncate_to_minor_version("2.14.1+cpu"),
        truncate_to_minor_version("5.23.0"),
        truncate_to_minor_version("5"),
    ) == ("2.14", "5.23", "5")
