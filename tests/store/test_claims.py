"""Claims: one holder at a time, the dead are found out at once, the distant are watched, and nothing hangs."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lmm_forget.distributed.process_id import ProcessId
from lmm_forget.store import Store
from lmm_forget.store.leases import LeaseManager


def _hold(root: str, taken: multiprocessing.synchronize.Event) -> None:
    with Store(root).acquire_lease("stage-k"):
        taken.set()
        time.sleep(60)


def test_a_claim_keeps_others_out_until_its_holder_dies(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    taken = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), taken))
    holder.start()
    store = Store(tmp_path)
    try:
        assert taken.wait(60)
        with store.acquire_lease("stage-k", wait=False) as held:
            assert not held
        assert store.leases.is_live("stage-k")
        assert store.leases.describe_holder("stage-k") == f"process {holder.pid} on {ProcessId.current().host}"
        with store.acquire_lease("stage-other", wait=False) as held:
            assert held
    finally:
        holder.kill()
    told: list[str] = []
    with store.acquire_lease("stage-k", on_wait=told.append) as held:  # also while its corpse is unburied
        assert held
    holder.join()
    assert not store.leases.is_live("stage-k")
    assert not list((tmp_path / "claims").iterdir())


def _write(folder: Path, holder: ProcessId, beat: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "x.json"
    path.write_text(json.dumps({**asdict(holder), "nonce": "n", "beat": beat}))
    return path


def take(claims: LeaseManager) -> bool:
    with claims.acquire("x", wait=False) as first:
        if first:
            return True
    with claims.acquire("x", wait=False) as held:
        return held


@pytest.mark.parametrize(
    "change",
    [{"start": "1"}, {"pid": 2**22 + 7}, {"boot": "another start of this machine"}],
)
def test_a_dead_holder_of_this_machine_is_taken_over_at_once(tmp_path: Path, change: dict[str, object]) -> None:
    _write(tmp_path, replace(ProcessId.current(), **change))  # type: ignore[arg-type]
    assert take(LeaseManager(tmp_path, timeout=1000))


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"namespace": "another container"}])
def test_a_distant_holder_is_taken_over_only_after_watched_silence(tmp_path: Path, change: dict[str, str]) -> None:
    distant = replace(ProcessId.current(), **change)  # type: ignore[arg-type]
    claims = LeaseManager(tmp_path, timeout=0.3)
    path = _write(tmp_path, distant)
    os.utime(path, (1, 1))  # however old the file looks
    assert not take(claims)
    time.sleep(0.2)
    _write(tmp_path, distant, beat=1)
    assert not take(claims)
    time.sleep(0.2)
    assert not take(claims)  # it has moved since
    time.sleep(0.4)
    assert take(claims)


def test_a_live_holder_is_waited_for(tmp_path: Path) -> None:
    _write(tmp_path, ProcessId.current())
    claims = LeaseManager(tmp_path, timeout=0.0)
    assert not take(claims)
    time.sleep(0.1)
    assert not take(claims)


def test_a_claim_that_cannot_be_read_is_watched_like_a_distant_one(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{half of")
    claims = LeaseManager(tmp_path, timeout=0.1)
    assert not take(claims)
    time.sleep(0.2)
    assert take(claims)


def test_held_claims_show_signs_of_life(tmp_path: Path) -> None:
    claims = LeaseManager(tmp_path, heartbeat_interval=0.05)
    with claims.acquire("x"):
        first = (tmp_path / "x.json").read_text()
        limit = time.monotonic() + 20
        while (tmp_path / "x.json").read_text() == first and time.monotonic() < limit:
            time.sleep(0.02)
        now = json.loads((tmp_path / "x.json").read_text())
        assert now["beat"] > 0 and now["nonce"] == json.loads(first)["nonce"]
    assert not list(tmp_path.glob("*.json"))


def test_a_holder_whose_claim_was_taken_over_does_not_drop_the_new_one(tmp_path: Path) -> None:
    with LeaseManager(tmp_path).acquire("x"):
        path = _write(tmp_path, replace(ProcessId.current(), host="elsewhere"))
    assert path.exists()


def test_without_hard_links_claims_still_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    one, other = LeaseManager(tmp_path), LeaseManager(tmp_path)
    with one.acquire("x", wait=False) as first, other.acquire("x", wait=False) as second:
        assert (first, second) == (True, False)


def test_many_who_want_the_same_take_turns(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with LeaseManager(tmp_path).acquire("x"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 6
