"""What people who install are promised: the wheel's content, its metadata, pins that fit the ranges."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree, built as a release would be."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    assert built.name == "lmm_forget-0.1.0-py3-none-any.whl"
    return zipfile.ZipFile(built)


def _files(top: Path, *suffixes: str) -> list[Path]:
    """Files below `top`, all of them or those with one of the suffixes."""
    return [p for p in sorted(top.rglob("*")) if p.is_file() and (not suffixes or p.suffix in suffixes)]


def test_wheel_carries_every_config(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    configs = _files(ROOT / "conf", ".yaml")
    assert ROOT / "conf" / "run.yaml" in configs
    for path in configs:
        packaged = f"lmm_forget/conf/{path.relative_to(ROOT / 'conf').as_posix()}"
        assert packaged in names
        assert wheel.read(packaged) == path.read_bytes()


def test_wheel_carries_every_module(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    modules = _files(ROOT / "lmm_forget", ".py")
    assert len(modules) > 30
    assert not [path for path in modules if path.relative_to(ROOT).as_posix() not in names]


def test_wheel_carries_data_beside_the_modules(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    data = [path for path in _files(ROOT / "lmm_forget") if path.suffix not in (".py", ".pyc")]
    assert {".json", ".jinja", ".safetensors"} <= {path.suffix for path in data}
    assert not [path for path in data if path.relative_to(ROOT).as_posix() not in names]


def test_wheel_has_the_launcher_plugins_in_a_namespace(wheel: zipfile.ZipFile) -> None:
    plugins = sorted(name for name in wheel.namelist() if name.startswith("hydra_plugins/"))
    assert plugins == [f"hydra_plugins/lmm_forget_{name}_launcher.py" for name in ("isolated", "slurm")]


def test_wheel_has_nothing_else_at_its_top(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"lmm_forget", "hydra_plugins", "lmm_forget-0.1.0.dist-info"}
    assert not [name for name in wheel.namelist() if name.endswith((".pyc", ".ckpt", ".pt", ".pkl"))]


def test_wheel_stays_small(wheel: zipfile.ZipFile) -> None:
    assert (
        sum(info.compress_size for info in wheel.infolist()) < 55_000_000
    )  # 45 of them are the weights of three tiny models


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    metadata = wheel.read("lmm_forget-0.1.0.dist-info/METADATA").decode()
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    scripts = wheel.read("lmm_forget-0.1.0.dist-info/entry_points.txt").decode()
    assert "lmm-forget = lmm_forget.cli.main:main" in scripts
    assert "lmm_forget-0.1.0.dist-info/licenses/LICENSE" in wheel.namelist()


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    malformed = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!+-]+", line)]
    assert not malformed, malformed
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in pins}


def test_pins_agree_with_the_ranges() -> None:
    pins = _pins()
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["dashboard"], *extras["test"], *extras["dev"]]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt has no line for {name}"
        assert pins[name] in requirement.specifier, f"{name}=={pins[name]} is not {text}"


def test_every_import_is_a_declared_dependency() -> None:
    optional = PROJECT["optional-dependencies"]["dashboard"]
    declared = {canonicalize_name(Requirement(text).name) for text in [*PROJECT["dependencies"], *optional]}
    modules = {"pil": "pillow", "hydra": "hydra-core", "yaml": "pyyaml"}
    # Required by a declared dependency for as long as that one exists.
    carried = {"pyyaml": "omegaconf", "tokenizers": "transformers", "huggingface-hub": "transformers"}
    carried["markupsafe"] = "jinja2"
    missing = {}
    for path in _files(ROOT / "lmm_forget", ".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                package = canonicalize_name(modules.get(top.lower(), top))
                if top in sys.stdlib_module_names or top in ("lmm_forget", "hydra_plugins"):
                    continue
                if carried.get(package, package) not in declared:
                    missing[top] = f"{path.relative_to(ROOT)}:{node.lineno}"
    assert not missing


@pytest.fixture
def front(tmp_path: Path) -> Path:
    """A folder with the three files that making the environment reads."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "FAMILY")
    env = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_make_refuses_an_old_python(front: Path) -> None:
    old = _script(front / "python-old", "exit 1")
    done = _make(front, "test", f"PYTHON={old}")
    assert done.returncode != 0
    assert "lmm-forget needs Python 3.11 or newer" in done.stderr
    assert str(old) in done.stderr
    assert not (front / ".venv").exists()


def test_make_builds_the_environment_once(front: Path) -> None:
    """A stand-in interpreter writes down what it is asked; the second target finds the environment ready."""
    log = front / "asked.log"
    _script(front / ".venv" / "bin" / "python", f'echo "$@" >> {log}')
    assert _make(front, "test").returncode == 0
    asked = log.read_text()
    assert "-m pip install" in asked and "-c constraints.txt" in asked and "-m pytest" in asked
    log.unlink()
    assert _make(front, "demo").returncode == 0
    asked = log.read_text()
    assert "pip" not in asked
    assert "-m lmm_forget.run -m experiment=demo recipe=sa_proj,mlp_gateup,llm" in asked
    log.unlink()
    later = time.time() + 10
    os.utime(front / "constraints.txt", (later, later))
    assert _make(front, "test").returncode == 0
    assert "-m pip install" in log.read_text()


def test_an_interrupted_installation_is_not_taken_for_a_finished_one(front: Path) -> None:
    log = front / "asked.log"
    _script(front / ".venv" / "bin" / "python", f'echo "$@" >> {log}; case "$*" in *pip*) exit 1;; esac')
    assert _make(front, "test").returncode != 0
    assert "-m pytest" not in log.read_text()
    assert not (front / ".venv" / ".ready").exists()


def test_make_alone_lists_the_targets(front: Path) -> None:
    done = _make(front)
    assert done.returncode == 0
    for target in ("demo", "test", "lint", "format", "tiny", "clean"):
        assert f"make {target}" in done.stdout
