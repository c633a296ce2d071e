"""Probes models: along their own answers, along given ones, and in their blocks; every result is saved in the store."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lmm_forget.errors import StoreError
from lmm_forget.files import (
    compute_file_checksum,
    dump_json_with_checksum,
    load_json_with_checksum,
    write_atomic,
)
from lmm_forget.models.loading import LMM
from lmm_forget.probes.decoder_blocks import find_decoder_blocks
from lmm_forget.probes.forward_passes import (
    ForcedPositions,
    GreedyGenerator,
    PromptSet,
    make_prompt_batches,
    run_forced_pass,
    run_free_pass,
)
from lmm_forget.probes.output_shift import (
    compute_distribution_metrics,
    compute_logits,
    compute_shift_metrics,
    split_rows,
)
from lmm_forget.probes.position_metrics import PositionMetrics, make_sample_table, summarize_output_shift
from lmm_forget.probes.probe_config import ProbeConfig
from lmm_forget.probes.reference_activations import ReferenceActivations, ReferenceCollector
from lmm_forget.probes.residual_to_logit import BlockContributions, OutputHead, ResidualToLogitProbe
from lmm_forget.probes.token_sets import TokenSet
from lmm_forget.progress import NullProgress, Progress
from lmm_forget.recipes.selection import TunePlan
from lmm_forget.store import probe_cache
from lmm_forget.store.archive import CorruptEntryError, Store
from lmm_forget.store.keys import hash_json, strip_task_paths


@dataclass(frozen=True)
class ProbeResult:
    """The probe result of one model.

    `readings` are aggregates for results.json, `table` has one row per prompt and mode (probes.parquet), `scores` are
    the model's scores by task, if it was evaluated too.
    """

    readings: list[dict[str, Any]]
    table: pa.Table
    scores: dict[str, Any] | None = None


class Prober:
    """Compares models with the base model on some prompts. Build it while `lmm` holds the base's weights.

    `generate_greedily` answers a batch (`GreedyGenerator`), `weights_hash` is the base's. `settings_identity` is what
    decides the base's answers besides weights and prompts (processor, versions, settings of the model).
    `record_reference` is called with the key of every store entry that the results need, so that the store keeps it.
    Raises ConfigError for a model that cannot be probed.
    """

    def __init__(
        self,
        config: ProbeConfig,
        lmm: LMM,
        plan: TunePlan,
        prompt_sets: Sequence[PromptSet],
        token_sets: Mapping[str, TokenSet],
        *,
        generate_greedily: GreedyGenerator,
        store: Store,
        weights_hash: str,
        settings_identity: Mapping[str, Any],
        batch_size: int,
        record_reference: Callable[[str], None] = lambda key: None,
    ) -> None:
        self.config, self.lmm, self.prompt_sets, self.token_sets = config, lmm, list(prompt_sets), dict(token_sets)
        self._generate_greedily, self._record_reference = generate_greedily, record_reference
        self._store, self._batch_size = store, batch_size
        self.base_weights_hash, self._settings_identity = weights_hash, dict(settings_identity)
        self.blocks = find_decoder_blocks(lmm)
        device = lmm.model.device
        self._token_ids = {
            name: torch.tensor(token_set.ids, device=device) for name, token_set in self.token_sets.items()
        }
        head = self._get_current_head()
        trainable_ids = {id(p) for name, p in lmm.model.named_parameters() if name in set(plan.trainable)}
        base_weight = head.weight.detach().clone() if id(head.weight) in trainable_ids else head.weight
        self._base_head = OutputHead(base_weight, head.norm_gain.detach().clone())
        self._references: dict[str, ReferenceActivations] = {}
        self._base_metrics: dict[tuple[str, int], PositionMetrics] = {}

    @torch.no_grad()
    def probe_model(
        self,
        weights_hash: str,
        progress: Progress,
        phase_name: str,
        load_weights: Callable[[], None] = lambda: None,
    ) -> ProbeResult:
        """The result of the model with this hash, from the store if it was probed before.

        `load_weights` puts the model's weights into `lmm`; it is called only if a result is missing in the store.
        """
        missing_prompts = [
            each for each in self.prompt_sets if self.load_result(self._make_result_key(each, weights_hash)) is None
        ]
        progress.start_phase(phase_name, sum(len(prompt_set.samples) for prompt_set in missing_prompts), "prompt")
        if missing_prompts:
            load_weights()
        return _merge_results([self._probe_prompts(each, weights_hash, progress) for each in self.prompt_sets])

    @torch.no_grad()
    def probe_during_training(self, key: str, compute_scores: Callable[[], dict[str, Any]] | None) -> None:
        """Probe the model in the middle of a stage and save the result, with scores if given, under `key`."""
        result = _merge_results([self._compute_result(each, NullProgress()) for each in self.prompt_sets])
        self.save_result(key, ProbeResult(result.readings, result.table, compute_scores() if compute_scores else None))

    @torch.no_grad()
    def measure_drift(self, prompt_set: PromptSet, num_prompts: int, task: str) -> dict[str, float]:
        """How far the model has moved from the base on forced answers to `num_prompts` prompts, by metric.

        kl and js (nats) are means over positions, then samples; nll (nats) and `<set>_mass` (probability) are
        differences of such means from the base's. `trained_mass` is the mass of the token set learned from `task`.
        """
        reference, sample_indices = (
            self._get_reference(prompt_set),
            select_evenly_spaced(len(prompt_set.samples), num_prompts),
        )
        model_metrics = PositionMetrics.create_empty("forced", *_get_sample_ids(prompt_set))
        base_metrics = self._base_metrics.setdefault(
            (prompt_set.task.name, num_prompts),
            PositionMetrics.create_empty("forced", *_get_sample_ids(prompt_set)),
        )
        has_base_metrics = bool(base_metrics.metrics)
        for rows in self._iterate_forced_passes(prompt_set, sample_indices, reference.answers, record_blocks=False):
            base_hidden = reference.get_activations(
                rows.sample_indices, rows.target_tokens, False, rows.target_tokens.device
            ).final_hidden
            _store_sample_metrics(model_metrics, rows, reference, self._compute_shift(rows, base_hidden))
            if not has_base_metrics:
                _store_sample_metrics(
                    base_metrics,
                    rows,
                    reference,
                    self._compute_distribution(base_hidden, rows.target_tokens, self._base_head.weight),
                )

        def average_metric(positions: PositionMetrics, name: str) -> float:
            return float(np.mean([positions.metrics[name][i].mean() for i in sample_indices]))

        drift = {name: average_metric(model_metrics, name) for name in ("kl", "js")}
        drift["nll"] = average_metric(model_metrics, "nll") - average_metric(base_metrics, "nll")
        for name in self.token_sets:
            label = "trained" if name == f"trained:{task}" else name
            drift[f"{label}_mass"] = average_metric(model_metrics, f"mass:{name}") - average_metric(
                base_metrics, f"mass:{name}"
            )
        return drift

    def load_result(self, key: str) -> ProbeResult | None:
        """The result saved under `key`; None if there is none. Raises CorruptEntryError for a damaged one."""
        content = self.load_json(key)
        if content is None:
            return None
        path = self._make_path(key, probe_cache.PARQUET_SUFFIX)
        try:
            if compute_file_checksum(path) != content["table"]:
                raise ValueError("its checksum does not match")
            table = pq.read_table(path)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise CorruptEntryError(
                self._store.quarantine(self._make_path(key, probe_cache.JSON_SUFFIX), f"{path} is damaged: {error}")
            ) from None
        return ProbeResult(content["readings"], table, content["scores"])

    def save_result(self, key: str, result: ProbeResult) -> None:
        """Save a result; the JSON file is written last and marks it as complete."""
        path = self._make_path(key, probe_cache.PARQUET_SUFFIX)
        self._record_reference(key)
        buffer = io.BytesIO()
        pq.write_table(result.table, buffer, compression="zstd")
        with self._store.wrap_write_errors(path):
            write_atomic(path, buffer.getvalue())
        content = {"readings": result.readings, "scores": result.scores, "table": compute_file_checksum(path)}
        self.save_json(key, content)

    def save_json(self, key: str, content: Mapping[str, Any]) -> None:
        """Save plain data under `key`."""
        path = self._make_path(key, probe_cache.JSON_SUFFIX)
        self._record_reference(key)
        with self._store.wrap_write_errors(path):
            write_atomic(path, dump_json_with_checksum(content))

    def load_json(self, key: str) -> dict[str, Any] | None:
        """What `save_json` saved under `key`; None if nothing. Raises CorruptEntryError for a damaged file."""
        path = self._make_path(key, probe_cache.JSON_SUFFIX)
        try:
            content = load_json_with_checksum(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CorruptEntryError(self._store.quarantine(path, f"{path} is damaged: {error}")) from None
        self._record_reference(key)
        return content

    def describe_identity(self) -> dict[str, Any]:
        """What decides a result besides the weights of the probed model, as JSON data; part of every key."""
        return {
            "base": self.base_weights_hash,
            "look": self.config.describe_result_settings(),
            "sets": {name: list(token_set.ids) for name, token_set in self.token_sets.items()},
            "prompts": [self._describe_prompts(each) for each in self.prompt_sets],
            **self._settings_identity,
        }

    def _probe_prompts(self, prompt_set: PromptSet, weights_hash: str, progress: Progress) -> ProbeResult:
        key = self._make_result_key(prompt_set, weights_hash)
        if weights_hash == self.base_weights_hash:
            with self._store.acquire_lease(f"reference-{self._get_reference_path(prompt_set).stem}"):
                self._get_reference(prompt_set)
        if (result := self.load_result(key)) is None:
            with self._store.acquire_lease(f"probe-{key}"):
                if (result := self.load_result(key)) is None:
                    result = self._compute_result(prompt_set, progress)
                    self.save_result(key, result)
        return result

    def _compute_result(self, prompt_set: PromptSet, progress: Progress) -> ProbeResult:
        readings: list[dict[str, Any]] = []
        tables: list[pa.Table] = []
        name, config = prompt_set.task.name, self.config
        token_ids = {label: token_set.ids for label, token_set in self.token_sets.items()}
        if config.output_shift and "free" in config.modes:
            free_metrics = self._run_free_passes(prompt_set)
            readings.append(summarize_output_shift(free_metrics, name, token_ids))
            tables.append(make_sample_table(free_metrics, name, list(self.token_sets)))
        forced_metrics, contributions = self._run_forced_passes(prompt_set)
        if config.output_shift and "forced" in config.modes:
            readings.append(summarize_output_shift(forced_metrics, name, token_ids))
            tables.append(make_sample_table(forced_metrics, name, list(self.token_sets)))
        if contributions is not None:
            readings.append(
                {"probe": "residual_to_logit", "prompts": name, "mode": "forced", **contributions.to_json()}
            )
        progress.advance(len(prompt_set.samples), prompts=name)
        return ProbeResult(readings, pa.concat_tables(tables) if tables else pa.table({}))

    def _run_free_passes(self, prompt_set: PromptSet) -> PositionMetrics:
        positions = PositionMetrics.create_empty("free", *_get_sample_ids(prompt_set))
        for batch in make_prompt_batches(prompt_set, range(len(prompt_set.samples)), self._batch_size):
            for number, text, metrics in run_free_pass(
                self.lmm, self._generate_greedily, prompt_set, batch, self._token_ids
            ):
                positions.set_sample(number, text, metrics)
        return positions

    def _run_forced_passes(self, prompt_set: PromptSet) -> tuple[PositionMetrics, BlockContributions | None]:
        """Run both forced probes in one pass; samples that only one of them needs are run for that probe alone."""
        reference = self._get_reference(prompt_set)
        positions = PositionMetrics.create_empty("forced", *_get_sample_ids(prompt_set))
        block_samples = self._select_block_samples(prompt_set)
        other_samples = (
            sorted(set(range(len(prompt_set.samples))) - set(block_samples)) if self.config.output_shift else []
        )
        contributions = BlockContributions(self.blocks.num_layers) if block_samples else None
        probe = (
            ResidualToLogitProbe(self._get_current_head(), self._base_head, self._token_ids) if block_samples else None
        )
        for sample_indices, with_blocks in ((block_samples, True), (other_samples, False)):
            for rows in self._iterate_forced_passes(
                prompt_set, sample_indices, reference.answers, record_blocks=with_blocks
            ):
                base_activations = reference.get_activations(
                    rows.sample_indices, rows.target_tokens, with_blocks, rows.target_tokens.device
                )
                if self.config.output_shift:
                    _store_sample_metrics(
                        positions, rows, reference, self._compute_shift(rows, base_activations.final_hidden)
                    )
                if with_blocks and probe is not None and contributions is not None:
                    probe.add_activations(rows.activations, base_activations, rows.sample_indices, contributions)
        return positions, contributions

    def _compute_shift(self, forced_positions: ForcedPositions, base_hidden: Tensor) -> dict[str, Tensor]:
        """Metrics [n] of every forced position, against the base's final hidden states `base_hidden` [n, d]."""
        tuned_weight, base_weight = self._get_current_head().weight, self._base_head.weight

        def compute_slice(rows: slice) -> dict[str, Tensor]:
            tuned_logits = compute_logits(forced_positions.activations.final_hidden[rows], tuned_weight)
            metrics = compute_distribution_metrics(tuned_logits, self._token_ids, forced_positions.target_tokens[rows])
            return metrics | compute_shift_metrics(tuned_logits, compute_logits(base_hidden[rows], base_weight))

        return _compute_by_slices(compute_slice, len(base_hidden), tuned_weight.shape[0])

    def _compute_distribution(
        self, final_hidden: Tensor, target_tokens: Tensor, head_weight: Tensor
    ) -> dict[str, Tensor]:
        """Metrics [n] of the distributions alone, from hidden states `final_hidden` [n, d] after the final norm."""

        def compute_slice(rows: slice) -> dict[str, Tensor]:
            return compute_distribution_metrics(
                compute_logits(final_hidden[rows], head_weight), self._token_ids, target_tokens[rows]
            )

        return _compute_by_slices(compute_slice, len(final_hidden), head_weight.shape[0])

    def _iterate_forced_passes(
        self,
        prompt_set: PromptSet,
        sample_indices: Sequence[int],
        answers: Sequence[str],
        *,
        record_blocks: bool,
    ) -> Any:
        for batch in make_prompt_batches(prompt_set, sample_indices, self._batch_size):
            yield run_forced_pass(
                self.lmm, self.blocks, prompt_set, batch, [answers[i] for i, _ in batch], record_blocks
            )

    def _get_reference(self, prompt_set: PromptSet) -> ReferenceActivations:
        """The base's states, from memory, from the store, or computed now (only while `lmm` holds the base)."""
        name = prompt_set.task.name
        if name not in self._references:
            path = self._get_reference_path(prompt_set)
            self._record_reference(path.stem)
            if not path.exists():
                with self._store.wrap_write_errors(path):
                    self._build_reference(prompt_set).save(path)
            try:
                self._references[name] = ReferenceActivations.load(path)
            except StoreError as error:
                raise CorruptEntryError(self._store.quarantine(path, str(error))) from None
        return self._references[name]

    def _build_reference(self, prompt_set: PromptSet) -> ReferenceActivations:
        samples = range(len(prompt_set.samples))
        if self.config.forced_on == "base":
            answers = self._run_free_passes(prompt_set).texts
        else:
            answers = [prompt_set.task.get_target_answer(prompt_set.samples[i]) for i in samples]
        collector, block_samples = ReferenceCollector(answers), self._select_block_samples(prompt_set)
        for sample_indices, record_blocks in (
            (block_samples, True),
            (sorted(set(samples) - set(block_samples)), False),
        ):
            for rows in self._iterate_forced_passes(prompt_set, sample_indices, answers, record_blocks=record_blocks):
                collector.add_batch(rows.sample_indices, rows.target_tokens, rows.activations)
        return collector.build_reference()

    def _select_block_samples(self, prompt_set: PromptSet) -> list[int]:
        return (
            select_evenly_spaced(len(prompt_set.samples), self.config.residual_n)
            if self.config.residual_to_logit
            else []
        )

    def _get_current_head(self) -> OutputHead:
        model: Any = self.lmm.model
        gain: Any = self.blocks.final_norm.weight
        return OutputHead(model.get_output_embeddings().weight, gain)

    def _describe_prompts(self, prompt_set: PromptSet) -> dict[str, Any]:
        return {
            "task": strip_task_paths(prompt_set.task_config),
            "limit": prompt_set.max_samples,
            "data": prompt_set.data_fingerprint,
        }

    def _make_result_key(self, prompt_set: PromptSet, weights_hash: str) -> str:
        return hash_json(
            {
                **self.describe_identity(),
                "prompts": self._describe_prompts(prompt_set),
                "weights": weights_hash,
            }
        )

    def _get_reference_path(self, prompt_set: PromptSet) -> Path:
        """Where the base's states are saved; token sets and modes do not change them, so the key leaves them out."""
        reference_settings = {
            "forced_on": self.config.forced_on,
            "deep": self._select_block_samples(prompt_set),
        }
        relevant_identity = {k: v for k, v in self.describe_identity().items() if k not in ("look", "sets")}
        return self._make_path(
            hash_json({**relevant_identity, **reference_settings, "prompts": self._describe_prompts(prompt_set)}),
            probe_cache.SAFETENSORS_SUFFIX,
        )

    def _make_path(self, key: str, suffix: str) -> Path:
        return self._store.root / probe_cache.PROBES_FOLDER / f"{key}{suffix}"


def select_evenly_spaced(total: int, count: int) -> list[int]:
    """`count` of the numbers 0 … total - 1, evenly spaced from 0 on; all of them if `count` is not smaller."""
    return sorted({k * total // count for k in range(count)}) if count < total else list(range(total))


def _get_sample_ids(prompt_set: PromptSet) -> tuple[list[str], list[str]]:
    samples = [prompt_set.samples[i] for i in range(len(prompt_set.samples))]
    return [sample.id for sample in samples], [sample.image_id for sample in samples]


def _merge_results(results: Sequence[ProbeResult]) -> ProbeResult:
    tables = [result.table for result in results if result.table.num_columns]
    table = pa.concat_tables(tables, promote_options="default") if tables else pa.table({})
    return ProbeResult([reading for result in results for reading in result.readings], table)


def _compute_by_slices(compute_slice: Any, num_rows: int, vocabulary_size: int) -> dict[str, Tensor]:
    """Call `compute_slice` for blocks of rows that fit into memory; concatenates its metrics on the CPU, in fp64."""
    parts = [compute_slice(rows) for rows in split_rows(num_rows, vocabulary_size)]
    return {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}


def _store_sample_metrics(
    position_metrics: PositionMetrics,
    forced_positions: ForcedPositions,
    reference: ReferenceActivations,
    metrics: Mapping[str, Tensor],
) -> None:
    """Split metrics [n] of positions by sample and store each sample's in `position_metrics`."""
    sample = forced_positions.sample_indices.cpu()
    for sample_index in sample.unique().tolist():
        is_of_sample = sample == sample_index
        position_metrics.set_sample(
            sample_index,
            reference.answers[sample_index],
            {name: v[is_of_sample].numpy() for name, v in metrics.items()},
        )
