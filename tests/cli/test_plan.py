"""`lmm-forget plan` as its users call it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lmm_forget.cli.plan import group_tensor_names, main
from tests.models.tiny import tiny_lmm


def asked(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert main([*argv, "format=json"]) == 0
    data: dict = json.loads(capsys.readouterr().out)
    return data


def test_json_for_a_real_model(capsys: pytest.CaptureFixture[str]) -> None:
    data = asked(capsys, "model=llava_onevision_7b", "recipe=sa_proj")
    assert (data["model"], data["recipe"], data["unused"]) == ("llava_onevision_7b", "sa_proj", 2 * 1152)
    assert round(data["trainable"] / 1e6) == 822
    assert data["delta_bytes"] == 2 * data["trainable"]
    assert data["state_bytes"] == 16 * data["trainable"] + 2 * (data["frozen"] + data["unused"])
    (rule,) = data["rules"]
    assert rule["tensors"] == len(rule["names"]) == 28 * 7


def test_adapters_are_counted_and_the_tensors_they_end_up_in(capsys: pytest.CaptureFixture[str]) -> None:
    data = asked(capsys, "model=llava_onevision_7b", "recipe=lora")
    assert data["trainable"] == 28 * 3 * 256 * (3584 + 18944)
    assert round(data["merged"] / 1e6) == 5703 and data["delta_bytes"] == 2 * data["merged"]
    whole = data["merged"] + data["frozen"] + data["unused"]
    assert data["state_bytes"] == 16 * data["trainable"] + 2 * whole
    qkvo = "recipe.rules=[{component: language, sublayers: [q_proj, k_proj, v_proj, o_proj]}]"
    upper = asked(capsys, "model=qwen2_5_vl_3b", "recipe=lora", qkvo, "recipe.layers=upper_half")
    assert upper["rules"][0]["tensors"] == 18 * 4  # no biases
    assert main(["model=llava_onevision_7b", "recipe=lora"]) == 0
    out = capsys.readouterr().out
    assert "moves by an adapter, weights of:" in out and "merged                  5,703.2 M" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_memory_beside_training_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    plain = asked(capsys, "model=llava_next_8b", "recipe=mlp")
    wise = asked(capsys, "model=llava_next_8b", "recipe=wise_ft")
    assert wise["trainable"] == plain["trainable"] and wise["delta_bytes"] == plain["delta_bytes"]
    assert wise["state_bytes"] == plain["state_bytes"] + plain["delta_bytes"]


def test_layer_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    whole = asked(capsys, "model=llava_next_8b", "recipe=mlp_gateup")
    upper = asked(capsys, "model=llava_next_8b", "recipe=mlp_gateup", "recipe.layers=upper_half")
    span = asked(capsys, "model=llava_next_8b", "recipe=mlp_gateup", "recipe.layers=16:32")
    assert upper["trainable"] * 2 == whole["trainable"] and span["rules"][0]["names"] == upper["rules"][0]["names"]


def test_the_table_says_what_moves_and_what_never_can(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=llava_next_8b", "recipe=full"]) == 0
    out = capsys.readouterr().out
    assert "model.language_model.layers.{0-31}.mlp: gate_proj, up_proj, down_proj" in out
    assert "model.vision_tower.encoder.layers.23.mlp: fc1, fc2" in out
    assert "8,342.7 M parameters, 668 tensors" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_a_model_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lmm = tiny_lmm("qwen2_5_vl")
    lmm.model.config.save_pretrained(tmp_path)
    data = asked(capsys, "model=qwen2_5_vl_7b", f"model.path={tmp_path}", "recipe=llm")
    assert data["trainable"] == sum(i.numel for i in lmm.components if i.component == "language")


def test_the_packaged_model_needs_no_architecture_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    data = asked(capsys, "model=tiny_onevision", "recipe=llm")
    assert data["model"] == "tiny_onevision"
    assert data["delta_bytes"] == 4 * data["trainable"] and 0 < data["trainable"] < 5e6


def test_a_recipe_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "heads.yaml").write_text(
        "name: heads\nlayers: all\nrules:\n  - component: language\n    sublayers: [lm_head]\n"
    )
    data = asked(capsys, "--config-dir", str(tmp_path), "model=llava_next_8b", "recipe=heads")
    assert data["rules"][0]["names"] == ["lm_head.weight"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model=nope"], "llava_next_8b"),
        (["model=llava_next_8b", "recipe=nope"], "sa_proj_mlp_gateup"),
        (["model=llava_next_8b", "recipe.layers=20:40"], "the model has layers 0 to 31"),
        (["model=llava_next_8b", "recipe.layers=middle"], "upper_half"),
        (["model=llava_next_8b", "recipe=projector", "recipe.layers=1"], "has no rule with layers"),
        (["model=llava_next_8b", "format=xml"], "choose one of: table, json"),
        (["model=llava_next_8b", "model.architecture=nope"], "qwen2_5_vl_3b"),
        (["model=llava_next_8b", "model.path=/nowhere"], "no config.json"),
        (["model=llava_next_8b", "recipe.layer=3"], "layers"),
        (["model=llava_next_8b", "recipe=lora", "recipe.method.rank=0"], "rank=0: must be a whole number"),
        (["model=llava_next_8b", "recipe=wise_ft", "recipe.method.alpha=2"], "from 0 to 1"),
        (["model=llava_next_8b", "recipe=lora", "recipe.method.compat=[all]"], "there is: projector"),
        (
            ["model=llava_next_8b", "recipe=lora", "recipe.rules=[{component: language, sublayers: [norm]}]"],
            "norm",
        ),
        (["model"], "model"),
    ],
)
def test_a_bad_request_is_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("lmm-forget: error: ") and message in said.err


def test_names_are_collapsed_by_layer_and_parent() -> None:
    names = [f"m.layers.{i}.mlp.{leaf}.weight" for i in (0, 1, 2, 5) for leaf in ("up", "down")]
    names += ["head.weight", "newline"]
    assert group_tensor_names(names) == ["m.layers.{0-2,5}.mlp: up, down", "head, newline"]


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['lmm-forget', 'plan', '--help']\n"
        "try: runpy.run_module('lmm_forget', run_name='__main__')\n"
        "except SystemExit as end: print('code', end.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("usage: lmm-forget plan") and lines[-1] == "code 0 False"


def test_no_network_is_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the plan went to the network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for model in ("qwen2_5_vl_3b", "llava_onevision_0_5b"):
        assert asked(capsys, f"model={model}", "recipe=vision")["trainable"] > 0


def test_a_family_that_the_model_is_not_of_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=llava_onevision_7b", "model.family=qwen2_5_vl"]) == 2
    assert (
        "model.family=qwen2_5_vl, but the model in llava_onevision_7b is a llava_onevision" in capsys.readouterr().err
    )
    assert main(["model=llava_onevision_7b", "model.family=nonsense"]) == 2
    assert "needs its line in models/registry.py" in capsys.readouterr().err
