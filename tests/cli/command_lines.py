"""Command lines that must be refused or may only print, made by chance from a seed for `test_command_lines.py`.

Every line is a module of the package and its words. `world` makes the folder they are given in: a sweep with a finished
job and an interrupted one, a store, data, and a user's folders of YAMLs, good ones and broken ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lmm_forget.config import compose_config, resolve_config
from lmm_forget.launch.job_folders import Job, prepare_job_folders
from lmm_forget.store import Store
from tests.report.conftest import make_results, put_job

REFUSED, EITHER = (2,), (0, 2)
CONF = 'a "conf" ${x}, [y]=z'
TASK = """\
_target_: lmm_forget.tasks.jsonl.JsonlTask
role: target
path: data.jsonl
max_new_tokens: 8
scorer: {_target_: lmm_forget.tasks.scoring.exact.ExactMatchScorer}
"""
BROKEN = {
    "latin": "name: caf\xe9\n".encode("latin-1"),
    "utf16": "name: a\n".encode("utf-16"),
    "tabs": b"name: a\n\tb: 3\n",
    "twice": b"name: a\nname: b\n",
    "list": b"- 1\n- 2\n",
    "scalar": b"just a word\n",
    "number": b"3\n",
    "empty": b"",
    "null": b"null\n",
    "brackets": b"name: [1\n",
    "cycle": b"defaults: [x]\nname: x\n",
    "nowhere": b"defaults: [nope]\nname: x\n",
    "interpolation": b"name: ${nope}\n",
    "unclosed": b"name: ${nope\n",
    "alias": b"name: *nope\n",
    "tag": b"name: !!python/object:os.system x\n",
    "control": b"name: \x00\n",
    "key": b"{a: 1}: 2\n",
    "bare": b"rules: 3\n",
}


@dataclass(frozen=True)
class Line:
    """A command line, and the exit codes that are right for it."""

    module: str
    words: tuple[str, ...]
    codes: tuple[int, ...] = REFUSED


def world(root: Path) -> None:
    """Make the folder that command lines are given in."""
    (root / "tmp").mkdir(parents=True)
    (root / "data.jsonl").write_text('{"id": "a", "image": "a.png", "question": "?", "answer": "b"}\n')
    (root / CONF / "task").mkdir(parents=True)
    (root / CONF / "task" / "mine.yaml").write_text(TASK)
    (root / CONF / "experiment").mkdir()
    for name, text in (("run", "run: {dir: x}"), ("sweep", "sweep: {dir: x}"), ("job", "job: {chdir: true}")):
        (root / CONF / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\nhydra:\n  {text}\n")
    for kind, content in BROKEN.items():
        for group in ("recipe", "task", "experiment", "model", "sequence"):
            (root / "bad" / kind / group).mkdir(parents=True)
            (root / "bad" / kind / group / "x.yaml").write_bytes(content)
    (root / "bad" / "folder" / "recipe" / "x.yaml").mkdir(parents=True)
    (root / "bad" / "folder" / "task" / "x.yaml").mkdir(parents=True)
    for group in ("recipe", "task"):
        (root / "bad" / "link" / group).mkdir(parents=True)
        (root / "bad" / "link" / group / "x.yaml").symlink_to("nowhere.yaml")
    sweep = root / "multirun" / "demo"
    done = make_results("sa_proj", job="done", n=6)
    put_job(sweep, results=done)
    stages = [stage["key"] for stage in done["stages"]]
    (sweep / "done" / "store.json").write_text(json.dumps({"store": "x", "stages": stages, "models": [], "probes": []}))
    words = ["name=demo", "recipe=llm", "store=multirun/.store", "data.train_samples=8"]
    config = resolve_config(compose_config(words))
    config["store"] = str(root / "multirun" / ".store")
    interrupted = Job("llm-paper-seed0", sweep / "llm-paper-seed0", config)
    finished = Job("sa_proj-paper-seed0", sweep / "sa_proj-paper-seed0", {**config, "seed": 5})
    prepare_job_folders([interrupted, finished])
    for name, text in (
        ("status.json", '{"state": "interrupted"}'),
        ("training.csv", "stage,task,step\n1,tiny_cub200,1\n"),
        ("job.log", "train tiny_cub200\n"),
    ):
        (interrupted.folder / name).write_text(text)
    (finished.folder / "results.json").write_text(
        json.dumps(make_results(job="sa_proj-paper-seed0", n=6), default=str)[:-200]
    )
    store = Store(root / "multirun" / ".store")
    for key in ("aaaa1111", "aaaa2222"):
        folder = store.get_stage_folder(key)
        folder.mkdir(parents=True)
        (folder / "record.json").write_text("{}")


VALUES = (
    "",
    "null",
    "-1",
    "1e999",
    "nan",
    "[]",
    "{}",
    "[1,2]",
    "{a: 1}",
    "${x}",
    "${oc.env:NOPE}",
    "${",
    "'",
    '"',
    "'a",
    "a b",
    "\u2603",
    "\x00",
    "\x1b[31m",
    "\u202e",
    "a\nb",
    "x" * 3000,
    "9" * 400,
    "../x",
    "/",
    "~",
    "*",
    "%s",
    "!!python/name:os.system",
    "\ud800",
)
"""Values that fit nothing that has a type or a list of choices."""
TYPED = (
    "seed",
    "training.epochs",
    "training.max_steps",
    "training.global_batch_size",
    "training.learning_rate",
    "training.warmup_ratio",
    "training.betas",
    "training.loss",
    "data.source",
    "data.validation",
    "data.on_bad_sample",
    "hardware.threads",
    "hardware.devices",
    "hardware.precision",
    "hardware.accelerator",
    "hardware.max_parallel_jobs",
    "objective",
    "snapshot",
    "checkpoint_every",
    "sweep.submit_only",
    "recipe",
    "model",
    "sequence",
    "suite",
    "experiment",
    "hardware",
    "logger",
    "probe",
    "name",
    "sequence.tasks",
    "suite.tasks",
)
NULLABLE = {
    "training.max_steps",
    "experiment",
    "probe",
    "hardware.attention",
    "training.vision_learning_rate",
}
WORDS = (
    "run =3",
    "=",
    "+",
    "++",
    "~",
    "~~",
    "=3",
    "+=3",
    "~recipe",
    "~hydra/launcher",
    "~model=tiny_onevision",
    "a",
    "recipe",
    "recipe llm",
    "recipe=llm,mlp",
    "seed=0,1",
    "seed==1",
    "a=b=c",
    "a.b.c=1",
    "+tasks.nope.path=x",
    "+tasks.tiny_ai2d=3",
    "+tasks.tiny_ai2d.max_new_tokens=x",
    "+tasks.tiny_ai2d.role=x",
    "tasks=3",
    "tasks=[1]",
    "training=null",
    "training=[default]x",
    "+training=x",
    "recipe.nope=3",
    "recipe@x=llm",
    "recipe=[llm",
    "hydra=3",
    "hydra=null",
    "hydra.sweeper=5",
    "hydra.sweeper=null",
    "hydra.launcher=x",
    "hydra.launcher={}",
    "+hydra.launcher=3",
    "hydra.launcher.grace=x",
    "hydra.launcher._target_=os.system",
    "+hydra.launcher.nope=1",
    "hydra/launcher=nope",
    "hydra/launcher=3",
    "hydra/sweeper=nope",
    "hydra/nope=3",
    "hydra.run.dir=x",
    "++hydra.run.dir=x",
    "hydra.sweep.dir=x",
    "hydra.sweep.subdir=x",
    "hydra.job.chdir=true",
    "hydra.output_subdir=.hydra",
    "+hydra.job.env_set.X=1",
    "hydra.mode=5",
    "hydra.mode=RUN",
    "hydra.verbose=true",
    "+hydra.callbacks.x=3",
    "hydra.searchpath=3",
    "hydra.runtime.cwd=x",
    "--nope",
    "--nope=3",
    "-x",
    "--config-dir=",
    "--config-name=nope",
    "--experimental-rerun=x",
    "sequence.order=3",
    "probe.n=3",
    "+suite.subset.samples=0",
    "+suite.subset=3",
    "+suite.subset={samples: 2, by: 3}",
    "sequence={name: x}",
    "model={name: x}",
    "model.name=[1]",
    "recipe.name=null",
    "recipe.name={a: 1}",
    "model.training=3",
    "model.training.learning_rates=3",
    "suite.tasks=[tiny_ai2d,tiny_ai2d]",
    "suite.tasks=[[1]]",
    "sequence.tasks=[nope]",
    "store=null",
    "store=3",
    "logger=null",
    "data={}",
    "\ufeffseed=1",
    "ｓeed=1",
    "seed=１²",
)
"""Words that no run takes."""
WHOLE = (
    ("run", "hardware=gpu"),
    ("run", "name=demo", "recipe=llm", "data.train_samples=8", "hardware=gpu"),
    ("run", "-m", "name=demo", "hardware=gpu", "seed=0,1"),
    ("run", "name=demo", "recipe=sa_proj", "data.train_samples=8"),
    ("run", "hardware.nodes=2"),
    ("run", "-m", "hardware.nodes=2", "seed=0,1"),
    ("run", "sweep.submit_only=true"),
    ("run", "-m", "sweep.submit_only=true", "seed=0,1"),
    ("run", "hydra/launcher=slurm"),
    ("run", "-m", "hydra/launcher=slurm", "seed=0,1"),
    ("run", "-m", "hydra/launcher=slurm", "hydra.launcher.time=x", "seed=0,1"),
    ("run", "-m", "hydra/launcher=slurm", "+hydra.launcher.nope=x", "seed=0,1"),
    ("run", "model.path=nowhere"),
    ("run", "model=other", "model.path=bad"),
    ("run", "-m", "name=demo", "model.path=nowhere,elsewhere"),
    ("run", "--config-dir", CONF, "sequence=single", "sequence.task=mine", "+tasks.mine.path=nowhere.jsonl"),
    ("run", "--config-dir", CONF, "sequence=single", "sequence.task=mine", "+tasks.mine.path=multirun"),
    ("run", "-m", "--config-dir", CONF, "sequence=single", "sequence.task=mine", "+tasks.mine.path=a,b"),
    *(
        ("run", *more, "--config-dir", CONF, f"experiment={name}")
        for name in ("run", "sweep", "job")
        for more in ((), ("-m",))
    ),
    ("run", "-m", "hydra.sweep.dir=x", "seed=0,1"),
    ("run", "-m", "hydra.mode=RUN", "name=a,b"),
    ("run", "-m", "experiment=demo,why"),
    ("run", "-m", "seed=interval(0,1)"),
    ("run", "-m", "seed=glob(*)"),
    ("run", "-m", "hydra/launcher=basic", "seed=-1,-2"),
    ("run", "-m", "hydra/sweeper=nope", "seed=0,1"),
    ("run", "-m", "hydra.sweeper.max_batch_size=0", "seed=-1,-2"),
    ("run", "-m", "name=a,b"),
    ("run", "-m", "seed=0,x"),
    ("run", "-m", "--cfg", "job"),
    ("run", "--cfg", "nope"),
    ("run", "--resolve"),
    ("run", "--package", "x"),
    ("run", "--config-dir"),
    ("run", "--config-dir", ""),
    ("run", "--config-dir", "nowhere"),
    ("run", "--config-dir", "data.jsonl"),
    ("run", "--config-dir", CONF, "--config-dir", CONF),
    ("run", "--config-path", "nowhere"),
    ("run", "--config-name", ""),
    ("plan", "--config-dir", "nowhere"),
    ("plan", "format=json", "format=json"),
    ("dashboard",),
    ("dashboard", "entity="),
    ("dashboard", "entity=me", "entity=you"),
    ("cli", "nope"),
    ("cli", ""),
    ("job",),
    ("job", "nowhere/job.yaml"),
    ("job", "data.jsonl"),
    ("job", "multirun"),
    ("job", ""),
    ("store",),
)
PLACES = (
    "",
    "nowhere",
    "data.jsonl",
    "bad",
    "multirun",
    "multirun/demo/nope",
    "multirun/demo/done/results.json",
    "\x01",
    "x" * 300,
)


def lines(seed: int, count: int) -> Iterator[Line]:
    """`count` lines; all of WHOLE and all broken YAMLs among them as far as there is room, the others by chance."""
    chance = random.Random(seed)
    fixed = [Line(words[0], words[1:]) for words in WHOLE]
    for kind in (*BROKEN, "folder", "link"):
        fixed += [Line(*each) for each in broken(kind)]
    chance.shuffle(fixed)
    makers: list[Callable[[random.Random], Line]] = [
        typed,
        worded,
        worded,
        stored,
        stored,
        looked,
        asked,
        exported,
        garbage,
    ]
    for number in range(count):
        yield fixed.pop() if fixed and number % 2 == 0 else chance.choice(makers)(chance)


def broken(kind: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Commands that read a YAML of this kind."""
    where = ("--config-dir", f"bad/{kind}")
    yield "run", ("recipe=x", *where, "sweep.dry_run=true")
    yield "run", ("sequence=single", *where, "sequence.task=x", "sweep.dry_run=true")
    if kind == "nowhere":
        yield "run", (*where, "experiment=x", "sweep.dry_run=true")
    if kind in ("latin", "tabs", "list"):
        yield "plan", ("recipe=x", *where)
        yield "dashboard", ("entity=me", *where, "model=x", "format=json")
        yield "run", ("-m", "recipe=llm,x", *where, "sweep.dry_run=true")
    yield "data", ("check", "task=x", *where)


def mixed(chance: random.Random, *words: str) -> tuple[str, ...]:
    """The same words in another order."""
    return tuple(chance.sample(words, len(words)))


def typed(chance: random.Random) -> Line:
    """A field with a value that it cannot hold."""
    key = chance.choice(TYPED)
    value = chance.choice([value for value in VALUES if not (value in ("null", "") and key in NULLABLE)])
    if key == "name" and value in ("null", "-1", "nan", "1e999", "9" * 400):
        value = "../x"
    sure = not (key in ("training.epochs", "training.learning_rate", "training.max_steps", "seed") and value.isdigit())
    if key in (
        "training.global_batch_size",
        "hardware.threads",
        "hardware.devices",
        "hardware.max_parallel_jobs",
        "checkpoint_every",
    ):
        sure = not value.isdigit()
    sure &= value != "\ud800"
    module = chance.choice(("run", "run", "dashboard"))
    more = ("sweep.dry_run=true",) if module == "run" else ("entity=me", "format=json")
    return Line(module, mixed(chance, f"{key}={value}", *more), REFUSED if sure else EITHER)


def worded(chance: random.Random) -> Line:
    """A word that no run takes, among good ones."""
    module = chance.choice(("run", "run", "run", "plan", "dashboard"))
    word = chance.choice(WORDS)
    good = chance.sample(("seed=1", "recipe=mlp", "data.eval_samples=3", "+tasks.tiny_ai2d.max_new_tokens=2"), 2)
    if word.lstrip("+").startswith(("seed", "recipe", "+tasks", "tasks", "~recipe")):
        good = ["data.eval_samples=3"]
    more = {"run": ("sweep.dry_run=true",), "dashboard": ("entity=me", "format=json"), "plan": ("model=nope",)}
    codes = EITHER if module == "dashboard" else REFUSED  # it takes what a run refuses only when it starts
    return Line(module, mixed(chance, word, *good, *more[module]), codes)


def stored(chance: random.Random) -> Line:
    """The store's command with keys and options that are none."""
    command = chance.choice(("ls", "show", "explain", "verify", "gc", "rm", "", "RM", "rm "))
    keys = chance.choices(
        ("", " ", "aaaa", "a", "zz", "*", "aaaa1111", "../aaaa1111", "\u2603", "x" * 300),
        k=chance.randint(1, 2),
    )
    options = chance.sample(
        (
            "store=",
            "store=nowhere",
            "apply=yes",
            "force=maybe",
            "runs=",
            "runs=nowhere",
            "format=xml",
            "nope=1",
            "-x",
        ),
        1,
    )
    return Line("store", (command, *mixed(chance, *keys, *options)))


def looked(chance: random.Random) -> Line:
    """A command that reads a sweep's or a job's folder, given something else."""
    module = chance.choice(("status", "report", "why"))
    place = chance.choice(PLACES)
    words = chance.choice(
        (
            (place,),
            (place, "format=json"),
            ("multirun/demo", "format=pdf"),
            ("multirun/demo", place),
            ("multirun/demo", "nope=1"),
            ("multirun/demo", "--nope"),
            (),
        )
    )
    if words and words[0] == "bad" and module == "report":
        words = ("nowhere",)
    return Line(module, words)


def asked(chance: random.Random) -> Line:
    """`compare` and `data` with mistakes."""
    if chance.random() < 0.5:
        place = chance.choice((*PLACES, "multirun/demo/done@9", "multirun/demo/done@x", "multirun/demo/done@"))
        words = chance.choice(
            (
                (place, "multirun/demo/done"),
                (place,),
                (
                    "multirun/demo/done",
                    "--fail-if",
                    chance.choice(("x", "heldout <", "nope < 1", "", "heldout < \u2603")),
                ),
                ("multirun/demo/done", "--fail-if"),
                ("multirun/demo/done@base",),
                (),
                ("a", "b", "c"),
                ("multirun/demo/done", "format=xml"),
            )
        )
        if words == ("multirun",) or words[:1] == ("multirun",):
            words = ("nowhere",)
        return Line("compare", words)
    value = chance.choice(VALUES[2:])
    words = chance.choice(
        (
            (),
            ("check",),
            ("nope", "task=mine"),
            ("check", f"task={value}"),
            (
                "check",
                "task=tiny_ai2d",
                f"samples={chance.choice(('0', '-1', 'x', '', '1.5', chr(0xB2)))}",
                "sheet=none",
            ),
            ("check", "task=tiny_ai2d", "sheet=x.jpg"),
            ("check", "task=tiny_ai2d", "sheet=multirun"),
            ("check", "task=tiny_ai2d", "nope=3"),
            ("check", "task=tiny_ai2d", "task.nope=3", "sheet=none"),
            ("check", "task=mine", "--config-dir", CONF, "task.path=nowhere.jsonl", "sheet=none"),
            ("check", "task=mine", "--config-dir", "nowhere"),
            ("check", "task=tiny_ai2d", "model=nope", "sheet=none"),
            ("check", "task=tiny_ai2d", "word", "sheet=none"),
            ("prepare", "task=tiny_ai2d"),
            ("prepare", "task=pixmocount"),
            (
                "prepare",
                "task=pixmocount",
                "out=x",
                f"rate={chance.choice(('0', 'x', '', 'inf'))}",
                "source=nowhere",
            ),
            ("prepare", "task=pixmocount", "out=x", "retry_gone=maybe"),
        )
    )
    return Line("data", words)


def exported(chance: random.Random) -> Line:
    """`export` with mistakes."""
    words = chance.choice(
        (
            (),
            ("run=multirun/demo/done",),
            ("out=x",),
            (f"run={chance.choice(PLACES)}", "out=x"),
            ("run=multirun/demo/done", "out=multirun"),
            ("run=multirun/demo/done", "out="),
            ("run=multirun/demo/done", "out=x", f"stage={chance.choice(('0', '9', 'x', '', '-1', '1.5'))}"),
            ("run=multirun/demo/done", "out=x", "store=nowhere"),
            ("run=multirun/demo/done", "out=x", "nope=1"),
            ("run=multirun/demo/done", "out=x", "out=y"),
            ("run=multirun/demo/llm-paper-seed0", "out=x"),
            ("run=multirun/demo/sa_proj-paper-seed0", "out=x"),
            ("word", "run=multirun/demo/done", "out=x"),
        )
    )
    return Line("export", words)


def garbage(chance: random.Random) -> Line:
    """Words of signs by chance, as a key, as a value, or alone."""
    signs = "abz019 .,=+~-_/\\'\"`$[]{}():;@#%^&*!?<>|\t\n\u00e9\u4e2d\u200b\u2028\U0001f600"
    word = "".join(chance.choice(signs) for _ in range(chance.randint(1, 24)))
    shaped = chance.choice((word, f"{word}=1", f"recipe={word}", f"store={word}", f"+tasks.tiny_ai2d.path={word}"))
    module = chance.choice(("run", "run", "plan", "status", "compare", "export", "store", "dashboard", "data"))
    words = {
        "run": (shaped, "sweep.dry_run=true"),
        "plan": ("model=nope", shaped),
        "dashboard": (shaped, "format=nope"),
        "data": (shaped,),
        "store": ("show", shaped),
        "export": (shaped,),
    }.get(module, (shaped, "nowhere"))
    return Line(module, words, EITHER if module == "run" else REFUSED)
