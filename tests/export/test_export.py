"""Exported folders: loaded by Transformers alone they say, bit for bit, what the stage model said in its job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from lmm_forget.cli.export import main
from lmm_forget.config import compose_config, resolve_config
from lmm_forget.experiment import pipeline
from lmm_forget.experiment.job import main as run_job
from lmm_forget.models.loading import LMM
from lmm_forget.models.weight_hashes import hash_parameters, hash_weights
from tests.models.tiny import picture, tiny_lmm

pytestmark = pytest.mark.timeout(1800)  # jobs and a process of its own; a busy machine is not a failure
QUESTION = "Which letter?"
SMALL = [
    "experiment=smoke",
    "suite.tasks=[ai2d]",
    "data.train_samples=8",
    "data.eval_samples=2",
    "training.max_steps=2",
    "training.learning_rate=1e-2",
    "sequence=order",
    "sequence.tasks=[cub200,timeclock]",
]
# Family -> recipe, dtype of the base, settings of the decoder.
CASES: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "llava_onevision": ("lora", torch.bfloat16, {"tie_word_embeddings": True}),
    "llava_next": ("full", torch.bfloat16, {}),
    "qwen2_5_vl": ("wise_ft", torch.float32, {}),
}
# What a user of the folder does; nothing of this package is imported.
READER = """
import sys
from pathlib import Path
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

for folder in map(Path, sys.argv[2:]):
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": "Which letter?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.open(sys.argv[1])], return_tensors="pt")
    logits = model(**inputs).logits.detach().contiguous()
    save_file({"logits": logits}, folder.parent / f"{folder.name}.logits")
print("lmm_forget" in sys.modules)
"""


class Exported(NamedTuple):
    """A job, the folder of its exported last stage, and the model as it stood in memory at the job's end."""

    job: Path
    out: Path
    lmm: LMM
    results: dict[str, Any]


def make_job(folder: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> Exported:
    recipe, dtype, settings = CASES[family]
    base, job = folder / f"{family}-base", folder / "multirun" / "sweep" / family
    lmm = tiny_lmm(family, dtype=dtype, max_position_embeddings=1024, **settings)
    lmm.model.save_pretrained(base)
    lmm.processor.save_pretrained(base)
    overrides = [f"recipe={recipe}", f"model.path={base}", f"model.family={family}", "model.dtype=auto"]
    config = resolve_config(compose_config([*SMALL, *overrides, f"store={folder / 'store'}"]))
    job.mkdir(parents=True)
    (job / "job.yaml").write_text(json.dumps(config))
    grounds, lay = [], pipeline.build_context

    def listening(*arguments: Any) -> Any:
        grounds.append(lay(*arguments))
        return grounds[-1]

    monkeypatch.setattr(pipeline, "build_context", listening)
    assert run_job([str(job / "job.yaml")]) == 0
    return Exported(job, folder / family, grounds[0].lmm, json.loads((job / "results.json").read_text()))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = {family: make_job(folder, family, monkeypatch) for family in CASES}
    for each in made.values():
        assert main([f"run={each.job}", f"out={each.out}", "stage=last"]) == 0
    return made


def test_transformers_alone_gives_the_same_logits(exported: dict[str, Exported], tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    picture(80, 56).save(image)
    folders = [str(each.out) for each in exported.values()]
    done = subprocess.run(
        [sys.executable, "-c", READER, str(image), *folders],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.strip() == "False", done.stdout + done.stderr
    for family, each in exported.items():
        encoded = each.lmm.family.encode_batch(each.lmm.processor, [QUESTION], [[Image.open(image)]])
        with torch.no_grad():
            wanted = each.lmm.model(**encoded.tensors).logits
        found = load_file(each.out.parent / f"{each.out.name}.logits")["logits"]
        assert found.dtype == CASES[family][1] == wanted.dtype
        assert torch.equal(found, wanted), family


def test_the_folder_is_the_last_stage_and_stage_1_the_one_before(
    exported: dict[str, Exported], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in exported.values():
        model = AutoModelForImageTextToText.from_pretrained(each.out)
        assert hash_weights(hash_parameters(model)) == each.results["stages"][1]["weights_hash"]
        assert {p.suffix for p in each.out.iterdir()} == {".json", ".safetensors", ".jinja", ".md"}
    each = exported["llava_next"]
    out = tmp_path / "earlier"
    assert main([f"run={each.job}", f"out={out}", "stage=1", "format=json"]) == 0
    told = json.loads(capsys.readouterr().out)
    model = AutoModelForImageTextToText.from_pretrained(out)
    first = each.results["stages"][0]
    assert hash_weights(hash_parameters(model)) == first["weights_hash"] == told["weights_hash"]
    assert first["weights_hash"] != each.results["stages"][1]["weights_hash"]
    assert (told["stage"], told["task"], told["dtype"]) == (1, "tiny_cub200", "bfloat16")
    assert told["bytes"] == sum(p.stat().st_size for p in out.iterdir())


def test_the_card_says_what_was_done(exported: dict[str, Exported]) -> None:
    each = exported["llava_onevision"]
    card = (each.out / "README.md").read_text()
    plan, figures = each.results["plan"], each.results["figures"]
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n")
    assert "tiny_onevision, trained on tiny_cub200, tiny_timeclock with lora" in card
    assert f"Trained {plan['trainable']:,} parameters, merged into {plan['merged']:,}" in card
    learning = figures["target_learning"]
    assert f"| target learning | {learning['value']:+.1f} [{learning['low']:+.1f}, {learning['high']:+.1f}] |" in card
    assert each.results["stages"][1]["weights_hash"] in card and "stand-ins" in card
    assert str(each.job.parents[2]) not in "".join(
        p.read_text() for p in each.out.iterdir() if p.suffix != ".safetensors"
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("lmm-forget: error: ") and said.err.count("\n") == 1
    return said.err


def test_bad_requests_are_one_line(
    exported: dict[str, Exported], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    each = exported["qwen2_5_vl"]
    run, out = f"run={each.job}", f"out={tmp_path / 'new'}"
    assert "exists already" in refused(capsys, run, f"out={each.out}")
    assert "no such folder" in refused(capsys, f"run={tmp_path / 'gone'}", out)
    assert "one of its finished jobs: llava_next, llava_onevision, qwen2_5_vl" in refused(
        capsys, f"run={each.job.parent}", out
    )
    assert "stage=3 does not exist; the job has: 1 (tiny_cub200), 2 (tiny_timeclock), or last" in refused(
        capsys, run, out, "stage=3"
    )
    assert "stage=0 does not exist" in refused(capsys, run, out, "stage=0")
    missing = refused(capsys, run, out, f"store={tmp_path / 'empty'}")
    assert "stage 2 (tiny_timeclock) are not in the store" in missing and "store=FOLDER" in missing
    assert "has no config.json" in refused(capsys, run, out, f"base={tmp_path / 'gone'}")
    assert "there is no option stages=; export has: run=, out=" in refused(capsys, run, out, "stages=1")
    assert "out= is missing" in refused(capsys, run)
    assert "stage is given twice" in refused(capsys, run, out, "stage=1", "stage=2")
    assert "stage= is empty; give stage=N" in refused(capsys, run, out, "stage=")
    # Said before the base is read: nothing is printed but this.
    assert "out=/proc/x/y cannot be written" in refused(capsys, run, "out=/proc/x/y")
    assert "format=yaml is not known; choose one of: text, json" in refused(capsys, run, out, "format=yaml")
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".new*"))


def test_a_job_without_results_is_not_exported(
    exported: dict[str, Exported], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job"
    shutil.copytree(exported["qwen2_5_vl"].job, job)
    (job / "results.json").unlink()
    status = json.loads((job / "status.json").read_text())
    (job / "status.json").write_text(json.dumps({**status, "state": "failed", "error": "the disk was full"}))
    said = refused(capsys, f"run={job}", f"out={tmp_path / 'out'}")
    assert "no results yet, it is failed: the disk was full" in said


def test_another_base_or_a_damaged_store_is_never_exported(
    exported: dict[str, Exported], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    each = exported["qwen2_5_vl"]
    run, out = f"run={each.job}", f"out={tmp_path / 'out'}"
    other = tiny_lmm("qwen2_5_vl", seed=7, max_position_embeddings=1024)
    other.model.save_pretrained(tmp_path / "base")
    other.processor.save_pretrained(tmp_path / "base")
    assert "not the one that the job started from" in refused(capsys, run, out, f"base={tmp_path / 'base'}")
    shutil.copytree(each.job.parents[2] / "store", tmp_path / "store")
    (delta,) = (tmp_path / "store").rglob(f"{each.results['stages'][1]['key']}/delta.safetensors")
    content = bytearray(delta.read_bytes())
    content[-5] ^= 1
    delta.write_bytes(content)
    assert "damaged" in refused(capsys, run, out, f"store={tmp_path / 'store'}")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_cannot_be_written_is_one_line(
    exported: dict[str, Exported], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    said = refused(capsys, f"run={exported['qwen2_5_vl'].job}", f"out={tmp_path / 'file' / 'out'}")
    assert "cannot be written" in said


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "run=multirun/demo/sa_proj out=exported/sa_proj" in capsys.readouterr().out
