"""Rules of the code that no tool checks: circles, sizes, names, configs, imports at run time.

Layers, forbidden imports (import-linter), docstrings (ruff) and annotations (mypy) are checked by `make lint`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lmm_forget.cli.main import COMMAND_NAMES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lmm_forget"
CONF = ROOT / "conf"
MAX_LINES = 600
HEAVY = ("torch", "torchvision", "transformers", "lightning", "lightning_fabric", "pytorch_lightning")
INTERFACE_NAMES = {"main"}
"""Functions that every module of a kind has: the entry point of a command."""
COMMAND_FOLDERS = ("cli", "deprecated")
"""A command's file is called like the command, which is called like the package that does its work."""
COINED_WORDS = """
Ground ground lay_ground corridor Taught catch_up adopt sifted settle_micro_batch Measured measured_stage Exam
examine ask_all Said Kept Chosen Picked Ruler glance Lessons Lesson Look AfterStep Watch Safe Saved Slot
undisturbed hand_back Imprint Written looks turned Ranks Place ALONE on_first only_first together blame Claims
Holder Damaged set_aside led_to care Ticket Folders View Courier Opening Bystander Planned Stopped Submitted
Detached complain told reader_left Cells Reading let_the_first_speak Drawn Got Pace world given teach taught ask
tell
"""
"""Home-made words that identifiers had once, and do not get again; the field's word stands in their place."""


@dataclass(frozen=True)
class Import:
    """`module` imports `target`, at `line`; `typing`: for the type checker only."""

    module: str
    target: str
    line: int
    typing: bool


def _sources() -> dict[str, Path]:
    """Dotted module name -> file, for the package and the launcher plugins."""
    sources = {}
    for top in (PACKAGE, ROOT / "hydra_plugins"):
        for path in sorted(top.rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return sources


SOURCES = _sources()
TREES = {module: ast.parse(path.read_text(encoding="utf-8"), str(path)) for module, path in SOURCES.items()}


def _imports(module: str) -> Iterator[Import]:
    """Every import of a module, inside functions too; `from package import submodule` names the submodule."""
    package = module.split(".") if SOURCES[module].name == "__init__.py" else module.split(".")[:-1]

    def visit(node: ast.AST, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, typing)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) - child.level + 1] if child.level else []
                base = ".".join([*above, *([child.module] if child.module else [])])
                for alias in child.names:
                    name = f"{base}.{alias.name}"
                    yield Import(module, name if name in SOURCES else base, child.lineno, typing)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from visit(child, typing or checking)

    yield from visit(TREES[module], False)


def test_no_import_circles() -> None:
    """Neither at import time nor later, when a function runs: a circle is one module cut in two."""
    graph: dict[str, set[str]] = {module: set() for module in SOURCES}
    for module in SOURCES:
        if module != "lmm_forget":  # its __getattr__ reaches down, so that importing it stays cheap
            targets = {each.target for each in _imports(module) if not each.typing}
            graph[module] = {target for target in targets if target in SOURCES and target not in (module, "lmm_forget")}
    done: set[str] = set()
    circles: list[str] = []

    def walk(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            circles.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph[module]):
                walk(target, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())
    assert not circles, "import circles:\n" + "\n".join(circles)
    assert done == set(SOURCES)


def test_names_say_what_a_module_holds() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    named = [module for module in SOURCES if vague & set(module.split("."))]
    assert not named, f"a function lives where its noun lives, not in {named}"


def test_modules_stay_small() -> None:
    sizes = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in SOURCES.items()}
    assert not {module: size for module, size in sizes.items() if size > MAX_LINES}
    small = sum(size <= 200 for size in sizes.values())
    assert small > len(sizes) / 2, "most modules are meant to stay under 200 lines"


def test_every_name_stands_for_one_thing() -> None:
    """Classes, public functions and modules; a module may be called like the one function or class it holds."""
    places: dict[str, list[str]] = defaultdict(list)
    for module, path in SOURCES.items():
        if path.name not in ("__init__.py", "__main__.py") and path.parent.name not in COMMAND_FOLDERS:
            places[path.stem].append(f"{module} (module)")
        for node in TREES[module].body:
            is_public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            if is_public and node.name not in INTERFACE_NAMES and node.name != path.stem:
                places[node.name].append(f"{module} line {node.lineno}")
    repeated = [f"{name}: {', '.join(where)}" for name, where in sorted(places.items()) if len(where) > 1]
    assert not repeated, "names with several meanings:\n" + "\n".join(repeated)


def _identifiers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names of classes, functions, arguments and variables where they are made."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno


def test_no_coined_word_comes_back() -> None:
    coined_words = set(COINED_WORDS.split())
    met = [
        f"{SOURCES[module].relative_to(ROOT)}:{line} {name}"
        for module, tree in TREES.items()
        for name, line in _identifiers(tree)
        if name.lstrip("_") in coined_words
    ]
    assert not met, "words of this package's own; say it as the field does:\n" + "\n".join(met)


YAMLS = sorted(CONF.rglob("*.yaml"))


def test_there_are_configs() -> None:
    assert CONF / "run.yaml" in YAMLS
    assert not list(CONF.rglob("*.yml")), "configs end in .yaml"
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert {"model", "recipe", "sequence", "task", "suite", "training", "data"} <= groups
    assert {"probe", "hardware", "logger", "experiment"} <= groups


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(CONF)))
def test_config_loads_and_explains_itself(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    # Hydra reads a first line `# @package …`; the words for people come right after it.
    if lines and lines[0].startswith("# @package"):
        lines = lines[1:]
    assert lines and re.match(r"# \S", lines[0]), "a config starts with a comment: what choosing it means"
    assert OmegaConf.is_config(OmegaConf.load(path))


_PROBE = """
import json, runpy, sys
module, *arguments = sys.argv[1:]
sys.argv = [module, *arguments]
code = 0
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as stop:
    code = stop.code or 0
print("\\nMODULES " + json.dumps([code, sorted({name.split(".")[0] for name in sys.modules})]))
"""


# The tree under test, whatever is installed.
_CHILD_ENV = os.environ | {"PYTHONPATH": str(ROOT)}


def _loaded(module: str, *arguments: str, cwd: Path) -> set[str]:
    """Top-level packages in memory after `python -m module arguments…` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, module, *arguments],
        cwd=cwd,
        env=_CHILD_ENV,
        capture_output=True,
        text=True,
        timeout=120,
    )
    marked = [line for line in done.stdout.splitlines() if line.startswith("MODULES ")]
    assert marked, done.stdout + done.stderr
    code, names = json.loads(marked[-1].removeprefix("MODULES "))
    assert code == 0, done.stdout + done.stderr
    return set(names)


@pytest.mark.parametrize(
    "line",
    [
        ("lmm_forget.run", "--help"),
        ("lmm_forget.plan", "--help"),  # the old name
        ("lmm_forget", "--help"),
        *(("lmm_forget", name, "--help") for name in COMMAND_NAMES),
        ("lmm_forget", "completion", "words", "--", "lmm-forget run recipe=sa"),
    ],
)
def test_help_and_completion_import_no_torch(line: tuple[str, ...], tmp_path: Path) -> None:
    names = _loaded(*line, cwd=tmp_path)
    assert "lmm_forget" in names
    assert not names & {*HEAVY, "numpy", "wandb", "submitit"}


def test_composing_a_config_imports_no_torch(tmp_path: Path) -> None:
    names = _loaded("lmm_forget.run", "recipe=sa_proj", "--cfg", "job", cwd=tmp_path)
    assert "omegaconf" in names
    assert not names & set(HEAVY)


def test_reports_need_no_torch(tmp_path: Path) -> None:
    modules = [module for module in SOURCES if module.startswith(("lmm_forget.metrics.", "lmm_forget.report."))]
    modules = [module for module in modules if not module.endswith("__main__")]
    assert len(modules) > 4
    code = (
        "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; "
        f"print(sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *modules],
        cwd=tmp_path,
        env=_CHILD_ENV,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def _tracked() -> list[Path]:
    """Files that git tracks or would; everything but caches where this is no checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [path for top in ("lmm_forget", "conf", "tests") for path in (ROOT / top).rglob("*") if path.is_file()]


def test_no_paths_of_a_machine() -> None:
    pattern = re.compile(r"(^|[^A-Za-z0-9_.~$}])/(work|root|farm|opt/wheels|home/[a-z]+)/")
    found = []
    for path in _tracked():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_nothing_heavy_is_tracked() -> None:
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in _tracked()}
    heavy = {name: size for name, size in sizes.items() if size > 20_000_000}
    assert not heavy, f"files over 20 MB: {heavy}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "LICENSE", "Makefile", ".ci/run"])
def test_the_front_of_the_house_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 100
