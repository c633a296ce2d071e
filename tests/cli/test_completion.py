"""Tab completion: what can follow on a line, and that a real bash gets it there."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmm_forget.cli.completion import BASH_SCRIPT, complete_line
from lmm_forget.cli.main import COMMAND_NAMES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("line", "some", "none"),
    [
        ("lmm-forget ", list(COMMAND_NAMES), ["--help"]),
        ("lmm-forget st", ["status", "store"], ["run"]),
        ("lmm-forget --v", ["--version"], ["--help"]),
        ("lmm-forget store ", ["ls", "gc"], ["store="]),
        ("lmm-forget store gc ", ["apply=", "runs=", "store=", "format="], ["force="]),
        ("lmm-forget store gc apply=", ["apply=true", "apply=false"], []),
        ("lmm-forget status f", ["format="], []),
        ("lmm-forget status format=", ["format=table", "format=json"], []),
        ("lmm-forget data check task=tiny_c", ["task=tiny_cub200"], ["task=ai2d"]),
        ("lmm-forget plan recipe=sa_", ["recipe=sa_proj", "recipe=sa_qkv"], ["recipe=llm"]),
        ("lmm-forget run -m recipe=sa_proj,ml", ["recipe=sa_proj,mlp_gateup"], ["recipe=mlp"]),
        ("lmm-forget run hydra/launcher=", ["hydra/launcher=slurm"], []),
        ("lmm-forget run sequence=single sequence.task=tiny_t", ["sequence.task=tiny_timeclock"], []),
        ("lmm-forget run rec", ["recipe=", "recipe."], []),
        ("lmm-forget run training.ep", ["training.epochs="], []),
        ("lmm-forget run recipe=lora recipe.method.", ["recipe.method.rank="], []),
        ("lmm-forget run recipe=nope training.", [], ["training.epochs="]),
        ("lmm-forget run --c", ["--cfg", "--config-dir"], []),
        ("lmm-forget nope x", [], ["format="]),
        ("lmm-forget run 'a ", [], []),
        ("lmm-forget run --help tr", ["training"], ["training="]),
        ("lmm-forget run hardware.strategy=", ["hardware.strategy=ddp", "hardware.strategy=fsdp"], []),
        ("lmm-forget run st", ["store="], ["strategy="]),
    ],
)
def test_what_a_word_can_become(line: str, some: list[str], none: list[str]) -> None:
    candidates = complete_line(line)
    assert set(some) <= set(candidates) and not set(none) & set(candidates)
    assert line.endswith(" ") or all(each.startswith(line.split()[-1]) for each in candidates)


def test_groups_of_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("name: mine\n")
    assert "recipe=mine" in complete_line(f"lmm-forget run --config-dir {tmp_path} recipe=m")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("lmm-forget pl", ["plan"]),
        ("lmm-forget store gc app", ["apply="]),
        ("lmm-forget run recipe=mlp_", ["mlp_down", "mlp_gateup"]),  # bash has cut the word behind =
        ("lmm-forget run -m recipe=llm,mlp_g", ["llm,mlp_gateup"]),
        ("lmm-forget export run=nothing-here", []),  # bash then completes files
    ],
)
def test_a_real_bash_completes(line: str, replies: list[str], tmp_path: Path) -> None:
    """As readline calls it: the registered function, with COMP_LINE, COMP_POINT, COMP_WORDS and COMP_CWORD."""
    script = tmp_path / "lmm-forget"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m lmm_forget "$@"\n')
    script.chmod(0o755)
    words = line.replace("=", " = ").split()
    program = "\n".join(
        [
            'eval "$(lmm-forget completion bash)"',
            "function=$(complete -p lmm-forget | sed 's/.*-F \\([^ ]*\\).*/\\1/')",
            f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}",
            f"COMP_WORDS=({' '.join(map(shlex.quote, words))}) COMP_CWORD={len(words) - 1}",
            '"$function" lmm-forget "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"',
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
    )
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "--norc", "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == "" and done.stdout.split() == replies


def test_the_script_is_bash(tmp_path: Path) -> None:
    assert subprocess.run(["bash", "-n"], input=BASH_SCRIPT, text=True, capture_output=True).stderr == ""
