"""The prober of a job, as its configuration wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmm_forget.evaluation.engines.hf import generate_answers
from lmm_forget.experiment.references import StoreReferences
from lmm_forget.models.loading import LMM
from lmm_forget.probes.forward_passes import PromptSet
from lmm_forget.probes.probe_config import ProbeConfig
from lmm_forget.probes.prober import Prober, select_evenly_spaced
from lmm_forget.probes.token_sets import find_token_sets
from lmm_forget.recipes.selection import TunePlan
from lmm_forget.store import Store
from lmm_forget.store.keys import KEYED_LIBRARIES, truncate_to_minor_version
from lmm_forget.tasks.sample_set import limit_samples
from lmm_forget.tasks.task_loading import build_task
from lmm_forget.training.train_set import TrainSet

MAX_TOKEN_SET_ANSWERS = 256
"""Training answers of a task that its token set is learned from."""


def build_prober(
    config: Mapping[str, Any],
    lmm: LMM,
    plan: TunePlan,
    train_sets: Mapping[str, TrainSet],
    store: Store,
    references: StoreReferences,
    *,
    base_weights_hash: str,
    fingerprints: Mapping[str, str],
    versions: Mapping[str, str],
) -> Prober | None:
    """The prober, made while the model is the base; None for `probe=none`. Raises ConfigError as `Prober` does."""
    spec = ProbeConfig.from_config(config["probe"])
    if spec is None:
        return None
    bad_sample_policy = config["data"]["on_bad_sample"]
    prompts = []
    for node in config["probe"]["tasks"].values():
        task = build_task(node)
        samples = limit_samples(task.validate_split("test", bad_sample_policy), spec.n, task.name)
        prompts.append(PromptSet(task, node, samples, spec.n, task.fingerprint_split("test")))
    target_answers = {
        name: [
            train_set.task.get_target_answer(train_set.samples[i])
            for i in select_evenly_spaced(len(train_set), MAX_TOKEN_SET_ANSWERS)
        ]
        for name, train_set in train_sets.items()
    }
    prompt_answers = [
        prompt_set.task.get_target_answer(prompt_set.samples[i])
        for prompt_set in prompts
        for i in range(len(prompt_set.samples))
    ]
    identity = {
        "loaded": dict(fingerprints),
        "model": {name: lmm.spec.get(name) for name in ("dtype", "attention", "image")},
        "versions": {name: truncate_to_minor_version(versions[name]) for name in KEYED_LIBRARIES},
    }
    return Prober(
        spec,
        lmm,
        plan,
        prompts,
        find_token_sets(lmm.processor.tokenizer, spec.token_sets, target_answers, prompt_answers),
        generate_greedily=generate_answers,
        store=store,
        weights_hash=base_weights_hash,
        settings_identity=identity,
        batch_size=int(config["hardware"]["eval_batch_size"]),
        record_reference=lambda key: references.record("probes", key),
    )
