"""One stage: teach one skill, then ask every question; what it gave is one record in the store."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.distributed.process_group import ALONE, Ranks
from lmm_forget.distributed.stop_signals import at_safe_points, safe_point
from lmm_forget.errors import StoreError
from lmm_forget.evaluation.answers import Answer
from lmm_forget.evaluation.ask import batch_size
from lmm_forget.evaluation.shared import Exam, examine
from lmm_forget.files import write_atomic
from lmm_forget.metrics.summary import results_scores
from lmm_forget.progress import NullProgress, Progress
from lmm_forget.recipes.method import Method, delta_of, parameter_dtypes
from lmm_forget.store import Partial, Store, answering_key, path_keys, stage_key
from lmm_forget.store.care import REFERENCES
from lmm_forget.store.code import user_code
from lmm_forget.store.inputs import training_inputs
from lmm_forget.store.keys import digest
from lmm_forget.training.lessons import Lessons

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM
    from lmm_forget.probes.prober import Look, Prober
    from lmm_forget.probes.watch import StageProbes, Watch
    from lmm_forget.recipes.selection import TunePlan
    from lmm_forget.tracking import Tracker


@dataclass
class Ground:
    """What every stage of a job stands on.

    `hashes` (tensor name -> hash) is the model as the job has reached it. Tensors of stages that came from the store
    are put into `lmm` only when something is to be computed: `pending` says which stage wrote each of them last.
    `notices` are what people should know when the job is done.
    """

    config: Mapping[str, Any]
    job_dir: Path
    lmm: LMM
    plan: TunePlan
    method: Method
    lessons: Mapping[str, Lessons]
    exams: list[Exam]
    store: Store
    progress: Progress
    logger: Tracker | None
    fingerprints: Mapping[str, str]
    """What the loaded model is beside its weights, by part; see `models.fingerprint`."""
    versions: Mapping[str, str]
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the files and the code that the job reads (first rank only); see `store.inputs`."""
    hashes: dict[str, str] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)
    references: dict[str, list[str]] = field(
        default_factory=lambda: {"stages": [], "models": [], "probes": []}
    )
    prober: Prober | None = None
    ranks: Ranks = ALONE
    sifted: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    """(task, asked or taught) -> how many samples were left out, and how many answers are too long to be said."""
    notices: list[str] = field(default_factory=list)

    @property
    def weights(self) -> str:
        """The `weights_hash` of the model as the job has reached it."""
        from lmm_forget.models.weights import weights_hash

        return weights_hash(self.hashes)

    def answering_key(self, weights: str) -> str:
        """Key of everything about asking this job's model with the given `weights_hash` but the question itself."""
        return answering_key(weights, model=self.fingerprints, spec=self.lmm.spec, versions=self.versions)

    def adopt(self, record: Mapping[str, Any]) -> None:
        """Take over a recorded stage; its tensors are read when they are needed."""
        self.hashes.update(record["tensors"])
        self.pending.update(dict.fromkeys(record["tensors"], record["key"]))

    def catch_up(self) -> None:
        """Put the tensors of adopted stages into the model, each once. Raises Damaged if one is not what it was.

        All ranks must call it.
        """
        self.ranks.together(self._catch_up)

    def _catch_up(self) -> None:
        import torch

        parameters = dict(self.lmm.model.named_parameters())
        with torch.no_grad():
            for key in dict.fromkeys(self.pending.values()):
                names = [name for name, stage in self.pending.items() if stage == key]
                for name, tensor in self.store.tensors(key, names):
                    parameters[name].copy_(tensor)
        self.pending.clear()

    def refer(self, kind: str, key: str) -> None:
        """Note in the job's folder that this job rests on something in the store, so that nobody cleans it away.

        What an earlier start of the job rested on stays there until `settle_references`: it may be met again.
        """
        if key not in self.references[kind] and self.ranks.first:
            self.references[kind].append(key)
            self._write_references(self._former())

    def settle_references(self) -> None:
        """The job is done: keep only what it rests on."""
        if self.ranks.first:
            self._write_references({})

    def _former(self) -> dict[str, list[str]]:
        """What the file names so far; nothing where there is none or it belongs to another store."""
        try:
            content = json.loads((self.job_dir / REFERENCES).read_text(encoding="utf-8"))
            known = {kind: [str(key) for key in content[kind]] for kind in self.references}
            return known if content["store"] == str(self.store.root) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write_references(self, former: Mapping[str, list[str]]) -> None:
        kept = {
            kind: [*keys, *(key for key in former.get(kind, []) if key not in keys)]
            for kind, keys in self.references.items()
        }
        text = json.dumps({"store": str(self.store.root), **kept}, indent=1) + "\n"
        write_atomic(self.job_dir / REFERENCES, text, durable=False)


@dataclass(frozen=True)
class Taught:
    """A finished stage: its record, the answers after it, and what this job did for it.

    `effort` holds seconds of teaching and asking, whether the stage was trained by this job, how many questions it
    asked, at which step a saved state was taken up, and whether that kept the promise of equal bytes.
    """

    index: int
    task: str
    record: Mapping[str, Any]
    answers: Mapping[str, list[Answer]]
    effort: Mapping[str, Any]
    probes: StageProbes | None = None


def run_stage(ground: Ground, index: int, task: str) -> Taught:
    """Bring the model from stage `index - 1` to stage `index` (from the store if it was done before) and ask it."""
    started = time.monotonic()
    label = f"stage {index} of {len(ground.config['sequence']['tasks'])}"
    record, effort, watch = _teach(ground, task, f"{label}: teach {task}")
    ground.ranks.on_first(lambda: _remember_path(ground, index, record["key"]))
    taught = time.monotonic()
    answers, asked = ask_all(ground, f"{label}: ask everything")
    asking = time.monotonic() - taught
    effort |= {"teach": taught - started, "ask": asking, "asked": asked}
    if ground.prober is None or watch is None:
        return Taught(index, task, record, answers, effort)
    after = look(ground, f"{label}: probe")
    effort["probe"] = time.monotonic() - taught - asking
    seen = ground.ranks.only_first(lambda: None if after is None else watch.seen(after, record["steps"]))
    return Taught(index, task, record, answers, effort, seen)


def _remember_path(ground: Ground, index: int, key: str) -> None:
    """Leave a hint in the store: which stage this job's configuration led to, from which inputs."""
    inputs = training_inputs(ground.inputs, ground.config["sequence"]["tasks"][:index])
    ground.store.leads_to(path_keys(ground.config)[index - 1], key, inputs)


def look(ground: Ground, phase: str) -> Look | None:
    """What the probes see in the model as the job has reached it, on the first rank; None on others or without them."""
    prober = ground.prober
    if prober is None:
        return None
    ready = ground.catch_up
    if (
        ground.ranks.size > 1
    ):  # the others only wait while the first one looks: they cannot be asked for it then
        ground.catch_up()
        ready = _nothing
    return ground.ranks.only_first(lambda: prober.look(ground.weights, ground.progress, phase, ready=ready))


def _nothing() -> None:
    """Everything is there already."""


def ask_all(ground: Ground, phase: str) -> tuple[dict[str, list[Answer]], int]:
    """The model's answers to every target and every benchmark, by task, and how many were asked for now."""
    model = ground.answering_key(ground.weights)
    ground.refer("models", model)
    return examine(
        ground.lmm,
        model,
        ground.exams,
        ground.store,
        ready=ground.catch_up,
        hardware=ground.config["hardware"],
        progress=ground.progress,
        phase=phase,
        ranks=ground.ranks,
    )


def _teach(ground: Ground, task: str, phase: str) -> tuple[Mapping[str, Any], dict[str, Any], Watch | None]:
    """Train the stage, or take it from the store: (record, what this job did, what was watched on the way)."""
    key, ingredients = stage_key(
        ground.config,
        task,
        parent=ground.weights,
        data=ground.lessons[task].task.fingerprint("train"),
        model=ground.fingerprints,
        versions=ground.versions,
        code={"task": user_code(ground.lessons[task].task), "method": user_code(ground.method)},
    )
    ground.refer("stages", key)
    store, ranks = ground.store, ground.ranks
    watch = ranks.together(lambda: _watch(ground, key, task))

    def finished() -> tuple[Mapping[str, Any] | None, bool]:
        """The stage's record, and whether it is wanted again all the same."""
        record = store.record(key)
        return record, record is not None and _wanted_again(watch, record)

    known, again = ranks.on_first(finished)
    if known is None or again:
        ranks.on_first(lambda: store.require(_bytes_needed(ground), phase))
        with _claim(ground, key, phase):
            known, again = ranks.on_first(finished)
            if known is None or again:
                about = {"task": task, "ingredients": ingredients}
                record, effort = _train(ground, key, about, phase, watch)
                if record["weights_hash"] != ground.weights:
                    if known is not None:
                        raise StoreError(
                            f"stage {key}: trained again for its milestones it gave other weights than those in the "
                            "store (another machine or thread count?); use another store, or probe.retrain=false"
                        )
                    ground.adopt(record)  # somebody else was first, and with other bytes
                return record, effort, watch
    ground.adopt(known)
    return known, {"trained": False}, watch


@contextmanager
def _claim(ground: Ground, key: str, phase: str) -> Iterator[None]:
    """Be the only job that trains this stage; the first rank waits for all of them."""
    ranks, waiting = ground.ranks, ExitStack()
    name = f"stage-{key}"
    with waiting:
        ranks.on_first(
            lambda: (
                waiting.enter_context(
                    ground.store.claim(name, waiting=lambda who: _say_waiting(ground, phase, who))
                )
                and None
            )
        )
        yield


def _watch(ground: Ground, key: str, task: str) -> Watch | None:
    """What is looked at while this stage trains; None without probes."""
    if ground.prober is None:
        return None
    from lmm_forget.probes.watch import Watch

    for exam in ground.exams:
        exam.prepare(
            ground.lmm,
            batch_size(ground.config["hardware"]),
            int(ground.config["hardware"].get("workers") or 0),
        )
    asked = digest([[exam.task.name, exam.keys] for exam in ground.exams])
    return Watch(ground.prober, key, task, lambda: _scores_now(ground), asked)


def _wanted_again(watch: Watch | None, record: Mapping[str, Any]) -> bool:
    """Whether a finished stage is to be trained once more because its milestones are missing."""
    return watch is not None and watch.retrain and bool(watch.missing(record["steps"]))


def _scores_now(ground: Ground) -> dict[str, Any]:
    """Scores of the model in the middle of a training, by task."""
    from lmm_forget.models.weights import model_hashes, weights_hash

    weights = weights_hash(model_hashes(ground.lmm.model))
    model = ground.answering_key(weights)
    ground.refer("models", model)
    hardware = ground.config["hardware"]
    answers, _ = examine(
        ground.lmm, model, ground.exams, ground.store, hardware=hardware, progress=NullProgress(), phase=""
    )
    return {
        task: results_scores(
            [one.value for one in said],
            [one.image_id for one in said],
            [str(one.group) for one in said] if said[0].group is not None else None,
        )
        for task, said in answers.items()
    }


def _train(
    ground: Ground, key: str, about: Mapping[str, Any], phase: str, watch: Watch | None = None
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Train and file the stage; the model is the stage model afterwards.

    A request to stop waits for the next step's state or, behind the last step, for the record.
    """
    with at_safe_points():
        trained = _train_and_file(ground, key, about, phase, watch)
    safe_point()
    return trained


def _train_and_file(
    ground: Ground, key: str, about: Mapping[str, Any], phase: str, watch: Watch | None
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    from lmm_forget.models.weights import tensor_hash
    from lmm_forget.training.determinism import derived_seed
    from lmm_forget.training.fit import fit
    from lmm_forget.training.resume import Resume

    config, lmm, task = ground.config, ground.lmm, about["task"]
    ground.catch_up()
    dtypes = parameter_dtypes(lmm.model)
    ranks = ground.ranks
    partial = Partial(ground.store, key)
    ground.method.prepare(lmm, ground.plan, seed=derived_seed(config["seed"], task))
    fitted = fit(
        lmm,
        ground.plan,
        ground.method,
        ground.lessons[task],
        training=config["training"],
        hardware=config["hardware"],
        seed=config["seed"],
        task=task,
        logger=ground.logger,
        progress=ground.progress,
        phase=phase,
        resume=Resume(partial, int(config["checkpoint_every"])),
        after_step=watch,
        ranks=ranks,
    )
    if watch is not None:
        ranks.on_first(watch.close)
    delta = ground.method.finish(lmm, ground.plan, dtypes, keep=ranks.first)
    moved = ranks.on_first(lambda: {name: tensor_hash(tensor) for name, tensor in delta.items()})
    ground.hashes.update(moved)
    filed = list(moved)
    if config["snapshot"] == "full":
        filed = [name for name, _ in lmm.model.named_parameters()]
        delta = delta_of(lmm.model, filed) if ranks.first else {}
    record = {
        **about,
        "weights_hash": ground.weights,
        "tensors": {name: ground.hashes[name] for name in filed},
        "steps": fitted.steps,
        "loss": fitted.loss,
        "samples": fitted.samples,
        "dropped": fitted.dropped,
        "micro_batch": fitted.micro_batch,
        "seconds": fitted.seconds,
        "exact": fitted.exact,
    }
    if fitted.stopped is not None:
        record["stopped"] = fitted.stopped

    def file() -> Mapping[str, Any]:
        ground.store.commit(key, record, delta)
        partial.drop()
        return ground.store.record(key) or {**record, "key": key}

    effort = {"trained": True, "resumed_at": fitted.resumed, "exact": fitted.exact}
    return ranks.on_first(file), effort


def _bytes_needed(ground: Ground) -> int:
    """Room for a stage: its delta, and two saved states (the new one is whole before the old one goes)."""
    masters_and_moments = 3 * 4 * ground.plan.counts["trainable"]
    return int(ground.plan.delta_bytes + 2 * masters_and_moments)


def _say_waiting(ground: Ground, phase: str, who: str) -> None:
    ground.progress.phase(f"{phase}: wait for {who}, which is at it", 0, "step")
