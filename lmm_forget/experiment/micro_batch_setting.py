"""`hardware.micro_batch_size=auto` on a GPU: the largest micro-batch that fits, measured once per kind of job."""

from __future__ import annotations

from dataclasses import replace

import torch

from lmm_forget.experiment.context import JobContext
from lmm_forget.store.keys import hash_json
from lmm_forget.store.measurements import find_micro_batch_size, save_micro_batch_size
from lmm_forget.training.micro_batch_search import find_largest_micro_batch


def resolve_micro_batch(context: JobContext) -> JobContext:
    """The context with a number for `hardware.micro_batch_size=auto`. All ranks must call it.

    Without a GPU the configuration was resolved to the model's own number, and the context is returned as it is.
    """
    hardware = context.config["hardware"]
    if hardware["micro_batch_size"] != "auto":
        return context
    micro_batch_size = _find_or_measure(context)
    return replace(context, config={**context.config, "hardware": {**hardware, "micro_batch_size": micro_batch_size}})


def _find_or_measure(context: JobContext) -> int:
    config, process_group = context.config, context.process_group
    hardware, training = config["hardware"], config["training"]
    conditions = {
        "schema": 3,
        "device": torch.cuda.get_device_name(),
        "memory": torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory,
        "model": {name: context.lmm.spec.get(name) for name in ("dtype", "attention", "image")},
        "loaded": dict(context.fingerprints),
        "plan": hash_json(list(context.plan.trainable)),
        "recipe": config["recipe"],
        "hardware": {name: hardware[name] for name in ("precision", "activation_checkpointing", "compile")},
        "share": int(training["global_batch_size"]) // process_group.size,
        "tasks": {name: train_set.task.fingerprint_split("train") for name, train_set in context.train_sets.items()},
    }
    key = hash_json(conditions)
    context.references.record("measured", key)
    micro_batch_size = process_group.broadcast_from_rank_zero(lambda: find_micro_batch_size(context.store, key))
    if micro_batch_size is None:
        micro_batch_size = measured_size = find_largest_micro_batch(
            context.lmm,
            context.plan,
            context.method,
            list(context.train_sets.values()),
            training_config=training,
            hardware_config=hardware,
            process_group=process_group,
        )
        process_group.broadcast_from_rank_zero(lambda: save_micro_batch_size(context.store, conditions, measured_size))
    context.progress.start_phase(f"micro-batch {micro_batch_size}", 1, "measurement")
    return micro_batch_size
