"""The W&B view as code. After a change on purpose, write the golden file anew:

lmm-forget dashboard entity=team format=json > tests/report/golden/dashboard.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmm_forget.cli import dashboard
from tests.tracking.fake_server import KEY, Server

GOLDEN = Path(__file__).parent / "golden" / "dashboard.json"


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert dashboard.main([*words, "format=json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_view_is_the_golden_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "entity=team") == json.loads(GOLDEN.read_text())


def test_every_benchmark_has_a_panel_and_the_rest_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("entity=me", "project=p", "title=Mine", "sweep=demo", "suite.tasks=[ai2d,mmstar]")
    view = shown(capsys, *words)
    assert (view["entity"], view["project"], view["displayName"]) == ("me", "p", "Mine")
    section = view["spec"]["section"]
    panels = {part["name"]: part["panels"] for part in section["panelBankConfig"]["sections"]}
    scatter = panels["Learning against forgetting"][0]
    assert scatter["viewType"] == "Scatter Plot"
    assert scatter["config"]["xAxis"] == "summary:figures/target_learning"
    assert scatter["config"]["yAxis"] == "summary:figures/heldout_forgetting"
    heldout = panels["Held-out abilities per stage"][0]["config"]
    assert (heldout["metrics"], heldout["xAxis"]) == (["heldout/change"], "stage")
    assert heldout["groupBy"] == "recipe.value.name"
    assert [panel["config"]["metrics"] for panel in panels["Benchmarks"]] == [
        ["score/tiny_ai2d"],
        ["score/tiny_mmstar"],
    ]
    assert len(panels["Probes"]) == 4
    assert panels["Runs side by side"][0]["viewType"] == "Run Comparer"
    assert "demo" in json.dumps(section["runSets"][0]["filters"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "entity is missing"),
        (["entity=me", "format=pdf"], "format=pdf is not known; choose one of: view, json"),
        (["entity=me", "suite=none"], "suite"),
        (["entity=me", "title=${x}"], "title='${x}' holds the symbol '$' (U+0024)"),
        (["entity=me", "title=Runs \U0001f680"], "(U+1F680)"),
        (["entity=me", "title=a + b"], "holds the symbol '+'"),
        (["entity=me", "title= "], "title= is empty; give title=TEXT"),
        (["entity=me", "title="], "title= is empty; give title=TEXT"),
        (["entity=me", "title=\u200b"], "title='\\u200b' is blank"),
        (["entity=me", "title=a\x1bb"], "title='a\\x1bb' holds the character U+001B"),
        (["entity=me", "title=" + "x" * 129], "title=xxxxxxxxxxxxxxxxxxxx… has 129 characters"),
        (["entity= "], "entity= is empty; give entity=NAME"),
        (["entity="], "entity= is empty"),
        (["entity=a b"], "entity='a b' cannot be the name of a user or team in W&B: it holds ' '"),
        (["entity=a/b"], "entity='a/b' cannot be the name of a user or team in W&B: it holds '/'"),
        (["entity=me", "project= "], "project= is empty"),
        (["entity=me", "project=x/y"], "project='x/y' cannot be the name of a project in W&B: it holds '/'"),
        (["entity=me", "project=x?nw=1"], "holds '?'"),
        (["entity=me", "sweep= "], "sweep= is empty"),
        (["entity=me", "sweep=multirun/demo"], "sweep='multirun/demo' is no sweep's name"),
        (["entity=me", "view= "], "view= is empty; give view=URL"),
        (["entity=me", "view=notaurl"], "view=notaurl is not the address of a saved view; it looks like"),
        (["entity=me", "view=http://[x"], "view=http://[x is not the address of a saved view"),
        (["entity=me", "view=https://wandb.ai/me"], "https://wandb.ai/me/lmm-forget?nw="),
        (["entity=me", "view=https://wandb.ai/me/lmm-forget"], "is not the address of a saved view"),
        (["entity=me", "view=https://wandb.ai/me/lmm-forget?nw=nwuserme"], "is not the address of a saved"),
        (["entity=me", "view=https://wandb.ai/you/p?nw=a1"], "is a view of you/p, and the dashboard is for"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    """Whatever is done with the view, before the network is asked and before anything is printed."""
    for more in ([], ["format=json"]) if "format=pdf" not in words else ([],):
        assert dashboard.main([*words, *more]) == 2
        told = capsys.readouterr()
        (line,) = told.err.strip().splitlines()
        assert line.startswith("lmm-forget: error: ") and said in line and told.out == ""


def test_names_that_wandb_takes(capsys: pytest.CaptureFixture[str]) -> None:
    view = shown(capsys, "entity=My-team_1", "project=a b.c", "title=Küche, 2nd (seed 0)", "sweep=demo-seed=0")
    assert (view["entity"], view["project"], view["displayName"]) == (
        "My-team_1",
        "a b.c",
        "Küche, 2nd (seed 0)",
    )


def test_saving_makes_a_view_and_replaces_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import wandb

    server = Server()
    for name, value in (("BASE_URL", server.url), ("API_KEY", KEY), ("ERROR_REPORTING", "false")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()
    try:
        assert dashboard.main(["entity=me"]) == 0
        address = capsys.readouterr().out.strip().splitlines()[-1]
        (saved,) = server.views.values()
        assert (saved["entityName"], saved["projectName"], saved["type"]) == (
            "me",
            "lmm-forget",
            "project-view",
        )
        assert json.loads(saved["spec"]) == json.loads(GOLDEN.read_text())["spec"]

        assert dashboard.main(["entity=me", "title=Newer", f"view={address}"]) == 0
        (replaced,) = server.views.values()
        assert (replaced["name"], replaced["id"]) == (saved["name"], f"id-{saved['name']}")
        assert replaced["displayName"] == "Newer"

        server.refuses = True
        capsys.readouterr()
        assert dashboard.main(["entity=me"]) == 2
        assert (
            capsys.readouterr()
            .err.strip()
            .splitlines()[-1]
            .startswith("lmm-forget: error: the dashboard could not be saved")
        )
    finally:
        wandb.teardown()
        server.close()
