"""Rules of the house that a reader cannot be relied on to notice: floors, circles, sizes, words, configs."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lmm_forget"
CONF = ROOT / "conf"
MAX_LINES = 600
HEAVY = ("torch", "torchvision", "transformers", "lightning", "lightning_fabric", "pytorch_lightning")

# The floor of every top-level module or package of lmm_forget: it imports strictly lower floors, or itself.
# A new unit has to be given its floor here, on purpose.
FLOORS = {
    "errors": 0,
    "files": 0,
    "progress": 0,
    "config": 1,
    "distributed": 1,
    "tiny": 2,  # renderers and weights that tasks and models hand out; its commands stand at the top
    "models": 3,
    "tasks": 3,
    "data": 4,
    "recipes": 4,
    "store": 4,
    "metrics": 4,
    "tracking": 4,
    "training": 5,
    "evaluation": 5,
    "probes": 5,
    "report": 5,
    "experiment": 6,
    "export": 7,
    "launch": 7,
    "cli": 8,
    "run": 9,
    "__main__": 9,
    "deprecated": 9,
    "hydra_plugins": 9,
}
# The front room reaches down through a module-level __getattr__, so that importing it stays cheap.
ENTRANCE = "lmm_forget"
VERSION = "lmm_forget.__version__"
# Rules beyond the floors: (unit, what it never imports).
STRANGERS = {
    "models": ("torchmetrics",),
    "tasks": ("torch", "transformers", "lightning"),
    "metrics": ("torch", "torchvision", "transformers", "lightning", "datasets"),
    "report": ("torch", "torchvision", "transformers", "lightning", "datasets"),
    "tracking": ("torch", "torchvision", "transformers", "lightning", "datasets"),
    "errors": ("torch", "transformers", "lightning", "hydra", "omegaconf"),
    "config": ("torch", "transformers", "lightning"),
}


@dataclass(frozen=True)
class Import:
    """`module` imports `target`, at `line`; `lazy`: inside a function; `typing`: for the checker only."""

    module: str
    target: str
    line: int
    lazy: bool
    typing: bool


def _sources() -> dict[str, Path]:
    """Dotted module name -> file, for the package and the launcher plugin."""
    found = {}
    for top in (PACKAGE, ROOT / "hydra_plugins"):
        for path in sorted(top.rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = _sources()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imports(module: str, path: Path) -> Iterator[Import]:
    """Every import of a module, inside functions too; `from package import submodule` names the submodule."""

    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]

    def visit(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, lazy, typing)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) - child.level + 1] if child.level else []
                base = ".".join([*above, *([child.module] if child.module else [])])
                for alias in child.names:
                    name = f"{base}.{alias.name}"
                    target = name if name in SOURCES or name == VERSION else base
                    yield Import(module, target, child.lineno, lazy, typing)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from visit(child, lazy or inside, typing or checking)

    yield from visit(_tree(path), False, False)


IMPORTS = [found for module, path in SOURCES.items() for found in _imports(module, path)]


def _unit(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "lmm_forget" and len(parts) > 1 else parts[0]


def _ours(name: str) -> bool:
    return name.split(".")[0] in ("lmm_forget", "hydra_plugins")


def _is_command(path: Path) -> bool:
    """A module inside a package that is started with `python -m` (tiny.pretrain) stands at the top floor."""
    return 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")


def _place(found: Import) -> str:
    return f"{SOURCES[found.module].relative_to(ROOT)}:{found.line}"


def test_every_unit_has_a_floor() -> None:
    units = {_unit(module) for module in SOURCES} - {ENTRANCE}
    assert units, "no sources found"
    assert units <= set(FLOORS), f"units without a floor: {sorted(units - set(FLOORS))}"


def test_imports_go_down() -> None:
    climbs = []
    for found in IMPORTS:
        source, target = _unit(found.module), _unit(found.target)
        if not _ours(found.target) or source in (target, ENTRANCE) or found.target == VERSION:
            continue
        floor = FLOORS["run"] if _is_command(SOURCES[found.module]) else FLOORS[source]
        if target == ENTRANCE or floor <= FLOORS[target]:
            climbs.append(f"{_place(found)} ({source}) -> {found.target}")
    assert not climbs, "imports that climb a floor or stay on it:\n" + "\n".join(climbs)


def test_config_rests_on_nothing_but_errors() -> None:
    ours = [found for found in IMPORTS if _unit(found.module) == "config" and _ours(found.target)]
    assert ours
    foreign = [f for f in ours if _unit(f.target) not in ("config", "errors")]
    assert not foreign, "\n".join(f"{_place(found)} -> {found.target}" for found in foreign)


def test_the_entrance_imports_nothing_until_asked() -> None:
    eager = [found.target for found in IMPORTS if found.module == ENTRANCE and not found.lazy and not found.typing]
    cheap = sys.stdlib_module_names | {"lmm_forget.errors"}
    assert not [name for name in eager if name not in cheap and name.split(".")[0] not in cheap]


def test_no_circles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in SOURCES}
    for found in IMPORTS:
        if found.target in SOURCES and not found.lazy and not found.typing and found.target != found.module:
            graph[found.module].add(found.target)
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "circle: " + " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(graph[module]):
                walk(target, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())
    assert done == set(SOURCES)


def test_units_keep_away_from_strangers() -> None:
    met = []
    for found in IMPORTS:
        if found.target.split(".")[0] in STRANGERS.get(_unit(found.module), ()):
            met.append(f"{SOURCES[found.module].relative_to(ROOT)}:{found.line} imports {found.target}")
    assert not met, "\n".join(met)


def test_names_say_what_a_module_holds() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    named = [module for module in SOURCES if vague & set(module.split("."))]
    assert not named, f"a function lives where its noun lives, not in {named}"


def test_modules_stay_small() -> None:
    sizes = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in SOURCES.items()}
    assert not {module: size for module, size in sizes.items() if size > MAX_LINES}
    small = sum(size <= 200 for size in sizes.values())
    assert small > len(sizes) / 2, "most modules are meant to stay under 200 lines"


def _public(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """Public classes, functions and methods below a module or class, with their dotted names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.Try):
            yield from _public(child, prefix)
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child.name.startswith("_"):
            continue
        decorators = {ast.unparse(decorator).split(".")[-1] for decorator in child.decorator_list}
        if decorators & {"overload", "setter", "override"}:
            continue
        yield f"{prefix}.{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from _public(child, f"{prefix}.{child.name}")


def test_public_objects_have_docstrings() -> None:
    silent = []
    for module, path in SOURCES.items():
        tree = _tree(path)
        if path.name != "__init__.py" and not ast.get_docstring(tree):
            silent.append(module)
        silent += [name for name, node in _public(tree, module) if not ast.get_docstring(node)]  # type: ignore[arg-type]
    assert not silent, "public objects without a docstring:\n" + "\n".join(silent)


def test_functions_are_annotated() -> None:
    bare = []
    for module, path in SOURCES.items():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                missing = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
                if missing or node.returns is None:
                    bare.append(f"{module}:{node.lineno} {node.name} {missing or 'return'}")
    assert not bare, "\n".join(bare)


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
    "module",
    [
        "lmm_forget.run",
        "lmm_forget.plan",
        "lmm_forget.status",
        "lmm_forget.compare",
        "lmm_forget.dashboard",
        "lmm_forget.export",
        "lmm_forget.data",
        "lmm_forget",
    ],
)
def test_help_imports_no_torch(module: str, tmp_path: Path) -> None:
    names = _loaded(module, "--help", cwd=tmp_path)
    assert "lmm_forget" in names
    assert not names & set(HEAVY)


def test_composing_a_config_imports_no_torch(tmp_path: Path) -> None:
    names = _loaded("lmm_forget.run", "recipe=sa_proj", "--cfg", "job", cwd=tmp_path)
    assert "omegaconf" in names
    assert not names & set(HEAVY)


def test_reports_need_no_torch(tmp_path: Path) -> None:
    modules = [module for module in SOURCES if _unit(module) in ("metrics", "report")]
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
