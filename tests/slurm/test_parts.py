"""What needs no Slurm: settings, places, tickets, how an end is judged, and the status of any sweep."""

from __future__ import annotations

import json
import re
import signal
import socket
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from lmm_forget.cli import status
from lmm_forget.config import find_conf_dir
from lmm_forget.errors import ConfigError, LaunchError
from lmm_forget.launch.job_folders import Job
from lmm_forget.launch.slurm import batch_hooks, rank_task, squeue
from lmm_forget.launch.slurm.job_record import SlurmJobRecord, SlurmSubmission
from lmm_forget.launch.slurm.monitor import determine_outcome
from lmm_forget.launch.slurm.settings import SlurmSettings
from lmm_forget.launch.sweep_status import collect_sweep_status

HARDWARE = {"accelerator": "gpu", "devices": 8, "nodes": 2, "threads": 4, "num_workers": 2}


def test_every_field_of_the_yaml_reaches_the_batch_script(tmp_path: Path) -> None:
    from submitit.slurm.slurm import _make_sbatch_string

    given = OmegaConf.to_container(OmegaConf.load(find_conf_dir() / "hydra/launcher/slurm.yaml"))
    assert isinstance(given, dict) and str(given.pop("_target_")).endswith("SlurmLauncher")
    assert SlurmSettings.from_config(given) == SlurmSettings()  # the YAML's defaults are the class's
    more = {"time": "1-06", "account": "lab", "mem": "200G", "constraint": "h100", "qos": "long"}
    settings = SlurmSettings.from_config(
        {**given, **more, "partition": 7, "extra": {"mail-type": "END"}, "signal": 300}
    )
    text = _make_sbatch_string(command="x", folder=tmp_path, **settings.build_submitit_parameters(HARDWARE, "demo"))
    asked = dict(re.findall(r"#SBATCH --([a-z-]+)=?(.*)", text))
    wanted = {
        "nodes": "2",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "cpus-per-task": "6",
        "time": "1-06",
    }
    wanted |= {"account": "lab", "mem": "200G", "constraint": "h100", "qos": "long", "partition": "7"}
    wanted |= {"mail-type": "END", "signal": "USR2@300", "requeue": "", "job-name": "demo"}
    assert {key: asked.get(key) for key in wanted} == wanted and "wckey" not in asked
    assert "--kill-on-bad-exit=1 --wait=0 --cpus-per-task=6" in text
    by_hand = SlurmSettings.from_config({**given, "gres": "gpu:h100:8"}).build_submitit_parameters(HARDWARE, "demo")
    assert by_hand["gres"] == "gpu:h100:8" and by_hand["gpus_per_node"] is None
    assert (
        SlurmSettings().build_submitit_parameters({**HARDWARE, "accelerator": "cpu"}, "demo")["gpus_per_node"] is None
    )


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("time", "soon", "time=soon cannot be used; it must be minutes"),
        ("signal", 0, "signal=0 cannot be used"),
        ("gpus_per_node", -1, "gpus_per_node=-1 cannot be used"),
        ("setup", "module load", "setup=module load cannot be used; it must be a list"),
        ("max_requeue", 1, "no hydra.launcher.max_requeue.*did you mean max_requeues"),
    ],
)
def test_settings_that_cannot_be_used(field: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        SlurmSettings.from_config({field: value})


def test_slurms_variables_become_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_task.build_rank_variables({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) == {}
    env = {"SLURM_NTASKS": "5", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"}
    env |= {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "MASTER_ADDR": "n1", "MASTER_PORT": "20005"}
    assert rank_task.build_rank_variables(env) == {
        "RANK": "4", "WORLD_SIZE": "5", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "n1", "MASTER_PORT": "20005",
    }  # fmt: skip
    with pytest.raises(LaunchError, match="5 tasks but their place cannot be read: KeyError.'MASTER_PORT'"):
        rank_task.build_rank_variables({key: value for key, value in env.items() if key != "MASTER_PORT"})
    assert (
        rank_task.get_slurm_job_id({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"})
        == "7_2"
    )
    assert rank_task.get_slurm_job_id({"SLURM_JOB_ID": "9"}) == "9"


def test_ranks_meet_where_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "localhost,node[1-3]")
    assert batch_hooks.find_master_address({"SLURM_JOB_NODELIST": "localhost,node[1-3]"}) == "localhost"
    monkeypatch.setenv("SLURM_JOB_NODELIST", "no.such.node.invalid,node2")
    assert batch_hooks.find_master_address({"SLURM_JOB_NODELIST": "x"}) == socket.gethostname()
    monkeypatch.setenv("SLURM_JOB_NODELIST", "no.such.node.invalid")
    assert batch_hooks.find_master_address({"SLURM_JOB_NODELIST": "x"}) == "127.0.0.1"  # alone on its node
    first, second = (batch_hooks.find_master_port({"SLURM_JOB_ID": number}) for number in ("4711", "4712"))
    assert first != second
    with closing(socket.socket()) as taken:
        taken.bind(("", first))
        taken.listen()
        assert batch_hooks.find_master_port({"SLURM_JOB_ID": "4711"}) not in (first,)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "multirun" / "x"


def make(sweep: Path, name: str, ticket: SlurmJobRecord | None = None, **said: Any) -> Job:
    folder = sweep / name
    folder.mkdir(parents=True)
    config = {"hardware": {}, "tasks": {}}
    (folder / "job.yaml").write_text(yaml.safe_dump(config))
    if said:
        (folder / "status.json").write_text(json.dumps(said))
    if ticket is not None:
        ticket.write(folder)
    return Job(name, folder, config)


def test_a_rank_whose_peer_ended_has_nothing_to_say(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited in a collective call that failed; SIGTERM from srun came meanwhile. The cause is the other rank's."""
    one = make(sweep, "a", state="failed", error="no image")
    sent = SlurmSubmission("s", str(sweep), [str(one.config_path)], max_requeues=2, signal=60)

    def lost(arguments: Any) -> int:
        (one.folder / "rank-1.json").write_text(json.dumps({"state": "failed", "error": "Connection closed"}))
        return 1

    monkeypatch.setattr("lmm_forget.experiment.job.main", lost)
    monkeypatch.setattr("lmm_forget.distributed.stop_signals.is_stop_requested", lambda: True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        assert rank_task._run_job_on_rank(one.config_path, 1, sent) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert json.loads((one.folder / "status.json").read_text())["error"] == "no image"
    assert batch_hooks.finish_batch_job(sent, 2, {"SLURM_JOB_ID": "9"}) == 2
    assert json.loads((one.folder / "status.json").read_text())["error"] == "no image"


def test_only_a_notice_puts_a_job_back(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    known = {"JobState": "RUNNING", "PreemptTime": "None"}
    monkeypatch.setattr(squeue, "read_job_fields", lambda one: dict(known))
    monkeypatch.setattr(squeue, "requeue_job", asked.append)
    job = make(sweep, "a", state="running")
    noticed, stopped = 128 + signal.SIGUSR2, 128 + signal.SIGTERM
    sent = SlurmSubmission("s", str(sweep), [str(job.config_path)], max_requeues=2, signal=60)
    env = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "0"}
    assert batch_hooks.finish_batch_job(sent, noticed, env) == stopped and asked == ["9_0"]
    assert json.loads((job.folder / "status.json").read_text())["state"] == "interrupted"
    batch_hooks.finish_batch_job(sent, noticed, {**env, "SLURM_RESTART_COUNT": "2"})  # often enough
    batch_hooks.finish_batch_job(sent, stopped, env)  # a signal of somebody's
    assert asked == ["9_0"]
    known["PreemptTime"] = "2026-01-01T00:00:00"
    batch_hooks.finish_batch_job(sent, stopped, env)  # a pre-emption's grace period
    assert asked == ["9_0", "9_0"]
    known["JobState"] = "CANCELLED"
    batch_hooks.finish_batch_job(sent, noticed, env)
    (job.folder / "rank-1.json").write_text('{"state": "failed", "error": "no memory"}')
    assert batch_hooks.finish_batch_job(sent, stopped, env) == stopped  # srun stopped the others
    assert json.loads((job.folder / "status.json").read_text())["error"] == "rank 1 failed: no memory"
    (job.folder / "results.json").write_text("{}")
    assert batch_hooks.finish_batch_job(sent, noticed, env) == 0  # it came at the very end
    assert asked == ["9_0", "9_0"]


@pytest.mark.parametrize(
    ("slurm", "said", "cause", "state"),
    [
        ("FAILED", {"state": "failed", "error": "no image"}, "no image", "failed"),
        ("CANCELLED", {"state": "running"}, "it was cancelled", "interrupted"),
        ("NODE_FAIL", {"state": "running"}, "its node failed", "interrupted"),
        ("TIMEOUT", {"state": "running"}, "its time limit came before it had saved", "interrupted"),
        ("OUT_OF_MEMORY", {"state": "failed", "error": "lost rank 1"}, "it needed more memory", "failed"),
        (None, {"state": "running"}, "its Slurm job ended without results", "failed"),
        ("FAILED", {}, "its Slurm job ended without results", None),
    ],
)
def test_how_an_end_is_judged(sweep: Path, slurm: str | None, said: dict, cause: str, state: str | None) -> None:
    job = make(sweep, "a", SlurmJobRecord("s", "9"), **said)
    outcome = determine_outcome(job, squeue.SlurmJobInfo("9", slurm) if slurm else None)
    assert not outcome.is_finished and str(outcome.cause).startswith(cause)
    path = job.folder / "status.json"
    assert (json.loads(path.read_text())["state"] if path.exists() else None) == state
    (job.folder / "results.json").write_text("{}")
    assert determine_outcome(job, squeue.SlurmJobInfo("9", "TIMEOUT")).is_finished  # results are results


def test_status_of_a_sweep_that_never_saw_slurm(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(sweep, "done")
    (sweep / "done" / "results.json").write_text("{}")
    make(sweep, "new")
    make(sweep, "bad", state="failed", error="no image")
    make(sweep, "gone", state="running", updated="2020-01-01T00:00:00+00:00")
    (sweep / "bad" / "job.log").write_text("no image\n")
    assert status.main(["multirun/x", "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {job["job"]: job["state"] for job in found["jobs"]} == {
        "bad": "failed", "done": "done", "gone": "lost", "new": "waiting"
    }  # fmt: skip
    assert found["slurm"] is None and found["jobs"][0]["error"] == "no image"
    assert found["jobs"][0]["log"] == "multirun/x/bad/job.log"
    (sweep / "done" / "results.json").write_text("{")  # a disk that was full, once
    torn = collect_sweep_status(sweep / "done")["jobs"][0]
    assert torn["state"] == "failed" and "results.json is damaged" in torn["error"]
    (sweep / "done" / "results.json").write_text("{}")
    assert status.main(["multirun/x"]) == 0
    shown = capsys.readouterr().out
    assert "1 waiting, 1 done, 1 failed, 1 lost" in shown and "multirun/x/bad/job.log" in shown

    now = datetime.now(UTC).isoformat()
    busy = {"phase": "stage 2 of 5: train x", "done": 7, "total": 150, "unit": "step", "rate": 3.6}
    make(sweep, "tiny_qwen2_5_vl-mlp_gateup", state="running", updated=now, **busy)
    monkeypatch.setenv("COLUMNS", "80")
    status.main(["multirun/x"])
    shown = capsys.readouterr().out
    assert "tiny_qwen2_5_vl-mlp_gateup" in shown  # a name that people look for is not broken
    assert "7/150 steps, 3.6/s" in " ".join(shown.replace("stage 2 of 5: train x,", "").split())

    make(sweep, "queued", SlurmJobRecord("s", "9_1"))
    monkeypatch.setattr(squeue, "query_jobs", lambda ids: {"9_1": squeue.SlurmJobInfo("9_1", "PENDING", "Priority")})
    status.main(["multirun/x/queued", "format=json"])
    (one,) = json.loads(capsys.readouterr().out)["jobs"]
    assert (one["state"], one["slurm_id"], one["reason"]) == ("queued", "9_1", "Priority")
    assert status.main(["multirun/nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
