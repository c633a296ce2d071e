"""Answers and stages that were kept for something else than what is asked now."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from lmm_forget.report.sweep_report import load_sweep_report
from lmm_forget.report.sweep_summary import write_sweep_summary
from lmm_forget.tasks.hub import HubTask
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from tests.field.inputs import (
    QUICK,
    answers,
    command,
    edit_json,
    home,
    job,
    read_rows,
    results,
    said,
    tiny,
    work_done,
    write_rows,
)

EIGHT = "data.eval_samples=8"


@pytest.fixture
def used(shared_home: Path) -> Path:
    """A user's folder with a model, a finished job of it, and a store that knows its answers."""
    return shared_home


def other_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    name = "language_model.lm_head.weight" if "language_model.lm_head.weight" in weights else "lm_head.weight"
    weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def other_positions(model: Path) -> None:
    edit_json(model / "config.json", text_config__rope_parameters={"rope_theta": 3.0, "rope_type": "default"})


def other_template(model: Path) -> None:
    path = model / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant\\n", "assistant tells:\\n\\n"))


def other_end(model: Path) -> None:
    # The third token of what it says to many a question here.
    token = tiny(model).processor.tokenizer.encode("a none . right green", add_special_tokens=False)[2]
    edit_json(model / "generation_config.json", eos_token_id=[2, token])


def changed_model(used: Path, change: Callable[[Path], None], name: str, *, teaches_anew: bool = True) -> None:
    """After a change of the model's folder, everything is what a store that knows nothing would give."""
    before = answers(used / "multirun" / "field" / "plain")
    model = shutil.copytree(used / "model", used / f"model_{name}")
    change(model)
    again = job(used, f"model.path={model}", EIGHT, into=name)
    now = answers(again)
    asked, trained = work_done(again)
    mine = [sample for task, sample in now if task == "mine"]
    rows = {row["id"]: row for row in read_rows(used / "data.jsonl")}
    write_rows(used / f"{name}.jsonl", [rows[sample] for sample in mine])
    true = said(tiny(model), used / f"{name}.jsonl")
    assert [now["mine", sample] for sample in mine] == true
    assert now != before, "the change must be one that answers show"
    assert asked == 2 * len(now), "base and stage are asked anew"
    assert trained == 1 or not teaches_anew, "the stage of the model as it was is not a stage of this one"


def test_weights_replaced_at_the_same_path(used: Path) -> None:
    """pytorch/ao PR 3073: a model trained again at the same path got the old results from an evaluation cache.

    Right: new weights are asked and taught anew, whatever their folder is called.
    """
    changed_model(used, other_weights, "weights")


def test_another_rope_theta_in_config_json(used: Path) -> None:
    """lm-evaluation-harness 4063: the cache does not know the model's settings, so old answers come back.

    Right: the weights are the same, the model that they make is not, so everything is asked and taught anew.
    """
    changed_model(used, other_positions, "rope")


def test_another_chat_template(used: Path) -> None:
    """lmms-eval 1255: after a change of the prompt's format, cached answers to the old format were reported.

    Right: another template is another question.
    """
    changed_model(used, other_template, "template")


def test_other_end_tokens_in_the_generation_config(used: Path) -> None:
    """transformers 23175: where an answer ends depends on end tokens that stand beside the weights.

    Right: answers that stopped elsewhere are not taken for this model's.
    """
    changed_model(used, other_end, "end", teaches_anew=False)


def test_two_models_that_differ_in_a_file_beside_the_weights_are_two_rows(used: Path) -> None:
    """lmms-eval PR 1217 keyed results by a model's name: two different models became one row.

    Right: jobs of two folders with the same weights and different templates are both on the page.
    """
    twin = used / "twin"
    shutil.copytree(used / "model", twin)
    other_template(twin)
    (used / "pair").mkdir()
    for name, model in (("a", used / "model"), ("b", twin)):
        shutil.copytree(job(used, f"model.path={model}", EIGHT, "name=pair", into=f"pair_{name}"), used / "pair" / name)
    found = write_sweep_summary(load_sweep_report(used / "pair"))
    assert len(found["jobs"]) == 2, found["notes"]


def test_the_same_command_after_the_data_changed(tmp_path: Path) -> None:
    """lmms-eval 850: results of an earlier version of a data set were shown as if they were of this one.

    Right: the same command says what changed and does the job again; new references decide the new scores.
    """
    folder = home(tmp_path)
    done = job(folder, EIGHT, "recipe=sa_proj")
    before = results(done)["base"]["scores"]["mine"]["value"]
    rows = read_rows(folder / "data.jsonl")
    kept = {sample: text for (task, sample), text in answers(done).items() if task == "mine"}
    # Now every answer that the base gave is the reference: 100 %.
    write_rows(folder / "data.jsonl", [{**row, "answer": kept.get(row["id"], "red")} for row in rows])
    words = ["--config-dir", "conf", *QUICK, EIGHT, "recipe=sa_proj"]
    again = command(folder, "lmm_forget.run", *words)
    assert again.returncode == 0, again.stderr
    assert "finished already; nothing to run" not in again.stderr
    assert "mine" in again.stderr, "what changed is named"
    after = results(done)["base"]["scores"]["mine"]["value"]
    assert before < 100 and after == 100


def test_a_picture_replaced_under_its_name(own_home: Path) -> None:
    """lmms-eval 542: cached answers were looked up by the question's id; another picture under that id got them.

    Right: the question about the new picture is asked again, those about the others are not.
    """
    before = own_home / "multirun" / "field" / "plain"
    asked = [sample for task, sample in answers(before) if task == "mine"]
    # Without splits of its own a file is divided by the content of its pictures, and the new one might be trained on.
    rows = read_rows(own_home / "data.jsonl")
    write_rows(
        own_home / "data.jsonl",
        [{**row, "split": "test" if row["id"] in asked else "train"} for row in rows],
    )
    sample = asked[0]
    picture = own_home / "img" / f"{sample.removeprefix('q')}.png"
    stamp = picture.stat().st_mtime_ns
    Image.effect_noise((64, 64), 90).convert("RGB").save(picture)
    os.utime(picture, ns=(stamp, stamp))
    again = job(own_home, f"model.path={own_home / 'model'}", EIGHT, into="picture")
    assert results(again)["timings"]["base_evaluated"] == 1
    assert answers(again).keys() == answers(before).keys()


def parquet(path: Path, answer: str) -> None:
    pictures = [{"bytes": _png(i), "path": None} for i in range(4)]
    columns = {"question": ["Which colour?"] * 4, "answer": [answer] * 4, "image": pictures}
    pq.write_table(pa.table(columns), path, compression="none")


def _png(i: int) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (i, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def hub(path: Path) -> HubTask:
    fields = {"question": "question", "answer": "answer", "image": "image"}
    return HubTask(
        name="mine",
        role="held_out",
        path=str(path),
        splits={"test": "test"},
        fields=fields,
        max_new_tokens=4,
        scorer=ExactMatchScorer(),
    )


def test_a_parquet_file_changed_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets 6465 and 2956: `load_dataset` gave the cached old version of a file that had changed.

    Right: the file's content decides, even where path, size and time stamp are those of the old one.
    """
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "data.parquet"
    parquet(file, "green")
    old, stat = hub(file), file.stat()
    assert {sample.answers for sample in old.load_samples("test")} == {("green",)}
    before = old.fingerprint_split("test")
    parquet(file, "white")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size and file.stat().st_mtime_ns == stat.st_mtime_ns
    new = hub(file)
    assert {sample.answers for sample in new.load_samples("test")} == {("white",)}
    assert new.fingerprint_split("test") != before
