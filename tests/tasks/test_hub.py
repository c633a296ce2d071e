"""The hub path itself, against a hub on this machine: download, stream, revisions, and what is said when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.tasks import published
from tests.tasks.hub import SHA, serving

ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = """
import json, sys
from omegaconf import OmegaConf
from lmm_forget.config import find_conf_dir
from lmm_forget.errors import DataError
from lmm_forget.tasks.task_loading import build_task

def node(name, **changes):
    return {**OmegaConf.to_container(OmegaConf.load(find_conf_dir() / "task" / f"{name}.yaml")), **changes}

def tried(name, **changes):
    task = build_task(node(name, **changes))
    try:
        part = task.validate_split("test")
        first = part[0]
        return {"n": len(part), "question": first.question, "pixels": list(first.images[0].getpixel((0, 0))),
                "streamed": part.table.is_streamed, "from": task.get_provenance(), "print":
                task.fingerprint_split("test")}
    except DataError as error:
        return str(error)

print("RESULT " + json.dumps([tried(name, **changes) for name, changes in json.loads(sys.argv[1])]))
"""


def ask(cases: list[tuple[str, dict[str, Any]]], home: Path, endpoint: str, **environment: str) -> list[Any]:
    """What a process of its own gets from the hub at `endpoint`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env = {**kept, "PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_ENDPOINT": endpoint, **environment}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(cases)],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout + done.stderr
    return list(json.loads(lines[-1].removeprefix("RESULT ")))


def test_download_stream_and_refusals(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    published.write("ai2d", root / "lmms-lab" / "ai2d")
    published.write("docvqa", root / "lmms-lab" / "DocVQA")
    published.write("seedbench", root / "lmms-lab" / "SEED-Bench")
    published.write("chartqa", root / "someone" / "renamed")
    with serving(root) as (endpoint, seen):
        found = ask(
            [
                ("ai2d", {}),
                ("ai2d", {"revision": SHA}),
                ("ai2d", {"revision": "0000000000000000000000000000000000000000"}),
                ("docvqa", {}),
                ("seedbench", {}),
                ("chartqa", {}),
                ("chartqa", {"hub": "someone/renamed", "config": "other"}),
                ("chartqa", {"hub": "someone/renamed", "splits": {"test": "val"}}),
                ("mmstar", {"hub": "someone/renamed", "splits": {"test": "test"}}),
            ],
            tmp_path / "home",
            endpoint,
        )
        assert any(line.startswith("GET") and line.endswith(".parquet") for line in seen)
    newest, pinned, wrong, docs, seed, nowhere, config, split, schema = found
    assert newest["n"] == 8 and newest["question"].startswith("What is B?\nA. root")
    assert newest["from"] == {"test": f"lmms-lab/ai2d@{SHA}"}, "the resolved revision is recorded"
    assert pinned == newest
    assert wrong == (
        "task ai2d: lmms-lab/ai2d has no revision '0000000000000000000000000000000000000000'; "
        "revision=null takes the newest"
    )
    assert docs["n"] == 8 and not docs["streamed"]
    assert seed["n"] == 6 and seed["streamed"], "nothing of a large set is stored"
    assert not list((tmp_path / "home").rglob("*SEED*/**/*.arrow"))
    assert "lmms-lab/ChartQA is not on the hub" in nowhere
    assert config == "task chartqa: someone/renamed has no config 'other'; it has ['default']"
    assert split == "task chartqa: someone/renamed has no split 'val'; it has test"
    assert schema == (
        "task mmstar: someone/renamed (test) has no column 'index'; it has type, question, answer, image "
        "(a renamed one goes to the task's fields)"
    )
    offline = ask(
        [("ai2d", {}), ("ai2d", {"revision": SHA[::-1]}), ("mmstar", {})],
        tmp_path / "home",
        endpoint,
        HF_HUB_OFFLINE="1",
    )
    assert offline[0] == newest, "what was downloaded is read without a network"
    assert offline[1] == (
        f"task ai2d: revision {SHA[::-1]} of lmms-lab/ai2d is not in the cache, which has {SHA}; it needs a network"
    )
    assert offline[2] == (
        "task mmstar: Lin-Chen/MMStar cannot be reached (no network, and it is not in the cache); "
        "a local copy in the same schema goes to +tasks.mmstar.path"
    )
