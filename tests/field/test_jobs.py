"""Commands, folders and machines as they are: jobs that fail, die, meet, move, and run where little is as usual."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from lmm_forget.cli.compare import main as compare_main
from lmm_forget.cli.plan import main as plan_main
from lmm_forget.cli.store import main as store_main
from lmm_forget.distributed.heartbeat import read_job_status
from lmm_forget.launch.job_folders import JobLocks, make_job
from lmm_forget.launch.sweep_status import collect_sweep_status
from lmm_forget.report.sweep_report import load_sweep_report
from lmm_forget.report.sweep_summary import write_sweep_summary
from lmm_forget.run import main as run_main
from lmm_forget.tracking import open_tracker
from tests.field.inputs import (
    QUICK,
    ROOT,
    answers,
    command,
    job,
    read_rows,
    results,
    squares,
    task_yaml,
    work_done,
    write_rows,
)
from tests.tracking.fake_job import make_config, make_stage_metrics
from tests.tracking.run_reader import Run, run_files

WORDS = ["größe", "красный", "红色", "white"]


class Sweep(NamedTuple):
    """A sweep of two jobs, one of which cannot be done, where little is as usual."""

    done: subprocess.CompletedProcess[str]
    folder: Path


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """In a folder with blanks and other letters, in a C locale, without a home or stdin, far from UTC, umask 077."""
    folder = tmp_path_factory.mktemp("odd") / "füll = of 'blanks'"
    folder.mkdir()
    task_yaml(folder, squares(folder, answers=[WORDS[i % 4] for i in range(24)]))
    rows = read_rows(folder / "data.jsonl")
    write_rows(folder / "broken.jsonl", [{**row, "image": f"nowhere/{row['id']}.png"} for row in rows])
    task_yaml(folder, folder / "broken.jsonl", name="broken")
    environment = {
        "HOME": "/proc/nowhere",
        "LC_ALL": "C",
        "LANG": "C",
        "PYTHONIOENCODING": "ascii",
        "TZ": "XYZ-14",
        "MPLCONFIGDIR": None,
        "XDG_CACHE_HOME": None,
    }
    words = ["--config-dir", "conf", *QUICK, "sequence.task=mine,broken", "name=odd"]
    done = command(
        folder, "lmm_forget.run", "-m", *words, env=environment, stdin=None, umask=0o077, preexec_fn=_no_stdin
    )
    return Sweep(done, folder)


def _no_stdin() -> None:
    os.close(0)


def test_a_failed_job_is_no_success(sweep: Sweep) -> None:
    """hydra 1928 and wandb 4591: failed jobs of a sweep were reported as COMPLETED, and shown as finished.

    Right: the other jobs are done, the failed one is named with its cause, and the exit code is 1.
    """
    assert sweep.done.returncode == 1, sweep.done.stderr
    assert "broken failed: task broken: 24 of 24 samples cannot be used" in sweep.done.stderr
    found = collect_sweep_status(sweep.folder / "multirun" / "odd")
    assert found["counts"] == {"done": 1, "failed": 1}
    assert not (sweep.folder / "multirun/odd/broken/results.json").exists()
    summary = json.loads((sweep.folder / "multirun/odd/summary.json").read_text(encoding="utf-8"))
    assert [entry["job"] for entry in summary["jobs"]] == ["task=mine"]
    assert [(entry["job"], entry["state"]) for entry in summary["unfinished"]] == [("task=broken", "failed")]


def test_a_folder_with_blanks_quotes_and_other_letters(sweep: Sweep) -> None:
    """hydra 1577, 2891 and Lightning 2696: paths with =, blanks or other letters broke the command line's grammar.

    Right: data, configuration, store and results may lie in such a folder.
    """
    job_folder = sweep.folder / "multirun" / "odd" / "task=mine"
    assert results(job_folder)["stages"] and (sweep.folder / "multirun/odd/summary.html").is_file()
    store = Path(json.loads((job_folder / "store.json").read_text())["store"])
    assert store == sweep.folder / "multirun" / ".store" and any((store / "stages").iterdir())


@pytest.mark.parametrize("name", ["a b", "it's", 'say "x"', "${oc.env:HOME}", "{a: b}, [x]=ü"])
def test_own_configuration_folders_of_any_name(tmp_path: Path, name: str, capsys: Any) -> None:
    """hydra 2705 and flower 3466: a character in a folder's name was read as a part of the grammar.

    Right: --config-dir takes any folder there is, whichever command.
    """
    conf = tmp_path / name
    (conf / "recipe").mkdir(parents=True)
    shutil.copy(ROOT / "conf" / "recipe" / "sa_proj.yaml", conf / "recipe" / "own.yaml")
    words = ["model=tiny_onevision", "recipe=own", "format=json"]
    assert plan_main(["--config-dir", str(conf), *words]) == 0, capsys.readouterr().err
    assert run_main(["--config-dir", str(conf), "recipe=own", "sweep.dry_run=true"]) == 0, capsys.readouterr().err


def test_texts_of_other_languages_in_a_c_locale(sweep: Sweep) -> None:
    """DataDreamer 13 and LlamaFactory 2877: 'ascii' codec can't decode byte, where no locale is set.

    Right: files are UTF-8 whatever the locale; nothing that is printed ends a job or a command.
    """
    assert "UnicodeEncodeError" not in sweep.done.stderr and "Traceback" not in sweep.done.stderr
    rows = pq.read_table(sweep.folder / "multirun/odd/task=mine/answers.parquet").to_pylist()
    references = {word for row in rows if row["task"] == "mine" for word in row["references"]}
    assert references <= set(WORDS) and references - {"white"}
    for path in (sweep.folder / "multirun" / "odd").rglob("*"):
        if path.suffix in (".json", ".yaml", ".html", ".md", ".csv", ".log"):
            path.read_text(encoding="utf-8")
    assert "task=mine" in sweep.done.stdout or "sa_proj" in sweep.done.stdout


def test_no_home_and_no_stdin(sweep: Sweep) -> None:
    """matplotlib 30449 and dify 19214: 'Could not determine home directory' on a node where users have none.

    Right: nothing a job needs lies in a home, and nothing is read from a standard input that may be closed.
    """
    folder = sweep.folder / "multirun" / "odd" / "task=mine"
    assert (folder / "heldout_per_stage.png").stat().st_size > 1000
    assert work_done(folder)[1] == 1
    assert read_job_status(folder)["state"] == "done"


def test_times_do_not_depend_on_the_time_zone(sweep: Sweep) -> None:
    """A node, a login machine and a laptop may be in three time zones: local times make a job look old or new.

    Right: status.json tells UTC, and no job that runs far from it looks lost or new.
    """
    from datetime import UTC, datetime, timedelta

    for name in ("task=mine", "task=broken"):
        status = read_job_status(sweep.folder / "multirun" / "odd" / name)
        started, updated = (datetime.fromisoformat(status[key]) for key in ("started", "updated"))
        assert started.utcoffset() == timedelta(0) and started <= updated
        assert abs(datetime.now(UTC) - updated) < timedelta(hours=2)


def test_the_umask_is_respected(sweep: Sweep) -> None:
    """huggingface_hub 1215 and safetensors 782: files got fixed permissions, whatever the user's umask.

    Right: under umask 077 nothing of a job can be read by others.
    """
    open_to_others = [
        str(path.relative_to(sweep.folder))
        for path in (sweep.folder / "multirun").rglob("*")
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    assert open_to_others == []


def test_a_reader_that_leaves_early(plain: Path) -> None:
    """Backblaze B2 1071 and slash 967: `command | head` printed a traceback, or an exit code of failure.

    Right: nothing on stderr but what the command has to say.
    """
    for words in (f"status '{plain.parent}'", "", f"compare '{plain}' format=json"):
        line = f"'{sys.executable}' -m lmm_forget {words} | true; exit ${{PIPESTATUS[0]}}"
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, timeout=300, check=False)
        assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_two_commands_in_one_folder(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """lightning-hydra-template 226 and Lightning 16694: two jobs wrote into one folder, each over the other's files.

    Right: while one command runs a job, a second is refused in one line and touches nothing.
    """
    monkeypatch.chdir(own_home)
    words = ["--config-dir", "conf", *QUICK]
    running = make_job({"name": "tiny_onevision"}, "sa_proj-single=mine-seed0")
    with JobLocks() as folders:
        folders.acquire(running)
        before = contents(own_home)
        assert run_main(words) == 2
        assert contents(own_home) == before
    error = capsys.readouterr().err
    assert f"is run already by process {os.getpid()}" in error and error.count("\n") == 1


def test_a_killed_job_is_not_running(tmp_path: Path) -> None:
    """nomad 5408: a process that was killed outright stayed 'running' for ever.

    Right: nobody can see it run any more, so it is called lost, and its last step is still told.
    """
    folder = tmp_path / "sweep" / "job"
    folder.mkdir(parents=True)
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom lmm_forget.distributed.heartbeat import StatusFile\n"
        "with StatusFile(Path(sys.argv[1])) as status:\n"
        "    status.start_phase('train', 9, 'step')\n    print('ready', flush=True)\n    time.sleep(600)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "ready":
        assert process.poll() is None
    (entry,) = collect_sweep_status(folder.parent)["jobs"]
    assert entry["state"] == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (entry,) = collect_sweep_status(folder.parent)["jobs"]
    assert entry["state"] == "lost" and "gone" in entry["error"]


def test_two_jobs_are_two_runs_of_wandb(tmp_path: Path) -> None:
    """wandb 2877 and 1314: in a multirun, the second job logged into the first one's run, under its configuration.

    Right: every job has a run of its own with its own configuration, also after one that failed.
    """
    runs = []
    for name, fails in (("first", True), ("second", False)):
        config = {**make_config(tmp_path), "recipe": {"name": name}}
        tracker = open_tracker(config, tmp_path / name)
        tracker.log_stage(make_stage_metrics(0))
        tracker.close(RuntimeError("diverged") if fails else None)
        (path,) = run_files(tmp_path / name)
        runs.append(Run(path))
    first, second = runs
    assert first.run.run_id != second.run.run_id
    assert [run.config["recipe"]["name"] for run in runs] == ["first", "second"]
    assert first.exit == 1 and second.exit == 0 and first.summary["state"] == "failed"
    assert len(second.rows) == 1, "only what the second job said"


def test_a_job_folder_that_was_moved_and_linked_back(own_home: Path, capsys: Any) -> None:
    """A quota is full, so a finished run moves to another disk and is linked back; cleaning up takes it for gone.

    Right: what a job rests on stays, as long as the job can be reached.
    """
    jobs = own_home / "multirun" / "field"
    elsewhere = own_home / "other disk"
    elsewhere.mkdir()
    shutil.move(jobs / "plain", elsewhere / "plain")
    (jobs / "plain").symlink_to(elsewhere / "plain")
    kept = [stage["key"] for stage in results(jobs / "plain")["stages"]]
    assert store_main(["gc", "apply=true", f"store={own_home / 'multirun' / '.store'}"]) == 0
    for key in kept:
        assert (own_home / "multirun" / ".store" / "stages" / key / "delta.safetensors").is_file()


def test_a_copy_in_another_place(own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """fairchem PR 1055: what was resumed or read was the old path that a file remembered, not the copy.

    Right: a copied multirun shows the same figures, compares with itself, and needs nothing of the original.
    """
    copy = own_home / "usb stick"
    shutil.copytree(own_home / "multirun" / "field", copy / "field")
    shutil.rmtree(own_home / "multirun")
    shutil.rmtree(own_home / "img")
    found = write_sweep_summary(load_sweep_report(copy / "field"))
    (entry,) = found["jobs"]
    held_out = results(copy / "field" / "plain")["figures"]["heldout_forgetting"]["value"]
    assert (entry["job"], entry["figures"]["final"]["value"]) == ("plain", held_out)
    assert compare_main([str(copy / "field" / "plain"), "format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["heldout"]["value"] == pytest.approx(held_out)


def torn_answers(store: Path) -> None:
    for path in (store / "answers").glob("*/*.jsonl"):
        path.write_bytes(path.read_bytes()[:-40])


def lost_record(store: Path) -> None:
    for path in (store / "stages").glob("*/record.json"):
        path.unlink()


def cut_delta(store: Path) -> None:
    for path in (store / "stages").glob("*/delta.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])


def nothing_left(store: Path) -> None:
    shutil.rmtree(store)


@pytest.mark.parametrize("harm", [torn_answers, lost_record, cut_delta, nothing_left])
def test_parts_of_the_store_are_lost(own_home: Path, harm: Any) -> None:
    """Lightning 688 and speculators PR 739: a half-written checkpoint was taken for whole, or stopped every resume.

    Right: what is missing or damaged is done again when it is needed, and comes out the same.
    """
    harm(own_home / "multirun" / ".store")
    plain = own_home / "multirun" / "field" / "plain"
    again = job(own_home, f"model.path={own_home / 'model'}", "data.eval_samples=9", into="again")
    asked, trained = work_done(again)
    assert trained == (harm is not torn_answers) and asked >= 1
    first, second = ([stage["weights_hash"] for stage in results(each)["stages"]] for each in (plain, again))
    assert first == second
    for stage in (0, 1):
        assert answers(plain, stage).items() <= answers(again, stage).items()


def test_results_that_were_cut_off(own_home: Path) -> None:
    """metaseq 53 and allennlp 2129: the newest file was half of one, and was read as the result all the same.

    Right: a results.json that is not whole is no result; the job is called failed, and the page goes on without it.
    """
    jobs = own_home / "multirun" / "field"
    shutil.copytree(jobs / "plain", jobs / "cut")
    text = (jobs / "cut" / "results.json").read_bytes()
    (jobs / "cut" / "results.json").write_bytes(text[: len(text) // 2])
    assert collect_sweep_status(jobs)["counts"] == {"done": 1, "failed": 1}
    found = write_sweep_summary(load_sweep_report(jobs))
    assert [entry["job"] for entry in found["jobs"]] == ["plain"]
    (unfinished,) = found["unfinished"]
    assert unfinished["job"] == "cut" and "results.json" in unfinished["error"]


def test_a_disk_that_is_full(own_home: Path) -> None:
    """open_lm 154 and SimpleTuner 2613: a full disk left half a checkpoint, and the next start tried to load it.

    Right: one line that names the file; what was finished stays, and with room again the job ends as ever.
    """
    store = own_home / "multirun" / ".store"
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    words = [f"model.path={own_home / 'model'}", "data.eval_samples=8", "seed=5"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
        full = job(own_home, *words, into="full", code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = read_job_status(full)["error"]
    assert "cannot write" in error and ".store" in error and "\n" not in error
    assert not (full / "results.json").exists()
    assert all(path.read_bytes() == content for path, content in before.items())
    assert work_done(job(own_home, *words, into="full"))[1] == 1


def test_clocks_that_are_wrong(own_home: Path) -> None:
    """A copy or a wrong clock gives files from the future, or from before: they are taken for stale or for new.

    Right: nothing is decided by a time stamp; what is finished stays finished.
    """
    for number, path in enumerate(sorted(own_home.rglob("*"))):
        stamp = time.mktime(((1985, 2099)[number % 2], 6, 1, 0, 0, 0, 0, 0, -1))
        os.utime(path, (stamp, stamp))
    again = job(own_home, f"model.path={own_home / 'model'}", "data.eval_samples=8", into="again")
    assert work_done(again) == (0, 0)


def test_names_longer_than_a_file_name_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """artemis 113 and ray 1463: a sweep over many fields made folder names that no file system takes.

    Right: such a sweep is planned and named like any other, or refused in one line before anything is written.
    """
    monkeypatch.chdir(tmp_path)
    fields = {
        "training.weight_decay": "0.12345678",
        "training.warmup_ratio": "0.12345678",
        "training.max_grad_norm": "1.23456789",
        "training.learning_rate": "0.000123456789",
        "training.attention_dropout": "0.123456789",
        "training.max_steps": "2",
        "training.global_batch_size": "4",
        "data.train_samples": "123456789",
        "data.eval_samples": "123456789",
        "checkpoint_every": "123456789",
        "hardware.micro_batch_size": "4",
        "hardware.eval_batch_size": "123456789",
        "hardware.threads": "1",
    }
    words = [f"{key}=choice({value})" for key, value in fields.items()]
    with JobLocks() as folders:
        seen: list[str] = []
        monkeypatch.setattr(
            "lmm_forget.launch.subprocess_launcher.SubprocessLauncher.run_all_jobs",
            lambda self, jobs: _hold(folders, jobs, seen),
        )
        code = run_main(["-m", "experiment=smoke", *words])
    error = capsys.readouterr().err
    if code == 2:
        assert error.count("\n") == 1 and "name" in error and not list(tmp_path.glob("multirun/*/*"))
    else:
        assert code == 0, error
        assert seen and all(len(name.encode()) <= 255 for name in seen)


def _hold(folders: JobLocks, jobs: Any, seen: list[str]) -> Any:
    """Make the folders of a sweep's jobs, and nothing in them."""
    from lmm_forget.launch.outcomes import JobOutcome, LaunchResult

    for each in jobs:
        folders.acquire(each)
        seen.append(each.name)
    return LaunchResult(tuple(JobOutcome(each, is_finished=True) for each in jobs))
