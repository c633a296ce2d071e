"""Looks at a model: through its own answers, along given ones, and into its blocks; each look is filed in the store."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lmm_forget.errors import StoreError
from lmm_forget.files import file_checksum, sealed, unseal, write_atomic
from lmm_forget.probes.blocks import find_blocks
from lmm_forget.probes.imprint import Imprint, ImprintMaker
from lmm_forget.probes.output_shift import distribution_figures, logits, row_blocks, shift_figures
from lmm_forget.probes.passes import Greedy, Prompts, Rows, batches, forced, free
from lmm_forget.probes.readings import Positions, sample_table, shift_reading
from lmm_forget.probes.residual_to_logit import Contributions, Head, ResidualToLogit
from lmm_forget.probes.spec import Spec
from lmm_forget.probes.token_sets import TokenSet
from lmm_forget.progress import NullProgress, Progress
from lmm_forget.store import looks
from lmm_forget.store.archive import Damaged, Store
from lmm_forget.store.keys import digest, task_view

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.selection import TunePlan


@dataclass(frozen=True)
class Look:
    """What was seen of one model: readings for results.json, and one row per prompt and mode."""

    readings: list[dict[str, Any]]
    table: pa.Table
    scores: dict[str, Any] | None = None


class Prober:
    """Compares models with the base on some prompts. Make it while the model is the base.

    `identity` is what decides the base's answers besides weights and prompts (processor, versions, settings of
    the model); `greedy` answers a batch (see passes.Greedy); `refer(key)` hears what the looks rest on in the store.
    Raises ConfigError for a model that cannot be probed, or token sets the tokenizer does not have.
    """

    def __init__(
        self,
        spec: Spec,
        lmm: LMM,
        plan: TunePlan,
        prompts: Sequence[Prompts],
        sets: Mapping[str, TokenSet],
        *,
        greedy: Greedy,
        store: Store,
        weights: str,
        identity: Mapping[str, Any],
        batch: int,
        refer: Callable[[str], None] = lambda key: None,
    ) -> None:
        self.spec, self.lmm, self.prompts, self.sets = spec, lmm, list(prompts), dict(sets)
        self._greedy, self._store, self._batch, self._refer = greedy, store, batch, refer
        self.base_weights, self._identity = weights, dict(identity)
        self.blocks = find_blocks(lmm)
        device = lmm.model.device
        self._ids = {name: torch.tensor(found.ids, device=device) for name, found in self.sets.items()}
        head = self._live_head()
        moving = {id(p) for name, p in lmm.model.named_parameters() if name in set(plan.trainable)}
        own = head.weight.detach().clone() if id(head.weight) in moving else head.weight
        self._base_head = Head(own, head.gain.detach().clone())
        self._imprints: dict[str, Imprint] = {}
        self._base_figures: dict[tuple[str, int], Positions] = {}

    @torch.no_grad()
    def look(
        self, weights: str, progress: Progress, phase: str, ready: Callable[[], None] = lambda: None
    ) -> Look:
        """Readings of the model whose hash is `weights`; from the store if somebody looked at it before.

        `ready` is called before the model is used, so that one of which everything is known need not be put
        together.
        """
        todo = [p for p in self.prompts if self.filed(self._key(p, weights)) is None]
        progress.phase(phase, sum(len(p.samples) for p in todo), "prompt")
        if todo:
            ready()
        return _join([self._look_at(p, weights, progress) for p in self.prompts])

    @torch.no_grad()
    def look_within(self, key: str, ask: Callable[[], dict[str, Any]] | None) -> None:
        """File under `key` the readings of the model in the middle of a training, with the scores `ask` gives."""
        found = _join([self._compute(prompts, NullProgress()) for prompts in self.prompts])
        self.file(key, Look(found.readings, found.table, ask() if ask else None))

    @torch.no_grad()
    def drift(self, prompts: Prompts, n: int, task: str) -> dict[str, float]:
        """How far the model has moved from the base along the forced answers of `n` prompts, by alarm figure.

        kl and js are means over positions, then samples; nll and `<set>_mass` are differences from the base.
        """
        imprint, chosen = self._imprint(prompts), spaced(len(prompts.samples), n)
        model = Positions.empty("forced", *_ids(prompts))
        base = self._base_figures.setdefault(
            (prompts.task.name, n), Positions.empty("forced", *_ids(prompts))
        )
        known = bool(base.figures)
        for rows in self._walk(prompts, chosen, imprint.answers, deep=False):
            before = imprint.of(rows.sample, rows.target, False, rows.target.device).final
            _spread(model, rows, imprint, self._figures(rows, before))
            if not known:
                _spread(base, rows, imprint, self._own_figures(before, rows.target, self._base_head.weight))

        def mean(positions: Positions, name: str) -> float:
            return float(np.mean([positions.figures[name][i].mean() for i in chosen]))

        found = {name: mean(model, name) for name in ("kl", "js")}
        found["nll"] = mean(model, "nll") - mean(base, "nll")
        for name in self.sets:
            label = "taught" if name == f"taught:{task}" else name
            found[f"{label}_mass"] = mean(model, f"mass:{name}") - mean(base, f"mass:{name}")
        return found

    def filed(self, key: str) -> Look | None:
        """The look filed under `key`, None if there is none. Damaged if it is not what was filed."""
        content = self.noted(key)
        if content is None:
            return None
        path = self._path(key, looks.ROWS)
        try:
            if file_checksum(path) != content["table"]:
                raise ValueError("its checksum does not match")
            table = pq.read_table(path)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise Damaged(
                self._store.set_aside(self._path(key, looks.NOTE), f"{path} is damaged: {error}")
            ) from None
        return Look(content["readings"], table, content["scores"])

    def file(self, key: str, look: Look) -> None:
        """File a look; the JSON file comes last and makes it whole."""
        path = self._path(key, looks.ROWS)
        self._refer(key)
        buffer = io.BytesIO()
        pq.write_table(look.table, buffer, compression="zstd")
        with self._store.writing(path):
            write_atomic(path, buffer.getvalue())
        found = {"readings": look.readings, "scores": look.scores, "table": file_checksum(path)}
        self.note(key, found)

    def note(self, key: str, content: Mapping[str, Any]) -> None:
        """File plain data under `key`."""
        path = self._path(key, looks.NOTE)
        self._refer(key)
        with self._store.writing(path):
            write_atomic(path, sealed(content))

    def noted(self, key: str) -> dict[str, Any] | None:
        """What `note` filed under `key`, None if nothing. Damaged if it is not what was filed."""
        path = self._path(key, looks.NOTE)
        try:
            content = unseal(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Damaged(self._store.set_aside(path, f"{path} is damaged: {error}")) from None
        self._refer(key)
        return content

    def identity(self) -> dict[str, Any]:
        """What decides a look besides the model that is looked at, as JSON data."""
        return {
            "base": self.base_weights,
            "look": self.spec.look(),
            "sets": {name: list(found.ids) for name, found in self.sets.items()},
            "prompts": [self._view(p) for p in self.prompts],
            **self._identity,
        }

    def _look_at(self, prompts: Prompts, weights: str, progress: Progress) -> Look:
        key = self._key(prompts, weights)
        if weights == self.base_weights:
            with self._store.claim(f"imprint-{self._imprint_path(prompts).stem}"):
                self._imprint(prompts)
        if (found := self.filed(key)) is None:
            with self._store.claim(f"probe-{key}"):
                if (found := self.filed(key)) is None:
                    found = self._compute(prompts, progress)
                    self.file(key, found)
        return found

    def _compute(self, prompts: Prompts, progress: Progress) -> Look:
        readings: list[dict[str, Any]] = []
        tables: list[pa.Table] = []
        name, spec = prompts.task.name, self.spec
        ids = {label: found.ids for label, found in self.sets.items()}
        if spec.output_shift and "free" in spec.modes:
            positions = self._free(prompts)
            readings.append(shift_reading(positions, name, ids))
            tables.append(sample_table(positions, name, list(self.sets)))
        along, written = self._forced(prompts)
        if spec.output_shift and "forced" in spec.modes:
            readings.append(shift_reading(along, name, ids))
            tables.append(sample_table(along, name, list(self.sets)))
        if written is not None:
            readings.append(
                {"probe": "residual_to_logit", "prompts": name, "mode": "forced", **written.to_json()}
            )
        progress.advance(len(prompts.samples), prompts=name)
        return Look(readings, pa.concat_tables(tables) if tables else pa.table({}))

    def _free(self, prompts: Prompts) -> Positions:
        positions = Positions.empty("free", *_ids(prompts))
        for batch in batches(prompts, range(len(prompts.samples)), self._batch):
            for number, text, figures in free(self.lmm, self._greedy, prompts, batch, self._ids):
                positions.put(number, text, figures)
        return positions

    def _forced(self, prompts: Prompts) -> tuple[Positions, Contributions | None]:
        """Both forced probes in one pass; samples that only one of them needs are walked for that one alone."""
        imprint = self._imprint(prompts)
        positions = Positions.empty("forced", *_ids(prompts))
        deep = self._deep(prompts)
        shallow = sorted(set(range(len(prompts.samples))) - set(deep)) if self.spec.output_shift else []
        written = Contributions(self.blocks.layers) if deep else None
        probe = ResidualToLogit(self._live_head(), self._base_head, self._ids) if deep else None
        for chosen, inside in ((deep, True), (shallow, False)):
            for rows in self._walk(prompts, chosen, imprint.answers, deep=inside):
                before = imprint.of(rows.sample, rows.target, inside, rows.target.device)
                if self.spec.output_shift:
                    _spread(positions, rows, imprint, self._figures(rows, before.final))
                if inside and probe is not None and written is not None:
                    probe.take(rows.written, before, rows.sample, written)
        return positions, written

    def _figures(self, rows: Rows, before: Tensor) -> dict[str, Tensor]:
        """Figures of every position of `rows` against the base's final states `before` [n, d]."""
        tuned, base = self._live_head().weight, self._base_head.weight

        def some(at: slice) -> dict[str, Tensor]:
            own = logits(rows.written.final[at], tuned)
            figures = distribution_figures(own, self._ids, rows.target[at])
            return figures | shift_figures(own, logits(before[at], base))

        return _by_rows(some, len(before), tuned.shape[0])

    def _own_figures(self, final: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Figures of distributions alone, from states `final` [n, d] behind the final norm."""

        def some(at: slice) -> dict[str, Tensor]:
            return distribution_figures(logits(final[at], weight), self._ids, target[at])

        return _by_rows(some, len(final), weight.shape[0])

    def _walk(self, prompts: Prompts, chosen: Sequence[int], answers: Sequence[str], *, deep: bool) -> Any:
        for batch in batches(prompts, chosen, self._batch):
            yield forced(self.lmm, self.blocks, prompts, batch, [answers[i] for i, _ in batch], deep)

    def _imprint(self, prompts: Prompts) -> Imprint:
        """The base's states, from memory, from the store, or made now (only while the model is the base)."""
        name = prompts.task.name
        if name not in self._imprints:
            path = self._imprint_path(prompts)
            self._refer(path.stem)
            if not path.exists():
                with self._store.writing(path):
                    self._make_imprint(prompts).save(path)
            try:
                self._imprints[name] = Imprint.load(path)
            except StoreError as error:
                raise Damaged(self._store.set_aside(path, str(error))) from None
        return self._imprints[name]

    def _make_imprint(self, prompts: Prompts) -> Imprint:
        samples = range(len(prompts.samples))
        if self.spec.forced_on == "base":
            answers = self._free(prompts).texts
        else:
            answers = [prompts.task.target(prompts.samples[i]) for i in samples]
        maker, deep = ImprintMaker(answers), self._deep(prompts)
        for chosen, inside in ((deep, True), (sorted(set(samples) - set(deep)), False)):
            for rows in self._walk(prompts, chosen, answers, deep=inside):
                maker.take(rows.sample, rows.target, rows.written)
        return maker.imprint()

    def _deep(self, prompts: Prompts) -> list[int]:
        return spaced(len(prompts.samples), self.spec.residual_n) if self.spec.residual_to_logit else []

    def _live_head(self) -> Head:
        model: Any = self.lmm.model
        gain: Any = self.blocks.norm.weight
        return Head(model.get_output_embeddings().weight, gain)

    def _view(self, prompts: Prompts) -> dict[str, Any]:
        return {"task": task_view(prompts.node), "limit": prompts.limit, "data": prompts.data}

    def _key(self, prompts: Prompts, weights: str) -> str:
        return digest({**self.identity(), "prompts": self._view(prompts), "weights": weights})

    def _imprint_path(self, prompts: Prompts) -> Path:
        """Token sets and modes do not change what the base wrote."""
        kept = {"forced_on": self.spec.forced_on, "deep": self._deep(prompts)}
        wanted = {k: v for k, v in self.identity().items() if k not in ("look", "sets")}
        return self._path(digest({**wanted, **kept, "prompts": self._view(prompts)}), looks.STATES)

    def _path(self, key: str, suffix: str) -> Path:
        return self._store.root / looks.PROBES / f"{key}{suffix}"


def spaced(total: int, n: int) -> list[int]:
    """`n` of `total` numbers, evenly spaced from the first on; all of them if there are not more."""
    return sorted({k * total // n for k in range(n)}) if n < total else list(range(total))


def _ids(prompts: Prompts) -> tuple[list[str], list[str]]:
    samples = [prompts.samples[i] for i in range(len(prompts.samples))]
    return [sample.id for sample in samples], [sample.image_id for sample in samples]


def _join(looks: Sequence[Look]) -> Look:
    tables = [look.table for look in looks if look.table.num_columns]
    joined = pa.concat_tables(tables, promote_options="default") if tables else pa.table({})
    return Look([reading for look in looks for reading in look.readings], joined)


def _by_rows(some: Any, n: int, vocabulary: int) -> dict[str, Tensor]:
    """`some(slice)` over blocks of rows, put together on the CPU."""
    parts = [some(at) for at in row_blocks(n, vocabulary)]
    return {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}


def _spread(positions: Positions, rows: Rows, imprint: Imprint, figures: Mapping[str, Tensor]) -> None:
    """Hand each sample its positions' figures."""
    sample = rows.sample.cpu()
    for number in sample.unique().tolist():
        mine = sample == number
        positions.put(number, imprint.answers[number], {name: v[mine].numpy() for name, v in figures.items()})
