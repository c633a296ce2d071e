"""From choices to one plain configuration: names, orders, learning rates, refusals."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmm_forget.config import (
    build_job_name,
    build_single_job_name,
    compose_config,
    cpu_features,
    find_conf_dir,
    find_swept_choices,
    list_config_differences,
    list_group_choices,
    resolve_config,
    resolving,
)
from lmm_forget.config.instantiation import instantiate_config
from lmm_forget.config.overrides import check_overrides
from lmm_forget.config.renamed import RENAMED_KEYS, RENAMED_TARGETS
from lmm_forget.config.task_order import build_permutation
from lmm_forget.errors import ConfigError

PAPER = ["cub200", "pixmocount", "pathvqa", "textvqa", "timeclock"]
TASK = "_target_: some.Task\nrole: {role}\nmax_new_tokens: 4\nscorer: {{_target_: some.Scorer}}\n"


def config(*overrides: str, folder: Path | None = None) -> dict[str, Any]:
    return resolve_config(compose_config(overrides, folder))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's own folder: a skill, a benchmark, two experiments."""
    for name, text in {
        "task/my_skill.yaml": TASK.format(role="target"),
        "task/my_benchmark.yaml": TASK.format(role="held_out"),
        "task/cub200.yaml": TASK.format(role="target"),
        "experiment/rates.yaml": "# @package _global_\ntraining: {learning_rate: 7e-4}\n",
        "experiment/typo.yaml": "# @package _global_\ntraining: {max_stps: 3}\n",
        "experiment/named.yaml": "# @package _global_\nname: other\n",
    }.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "mine"


def test_the_default_run_is_concrete() -> None:
    run = config()
    assert run["name"] == "tiny_onevision"
    assert run["sequence"]["tasks"] == [f"tiny_{name}" for name in PAPER]
    assert list(run["tasks"]) == run["sequence"]["tasks"] + run["suite"]["tasks"]
    assert len(run["suite"]["tasks"]) == 8
    assert Path(run["store"]).is_absolute()
    assert not {"training", "micro_batch_size", "eval_batch_size"} & set(run["model"])
    assert isinstance(run["hardware"]["micro_batch_size"], int) and isinstance(
        run["training"]["global_batch_size"], int
    )
    assert config() == run


@pytest.mark.parametrize("group", ["recipe", "sequence", "hardware", "logger", "experiment"])
def test_every_packaged_choice_composes(group: str) -> None:
    for name in list_group_choices(group):
        extra = ["sequence.task=timeclock"] if name == "single" else []
        assert config(f"{group}={name}", *extra)["tasks"], name


def test_every_yaml_says_what_it_is() -> None:
    for path in find_conf_dir().rglob("*.yaml"):
        assert "#" in path.read_text().split("\n", 2)[0], f"{path} begins without a comment"


def test_orders_are_the_lexicographic_permutations() -> None:
    assert [tuple(build_permutation(5, index)) for index in range(120)] == list(itertools.permutations(range(5)))


def test_sequences() -> None:
    taught = [f"tiny_{name}" for name in PAPER]
    assert config("sequence=order")["sequence"]["tasks"] == taught
    assert config("sequence=order", "sequence.order=119")["sequence"]["tasks"] == taught[::-1]
    assert config("sequence=reverse")["sequence"]["tasks"] == taught[::-1]
    assert config("sequence=order", "sequence.order=[1,0,2,3,4]")["sequence"]["tasks"][:2] == taught[1::-1]
    names = "sequence.order=[timeclock,cub200,pathvqa,textvqa,pixmocount]"
    assert config("sequence=order", names)["sequence"]["tasks"][0] == "tiny_timeclock"
    alone = config("sequence=single", "sequence.task=timeclock")
    assert alone["sequence"] == {"name": "single", "task": "tiny_timeclock", "tasks": ["tiny_timeclock"]}
    twice = config("sequence.tasks=[cub200,timeclock,cub200]")
    assert twice["sequence"]["tasks"] == ["tiny_cub200", "tiny_timeclock", "tiny_cub200"]


def test_a_users_own_task_and_the_worlds_names(mine: Path) -> None:
    run = config("sequence=single", "sequence.task=my_skill", "suite.tasks=[my_benchmark,ai2d]", folder=mine)
    assert run["sequence"]["tasks"] == ["my_skill"] and run["suite"]["tasks"] == ["my_benchmark", "tiny_ai2d"]
    assert run["tasks"]["my_skill"]["_target_"] == "some.Task"
    single = ["sequence=single", "sequence.task=cub200"]
    assert config(*single, folder=mine)["sequence"]["tasks"] == ["tiny_cub200"]  # the world has a stand-in of that name
    real = config(*single, "data.source=real", "suite.tasks=[my_benchmark]", folder=mine)
    assert real["sequence"]["tasks"] == ["cub200"]


def test_changes_to_single_tasks() -> None:
    run = config("+tasks.tiny_cub200.n_train=64", "+tasks.tiny_ai2d.max_new_tokens=9")
    assert run["tasks"]["tiny_cub200"]["n_train"] == 64 and run["tasks"]["tiny_ai2d"]["max_new_tokens"] == 9
    assert run["tasks"]["tiny_cub200"]["role"] == "target"


def rate(*overrides: str, folder: Path | None = None) -> tuple[float, str]:
    training = config(*overrides, folder=folder)["training"]
    return training["learning_rate"], training["learning_rate_source"]


def test_who_chooses_the_learning_rate(mine: Path) -> None:
    rates = "++model.training.learning_rates={mlp: 3e-4}"  # merged into the model's own
    assert rate("model.training.learning_rate=2e-4", "recipe=projector") == (2e-4, "model")
    assert rate(rates, "recipe=mlp") == (3e-4, "model")
    assert rate(rates, "recipe=mlp", "recipe.learning_rate=4e-4") == (4e-4, "recipe")
    assert rate(rates, "recipe=mlp", "recipe.learning_rate=4e-4", "experiment=rates", folder=mine) == (
        7e-4,
        "experiment",
    )
    line = "training.learning_rate=9e-4"
    assert rate(rates, "recipe=mlp", "recipe.learning_rate=4e-4", "experiment=rates", line, folder=mine) == (
        9e-4,
        "command line",
    )


def test_the_command_line_wins_over_the_models_values() -> None:
    assert config("training.max_steps=50", "hardware.micro_batch_size=4")["training"]["max_steps"] == 50


def test_hardware() -> None:
    sharded = config("hardware=fsdp", "hardware.accelerator=cpu", "hardware.micro_batch_size=auto")["hardware"]
    assert (sharded["devices"], sharded["strategy"], sharded["threads"], sharded["num_workers"]) == (
        2,
        "fsdp",
        1,
        0,
    )
    assert sharded["micro_batch_size"] == config()["hardware"]["micro_batch_size"]  # on a CPU the model's own
    assert (
        config("hardware=fsdp", "hardware.micro_batch_size=auto")["hardware"]["micro_batch_size"]
        == sharded["micro_batch_size"]
    )
    several = config("hardware=ddp", "hardware.devices=8", "hardware.micro_batch_size=auto")["hardware"]
    assert (several["devices"], several["threads"], several["micro_batch_size"]) == (8, 4, "auto")
    assert config("hardware.devices=2")["hardware"]["strategy"] == "auto"
    assert config("hardware.attention=sdpa") == config("model.attention=sdpa") != config()


def test_default_names(mine: Path) -> None:
    assert config("experiment=rates", folder=mine)["name"] == "rates"
    assert config("experiment=named", folder=mine)["name"] == "other"
    assert config("experiment=named", "name=mine", folder=mine)["name"] == "mine"


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["recipe=sa_pro"], r"there is no recipe 'sa_pro'; choose one of: ewc, full, .*did you mean sa_proj\?"),
        (["model=gpt"], r"there is no model 'gpt'; choose one of: .*tiny_onevision"),
        (["experiment=nope"], r"there is no experiment 'nope'; choose one of: demo, .*smoke"),
        (["training.batch=3"], r"there is no 'training.batch'; training has: global_batch_size, "),
        (["recip=llm"], r"there is no 'recip'; .*did you mean recipe\?"),
        (["+training.max_stps=3"], r"there is no training.max_stps; .*did you mean max_steps\?"),
        (["+sed=3"], r"there is no sed; the configuration has: .*did you mean seed\?"),
        (
            ["training.global_batch_size=0"],
            r"training.global_batch_size=0 cannot be used; it must be a whole number of at least 1",
        ),
        (["training.epochs=many"], r"training.epochs=many cannot be used; it must be a number above 0"),
        (["training.warmup_ratio=1.5"], r"training.warmup_ratio=1.5"),
        (["training.betas=[0.9]"], r"training.betas=\[0.9\] cannot be used; it must be two numbers"),
        (
            ["hardware.precision=fp16"],
            r"hardware.precision=fp16 is not known; choose one of: auto, bf16, fp32, bf16-true",
        ),
        (["data.on_bad_sample=ignore"], r"data.on_bad_sample=ignore is not known; choose one of: fail, skip"),
        (["objective=accuracy"], r"objective=accuracy is not known; choose one of: target_learning"),
        (
            ["hardware.devices=0"],
            r"hardware.devices=0 cannot be used; it must be a whole number of at least 1",
        ),
        (["hardware.strategy=ring"], r"hardware.strategy=ring is not known; choose one of: auto, ddp, fsdp, single"),
        (["hardware=fsdp", "hardware.devices=1"], r"fsdp shares a model among devices, but this job has one"),
        (["hardware.micro_batch_size=all"], r"hardware.micro_batch_size=all cannot be used; .* or auto"),
        (
            ["hardware.micro_batch_size=auto", "model.micro_batch_size=null"],
            r"hardware.micro_batch_size=auto: the model suggests none",
        ),
        (["hardware.compile=maybe"], r"hardware.compile=maybe cannot be used; it must be true or false"),
        (["hardware.attention=1"], r"hardware.attention=1 cannot be used; it must be the name"),
        (["seed=-1"], r"seed=-1"),
        (["name=../x"], r"name='../x' cannot be a folder"),
        (["sequence=single"], r"sequence.task is empty"),
        (
            ["sequence=single", "sequence.task=clocks"],
            r"there is no task 'clocks' where data.source=tiny; choose one of: .*timeclock",
        ),
        (["sequence=single", "sequence.task=ai2d"], r"tiny_ai2d is held_out, it has nothing to teach"),
        (
            ["sequence=order", "sequence.order=120"],
            r"sequence.order=120 is out of range; 5 tasks have the orders 0 to 119",
        ),
        (["sequence=order", "sequence.order=[0,0,1,2,3]"], r"must hold each of the 5 tasks once"),
        (["sequence=order", "sequence.order=first"], r"sequence.order=first cannot be read"),
        (
            ["sequence=single", "sequence.task=cub200", "suite.tasks=[ai2d,timeclock]"],
            r"suite: tiny_timeclock is target",
        ),
        (["suite.tasks=[ai2d,cub200]"], r"suite: tiny_cub200 is taught in the sequence"),
        (["suite.tasks=[]"], r"suite.tasks is empty"),
        (["suite.tasks=[ai2d,ai2d]"], r"names ai2d more than once"),
        (
            ["+tasks.tiny_cub.n_train=3"],
            r"tasks.tiny_cub: no such task in this run; .*did you mean tiny_cub200\?",
        ),
        (["recipe=llm,mlp"], r"several values need -m"),
        (["recipe=[llm"], r"cannot read 'recipe=\[llm'"),
        (
            ['model.path=quo"te'],
            r"^cannot read 'model.path=quo\"te': a quote \(\"\) is not closed; .* 'quo\"te'$",
        ),
        (["model.path=it's"], r"a quote \('\) is not closed; .* \"it's\"$"),
        (["model.path=]a"], r"^cannot read 'model.path=\]a': it holds signs that .* only have in quotes"),
        (
            ["model@foo=tiny_next"],
            r"^model@foo: there is no model that stands at 'foo'; choose a model with m",
        ),
        (["recipe@own.x=llm"], r"^recipe@own.x: there is no recipe that stands at 'own.x'"),
        (["suite.tasks={a: 1}"], r"override suite.tasks=\{a: 1\}: Cannot merge"),
        (["training.max_steps=${nope}"], r"nope"),
        (["recipe=projector", "model.training.learning_rate=null"], r"no learning rate"),
    ],
)
def test_a_wrong_choice_is_one_line_that_says_what_is_right(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(*overrides)
    assert "\n" not in str(caught.value)


def test_a_typo_in_a_users_file_is_found(mine: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no training.max_stps"):
        config("experiment=typo", folder=mine)
    (mine / "task/my_skill.yaml").write_text("role: target\nmax_new_tokens: 4\n")
    with pytest.raises(ConfigError, match=r"my_skill.yaml lacks _target_"):
        config("sequence=single", "sequence.task=my_skill", folder=mine)
    (mine / "task/my_skill.yaml").write_text("role: [target\n")
    with pytest.raises(ConfigError, match=r"my_skill.yaml is not readable YAML.*line 2"):
        config("sequence=single", "sequence.task=my_skill", folder=mine)
    (mine / "task/my_skill.yaml").write_text(TASK.format(role="skill"))
    with pytest.raises(ConfigError, match=r"role=skill is not known; choose one of: target, held_out, captions"):
        config("sequence=single", "sequence.task=my_skill", folder=mine)
    with pytest.raises(ConfigError, match="does not exist"):
        compose_config([], mine / "elsewhere")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["suite.tasks={a: 1}"], r"suite.tasks=\{a: 1\}"),
        (["hydra.sweeper.params=3"], r"hydra.sweeper.params=3"),
        (["recipe=nope"], r"there is no recipe 'nope'"),
        (["model.path=${nope}"], r"nope"),
    ],
)
def test_a_broken_file_that_is_not_used_is_not_blamed(mine: Path, overrides: list[str], message: str) -> None:
    (mine / "task/aa_broken.yaml").write_text("a: [1, 2\n")
    with pytest.raises(ConfigError, match=message) as caught:
        config(*overrides, folder=mine)
    assert "broken" not in str(caught.value) and "\n" not in str(caught.value)


def test_of_several_broken_files_the_one_that_is_used_is_named(mine: Path) -> None:
    (mine / "recipe").mkdir(exist_ok=True)
    for name in ("a", "b", "c"):
        (mine / f"recipe/{name}.yaml").write_text("name: [x\n")
    with pytest.raises(ConfigError, match=r"recipe/b.yaml is not readable YAML: line 2"):
        compose_config(["recipe=b"], mine)
    (mine / "recipe/b.yaml").write_text("name: b\nrules: ${a\n")
    with pytest.raises(ConfigError, match=r"recipe/b.yaml is not readable YAML: no viable alternative"):
        compose_config(["recipe=b"], mine)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x: 1\nscorer: &a {_target_: t, x: *a}\n", r"line 2: the node that begins here refers to itself"),
        ("x: &a [1, {y: *a}]\n", r"line 1: the node that begins here refers to itself"),
        ("x: " + "[" * 3000 + "]" * 3000 + "\n", r"it is nested too deeply"),
    ],
)
def test_a_yaml_without_an_end_is_named_in_a_short_line(mine: Path, text: str, why: str) -> None:
    (mine / "recipe").mkdir(exist_ok=True)
    for name in ("recipe/endless", "task/endless"):
        (mine / f"{name}.yaml").write_text(text)
    for overrides in (["recipe=endless"], ["sequence=single", "sequence.task=endless"]):
        with pytest.raises(ConfigError, match=rf"endless.yaml is not readable YAML: {why}") as caught:
            config(*overrides, folder=mine)
        assert len(str(caught.value)) < len(str(mine)) + 200
    shared = "a: &a {x: 1}\nb: [*a, *a, {c: *a}]\n"
    (mine / "recipe/shared.yaml").write_text(f"name: shared\n{shared}")
    assert compose_config(["recipe=shared"], mine).recipe.b[2].c.x == 1


GROUPS = ["recipe", "model", "sequence"]


def test_names_of_grid_points() -> None:
    given_line = ["recipe=sa_proj,llm", "sequence=order", "sequence.order=range(0,120)", "seed=1"]
    point = ["recipe=llm", "sequence=order", "sequence.order=17", "seed=1"]
    assert find_swept_choices(point, given_line) == {"recipe": "llm", "sequence.order": 17}
    assert build_job_name(find_swept_choices(point, given_line), GROUPS) == "llm-order=17"
    assert (
        build_job_name({"sequence.order": 17, "recipe": "llm"}, GROUPS) == "llm-order=17"
    )  # whatever the order of arguments
    assert (
        build_job_name(find_swept_choices(["training.learning_rate=0.0001"], []), GROUPS) == "learning_rate=0.0001"
    )  # a sweeper's invention
    assert (
        build_job_name({"tasks.a.n_train": 1, "tasks.b.n_train": 2, "seed": 0}, [])
        == "seed=0-tasks.a.n_train=1-tasks.b.n_train=2"
    )
    assert build_job_name({"sequence.order": [2, 0, 1]}, []) == "order=2.0.1"
    assert build_job_name({"training.max_steps": None, "data.validation": True}, []) == "validation=true-max_steps=null"


@given(st.lists(st.text(min_size=1, max_size=80), min_size=2, max_size=2, unique=True))
def test_slugs_are_safe_file_names_and_tell_values_apart(values: list[str]) -> None:
    first, second = (build_job_name({"model.path": value}, []) for value in values)
    assert first != second
    assert "/" not in first and first.isascii() and first.isprintable() and len(first) < 120


def test_single_runs_are_named_by_recipe_sequence_and_seed() -> None:
    assert build_single_job_name(config("seed=3")) == "sa_proj-paper-seed3"
    assert build_single_job_name(config("sequence=order", "sequence.order=4", "recipe=llm")) == "llm-order=4-seed0"


def test_differences_leave_out_where_and_how_fast() -> None:
    old = {"seed": 0, "store": "a", "hardware": {"threads": 1, "precision": "bf16"}, "x": {}}
    new = {"seed": 1, "store": "b", "hardware": {"threads": 2, "precision": "fp32"}, "x": {}, "y": None}
    assert list_config_differences(old, new) == [
        "hardware.precision: bf16 -> fp32",
        "seed: 0 -> 1",
        "y: absent -> null",
    ]
    assert list_config_differences(old, old) == []


@pytest.mark.parametrize(
    ("cpuinfo", "fast"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse avx2 avx512f amx_bf16 amx_tile\n", True),
        ("flags : avx512_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags : avx2 fma avx512f avx512vl\nbugs : bf16\n", False),
        ("", False),
    ],
)
def test_automatic_precision_is_bf16_where_the_processor_multiplies_it(
    cpuinfo: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert cpu_features.has_bf16_instructions(tmp_path / "cpuinfo") is fast
    assert cpu_features.has_bf16_instructions(tmp_path / "missing") is False
    monkeypatch.setattr(resolving, "has_bf16_instructions", lambda: fast)
    found = resolve_config(compose_config(["experiment=smoke"]))["hardware"]["precision"]
    assert found == ("bf16" if fast else "fp32")
    assert resolve_config(compose_config(["hardware.precision=bf16"]))["hardware"]["precision"] == "bf16"
    assert resolve_config(compose_config(["hardware=gpu"]))["hardware"]["precision"] == "bf16"


@pytest.mark.parametrize("old, new", RENAMED_KEYS.items())
def test_an_old_name_of_a_key_is_refused_with_the_new_one(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{old} is now called {new}"):
        check_overrides([f"{old}=1"])
    (tmp_path / "experiment").mkdir()
    nested = {}
    for part in reversed(old.split(".")):
        nested = {part: nested or 1}
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n" + json.dumps(nested))
    with pytest.raises(ConfigError, match=f"{old} is now called {new}"):
        resolve_config(compose_config(["experiment=mine", "probe=output_shift"], tmp_path))


@pytest.mark.parametrize("old, new", RENAMED_TARGETS.items())
def test_an_old_name_of_a_class_is_refused_with_the_new_one(old: str, new: str) -> None:
    module, _, name = new.rpartition(".")
    assert hasattr(importlib.import_module(module), name)
    with pytest.raises(ConfigError, match=f"there is no _target_ {old}; it is now {new}"):
        instantiate_config({"_target_": old}, object, "x", ConfigError)
