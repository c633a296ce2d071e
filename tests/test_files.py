"""What is written: permissions as the user's umask says, and errors of the system that name the file."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmm_forget.cli.exit_codes import run_with_exit_code
from lmm_forget.files import (
    add_path_to_os_errors,
    apply_default_permissions,
    atomic_temporary_file,
    write_atomic,
)
from lmm_forget.store import StageCheckpoints, Store
from lmm_forget.store.checked_tensors import write_checked_tensors

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    *(
        "experiment=smoke",
        "sequence=single",
        "sequence.task=cub200",
        "suite.tasks=[ai2d]",
        "hardware.threads=1",
    ),
    *("data.train_samples=8", "data.eval_samples=2", "training.max_steps=1", "name=small", "logger=csv"),
)


@pytest.fixture(params=[0o077, 0o022, 0o002], ids=["077", "022", "002"])
def umask(request: pytest.FixtureRequest) -> object:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mode & 0o777 for p in folder.rglob("*") if p.is_file()}


def test_every_way_of_writing_follows_the_umask(umask: int, tmp_path: Path) -> None:
    write_atomic(tmp_path / "new.json", "{}")
    old = tmp_path / "old.json"
    old.write_text("before")
    write_atomic(old, "{}", durable=False)
    with atomic_temporary_file(tmp_path / "table.parquet") as draft:
        draft.write_text("rows")
    tensors = {"w": torch.zeros(3)}
    store = Store(tmp_path / "store")
    store.commit_stage("aaaa", {"tensors": {"w": "x"}}, tensors)
    StageCheckpoints(store, "bbbb").save(1, tensors, {})
    write_checked_tensors(tmp_path / "store" / "probes" / "c.safetensors", {}, tensors)
    with store.acquire_lease("stage-aaaa"):
        found = modes(tmp_path)
    assert len(found) >= 9 and {name: f"{mode:o}" for name, mode in found.items()} == dict.fromkeys(
        found, f"{0o666 & ~umask:o}"
    )


def test_a_mode_is_the_usual_one_whatever_it_was(umask: int, tmp_path: Path) -> None:
    (tmp_path / "x").touch(0o600)
    apply_default_permissions(tmp_path / "x")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


def start(*words: str, cwd: Path, limit: int | None = None, mask: int = 0o022) -> subprocess.CompletedProcess[str]:
    """A command of the package; no file it writes may become larger than `limit` bytes."""

    def prepare() -> None:
        os.umask(mask)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small job ran to its end under umask 077."""
    home = tmp_path_factory.mktemp("finished")
    done = start("lmm_forget.run", *SMALL, cwd=home, mask=0o077)
    assert done.returncode == 0, done.stderr
    return home


def test_nothing_that_a_job_leaves_can_be_read_by_others_where_the_umask_says_so(finished: Path) -> None:
    found = modes(finished / "multirun")
    for name in ("results.json", "status.json", "job.yaml", "store.json", "answers.parquet", "job.log"):
        assert any(path.endswith(f"/{name}") for path in found)
    assert any(path.endswith("delta.safetensors") for path in found) and "small/summary.html" in found
    assert {name for name, mode in found.items() if mode != 0o600} == set()


@pytest.mark.parametrize("limit, file", [(0, "status.json"), (1500, "answers.parquet")])
def test_a_full_disk_is_one_line_that_names_the_file(limit: int, file: str, finished: Path) -> None:
    """The store has all that the job needs; what does not fit any more is what it leaves in its own folder."""
    (folder,) = (finished / "multirun" / "small").glob("*/job.yaml")
    for name in ("results.json", "answers.parquet", "training.csv"):
        (folder.parent / name).unlink(missing_ok=True)
    done = start("lmm_forget.experiment.job", str(folder), cwd=finished, limit=limit)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("lmm-forget: error: ") == 1
    said = done.stderr.splitlines()[-1]  # after the progress of loading
    assert said.startswith("lmm-forget: error: ") and f"/{folder.parent.name}/{file}: File too large; " in said
    if limit:
        status = json.loads((folder.parent / "status.json").read_text())
        assert status["state"] == "failed" and file in status["error"]
    assert not [path.name for path in folder.parent.iterdir() if path.name.startswith(f".{file}")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["lmm_forget", "store", "--help"], ["lmm_forget.run", "--help"], ["lmm_forget"]])
def test_a_full_standard_output_is_named(words: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "lmm-forget: error: standard output: No space left on device\n"


def write_all(path: Path) -> None:
    write_atomic(path, "x")


def append(path: Path) -> None:
    with add_path_to_os_errors(path), open(path, "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def draft(path: Path) -> None:
    with atomic_temporary_file(path) as other:
        other.write_text("a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("write", [write_all, append, draft])
def test_an_error_without_a_name_gets_one(
    write: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "job" / "results.json"
    path.parent.mkdir()
    path.write_text("before")
    assert run_with_exit_code(lambda: write(path)) == 2
    assert capsys.readouterr().err == f"lmm-forget: error: {path}: No space left on device\n"
    assert [each.name for each in path.parent.iterdir()] == ["results.json"] and path.read_text() == "before"
