"""The farm's parts without molecules: growing files that survive a crash anywhere, the ledger, the queue, and leases."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest

from hpc_molgen.ensemble import Ensemble, read_ensemble, write_ensemble
from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.farm import leases, ledger, trajectory
from hpc_molgen.farm.dispatcher import MAX_ATTEMPTS, MAX_LOSSES, Dispatcher
from hpc_molgen.farm.leases import Lease, Leases
from hpc_molgen.farm.ledger import Ledger, Standing
from hpc_molgen.farm.limits import seconds_of, time_left
from hpc_molgen.farm.plan import Plan, Task
from hpc_molgen.systems.base import MolecularSystem

# ---------------------------------------------------------------------- files that grow


def frames(system: MolecularSystem, start: int, stop: int) -> dict[str, np.ndarray]:
    """Frames whose every number says which frame it is of."""
    number = np.arange(start, stop, dtype=np.float64)
    positions = np.broadcast_to(number[:, None, None] * 1e-3, (len(number), system.n_atoms, 3)).astype(np.float32)
    ensemble = Ensemble.create(system, positions, reduced_energy=number, time_ps=number, parent=number, trajectory=3)
    names = ("reduced_energy", "log_density", "log_weight", "parent", "trajectory")
    found = {name: getattr(ensemble, name) for name in names}
    return found | {"coordinates": positions, "time": number, "phi": -number}


def begin(path: Path, system: MolecularSystem, n: int, total: int) -> None:
    new = frames(system, 0, n)
    ensemble = Ensemble.create(
        system,
        new["coordinates"],
        reduced_energy=new["reduced_energy"],
        time_ps=new["time"],
        parent=new["parent"],
        trajectory=3,
    )
    write_ensemble(path, ensemble, system, seed=1, series={"phi": (new["phi"], "radians")}, total_frames=total)


def check(path: Path, system: MolecularSystem, n: int) -> None:
    """The file holds frames 0 to n - 1, for us and for mdtraj."""
    found, other = read_ensemble(path, system), mdtraj.load(str(path))
    expected = frames(system, 0, n)
    assert np.array_equal(found.positions_nm, expected["coordinates"]) and np.array_equal(other.xyz, expected["coordinates"])
    assert np.array_equal(found.reduced_energy, expected["reduced_energy"]) and np.array_equal(other.time, expected["time"])


@pytest.mark.parametrize("small_bytes", [0, 2**30])
def test_a_file_grows_and_takes_frames_back(
    alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_bytes: int
) -> None:
    monkeypatch.setattr(trajectory, "SMALL_BYTES", small_bytes)
    path, at = tmp_path / "replica.h5", 7
    begin(path, alanine, at, 5000)
    for n in (1, 1000, 3, 2500, 64):
        trajectory.append(path, at, frames(alanine, at, at + n), {"frames": at + n})
        at += n
        check(path, alanine, at)
    trajectory.append(path, 900, frames(alanine, 900, 1000))
    check(path, alanine, 1000)
    assert [item.name for item in tmp_path.iterdir()] == ["replica.h5"]
    size = path.stat().st_size
    assert size < 1.3 * (5000 * (22 * 12 + 8 * 8) + 2e5), "blocks that are written again must not leave holes"


class Crash(BaseException):
    """The process ends here."""


def test_a_crash_anywhere_leaves_a_file_that_opens(
    alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the disk is once the last one, with half of its bytes; nothing is lost, and nothing is torn."""
    monkeypatch.setattr(trajectory, "SMALL_BYTES", 0)
    begin(tmp_path / "base.h5", alanine, 100, 3000)
    whole = {name: getattr(os, name) for name in ("pwrite", "fsync", "replace", "unlink")}
    outcomes = []
    for last in itertools.count():
        path = tmp_path / f"replica-{last}.h5"
        shutil.copy(tmp_path / "base.h5", path)
        calls = itertools.count()

        def stand_in(name: str, last: int = last, calls: Any = calls) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(calls) == last:
                    if name == "pwrite":
                        whole["pwrite"](arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], arguments[2])
                    raise Crash
                return whole[name](*arguments, **options)

            return call

        for name in whole:
            monkeypatch.setattr(os, name, stand_in(name))
        try:
            trajectory.append(path, 100, frames(alanine, 100, 1500))
            over = True
        except Crash:
            over = False
        finally:
            for name, function in whole.items():
                monkeypatch.setattr(os, name, function)
        n = trajectory.n_frames(path)  # what the next start does first
        outcomes.append(n)
        check(path, alanine, n)
        trajectory.append(path, n, frames(alanine, n, 1600))
        check(path, alanine, 1600)
        if over:
            break
    assert set(outcomes) == {100, 1500} and outcomes == sorted(outcomes) and len(outcomes) > 6


def test_a_full_disk_leaves_the_file_as_it_was(
    alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectory, "SMALL_BYTES", 0)
    path = tmp_path / "replica.h5"
    begin(path, alanine, 10, 3000)
    before = path.read_bytes()

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(EnvironmentProblem, match="No space left"):
            trajectory.append(path, 10, frames(alanine, 10, 2000))
    assert path.read_bytes() == before
    check(path, alanine, 10)


# ---------------------------------------------------------------------- the ledger


def test_the_ledger_forgets_half_a_line_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger-00000.jsonl"
    first = Ledger(path)
    first.append([{"event": "done", "state": "done", "replica": 1}, {"event": "again", "replica": 2, "attempt": 2}])
    first.close()
    with open(path, "ab") as file:
        file.write(b'{"event": "done", "repl')
    assert [record["event"] for record in ledger.read(tmp_path)] == ["done", "again"]
    second = Ledger(path)
    second.append([{"event": "done", "state": "done", "replica": 0, "cpu_s": float("nan")}])
    second.close()
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3 and all(line.endswith(b"\n") for line in lines)
    path.write_bytes(lines[0] + b"rubbish\n" + lines[1] + lines[2])
    found = ledger.standing(tmp_path)
    assert "line 2 is damaged" in caplog.text and sorted(found.final) == [0, 1] and found.attempts == {2: 2}
    assert [record["replica"] for record in ledger.write_manifest(tmp_path / "manifest.jsonl", found)] == [0, 1]


def test_a_replica_ends_once(tmp_path: Path) -> None:
    found = Standing()
    (tmp_path / "4").write_text("longer than it was")
    found.add({"event": "done", "state": "done", "replica": 5, "bytes": 18})
    found.add({"event": "done", "state": "done", "replica": 6, "bytes": 3})
    (tmp_path / "5").write_text("longer than it was")
    (lost,) = ledger.lost_files(found, lambda replica: tmp_path / str(replica))
    assert lost["replica"] == 6 and "has 0 bytes, not 3" in lost["error"]
    found.add(lost)
    assert sorted(found.final) == [5]
    for error in ("first", "second"):
        found.add({"event": "failed", "state": "failed", "replica": 4, "error": error})
    found.add({"event": "done", "state": "done", "replica": 4})
    assert found.n_failed == 1 and json.loads(found.final[4])["error"] == "first"


# ---------------------------------------------------------------------- the queue


def make_plan(n: int, pack_size: int = 1) -> Plan:
    return Plan("Reference", pack_size, Path("starts"), [f"{index}.pdb" for index in range(n)], [0.0] * n)


def make_dispatcher(tmp_path: Path, n: int, found: Standing | None = None, **options: Any) -> Dispatcher:
    found = found or Standing()
    return Dispatcher(make_plan(n).tasks(found), Ledger(tmp_path / "ledger-00000.jsonl"), found, **({"n_workers": 2} | options))


def done(task: Task) -> list[dict[str, Any]]:
    records = [{"event": "done", "state": "done", "replica": replica} for replica in task.replicas]
    return [*records, {"event": "ended", "pack": task.pack, "attempt": task.attempt}]


def chunk(task: Task, share: float, gained: float, busy_s: float) -> dict[str, Any]:
    return {"event": "chunk", "replicas": list(task.replicas), "share": share, "gained": gained, "busy_s": busy_s, "ns": 1.0}


def test_longest_first_and_a_resumed_one_last(tmp_path: Path) -> None:
    found = Standing()
    found.add({"event": "chunk", "replicas": [0], "share": 0.7})
    found.add({"event": "chunk", "replicas": [2], "share": 0.2})
    dispatcher = make_dispatcher(tmp_path, 4, found)
    order = [dispatcher.exchange(worker, "a", [], "work")["tasks"][0].pack for worker in range(4)]
    assert order == [1, 3, 2, 0]


def test_trivial_tasks_come_together_and_long_ones_alone(tmp_path: Path) -> None:
    dispatcher = make_dispatcher(tmp_path, 1000)
    (first,) = dispatcher.exchange(0, "a", [], "work")["tasks"]
    tasks = dispatcher.exchange(0, "a", [chunk(first, 1.0, 1.0, 0.01), *done(first)], "work")["tasks"]
    assert 50 < len(tasks) <= 999 / 8, "a fair part, even if all would fit into the time"
    (slow, *_), told = tasks, [record for task in tasks for record in done(task)]
    (one,) = dispatcher.exchange(0, "a", [chunk(slow, 1.0, 1.0, 1e6), *told], "work")["tasks"]
    assert one.replicas not in {task.replicas for task in tasks}


def test_what_was_left_goes_back_and_every_replica_ends_once(tmp_path: Path) -> None:
    generator, dispatcher = np.random.default_rng(3), make_dispatcher(tmp_path, 200, n_workers=5)
    ended: list[int] = []
    alive = dict.fromkeys(range(5))
    fresh = itertools.count(5)
    while alive:
        worker = int(generator.choice(list(alive)))
        reply = dispatcher.exchange(worker, f"host-{worker % 2}", [], "work")
        if "stop" in reply:
            assert reply["stop"] == "done"
            del alive[worker]
            continue
        for task in reply.get("tasks", []):
            fate = generator.random()
            if fate < 0.1:
                dispatcher.lost(worker, "killed")
                del alive[worker]
                alive[next(fresh)] = None
                break
            if fate < 0.2:
                break  # left at a chunk's end
            dispatcher.exchange(worker, f"host-{worker % 2}", done(task), "leave?")
            ended += task.replicas
    dispatcher.ledger.close()
    given_up = ledger.standing(tmp_path).n_failed
    assert len(ended) == len(set(ended)) == 200 - given_up and given_up < 5
    assert sorted(ledger.standing(tmp_path).final) == list(range(200))


def again(task: Task) -> list[dict[str, Any]]:
    record = {"event": "again", "replica": task.replicas[0], "pdb": task.names[0], "attempt": task.attempt, "error": "nan"}
    return [record, {"event": "ended", "pack": task.pack, "attempt": task.attempt}]


def test_new_seeds_then_quarantine(tmp_path: Path) -> None:
    dispatcher = make_dispatcher(tmp_path, 1)
    attempts = []
    reply = dispatcher.exchange(0, "a", [], "work")
    while "tasks" in reply:
        (task,) = reply["tasks"]
        attempts.append(task.attempt)
        reply = dispatcher.exchange(0, "a", again(task), "work")
    assert attempts == list(range(1, MAX_ATTEMPTS + 1)) and MAX_ATTEMPTS == 4 and reply["stop"] == "done"
    record = json.loads(dispatcher.found.final[0])
    assert record["state"] == "failed" and record["error"] == "nan" and record["attempts"] == 4
    dispatcher.ledger.close()
    events = [record["event"] for record in ledger.read(tmp_path)]
    assert events == ["again", "again", "again", "failed"]
    # a farm that starts again knows the attempt
    path = tmp_path / "ledger-00000.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    (task,) = make_plan(1).tasks(ledger.standing(tmp_path))
    assert task.attempt == 3


def test_a_host_where_two_replicas_fail_is_drained_unless_they_fail_everywhere(tmp_path: Path) -> None:
    dispatcher = make_dispatcher(tmp_path, 8, n_workers=2)
    (one,), (other,) = (dispatcher.exchange(worker, host, [], "work")["tasks"] for worker, host in enumerate("ab"))
    (two,) = dispatcher.exchange(0, "a", again(one), "work")["tasks"]
    assert two.replicas != one.replicas and dispatcher.drained == set(), "another host gets it"
    assert "wait_s" in dispatcher.exchange(0, "a", again(two), "work") and dispatcher.drained == {"a"}
    retried = dispatcher.exchange(1, "b", done(other), "work")["tasks"][0]
    while retried.replicas not in (one.replicas, two.replicas):
        retried = dispatcher.exchange(1, "b", done(retried), "work")["tasks"][0]
    dispatcher.exchange(1, "b", again(retried), "work")
    assert dispatcher.drained == set() and "tasks" in dispatcher.exchange(0, "a", [], "work"), "it was the replica"


def test_the_only_host_is_never_drained(tmp_path: Path) -> None:
    dispatcher = make_dispatcher(tmp_path, 5, n_workers=1)
    reply, failures = dispatcher.exchange(0, "a", [], "work"), 0
    while "tasks" in reply:
        failures += 1
        reply = dispatcher.exchange(0, "a", again(reply["tasks"][0]), "work")
    assert failures == 5 * MAX_ATTEMPTS and dispatcher.found.n_failed == 5


def test_a_task_that_kills_its_process_again_and_again_is_given_up(tmp_path: Path) -> None:
    dispatcher = make_dispatcher(tmp_path, 1)
    for worker in range(MAX_LOSSES):
        assert dispatcher.exchange(worker, "a", [], "work")["tasks"][0].attempt == 1, "the seed is not to blame"
        dispatcher.lost(worker, "killed by signal 11")
    assert dispatcher.exchange(9, "a", [], "work")["stop"] == "done"
    assert "died 3 times (killed by signal 11)" in json.loads(dispatcher.found.final[0])["error"]


def test_three_long_replicas_on_two_workers_end_together(tmp_path: Path) -> None:
    """McNaughton's bound: 3 tasks of 10 chunks on 2 workers take 15 chunks, not 20."""
    dispatcher, rounds = make_dispatcher(tmp_path, 3), 0
    share = dict.fromkeys(range(3), 0.0)
    current: dict[int, Task | None] = {0: None, 1: None}
    while len(dispatcher.found.final) < 3:
        rounds += 1
        for worker, task in list(current.items()):
            if task is None:
                reply = dispatcher.exchange(worker, "a", [], "work")
                if "tasks" not in reply:
                    continue
                (task,) = reply["tasks"]
            share[task.pack] += 0.1
            records = [chunk(task, share[task.pack], 0.1, 60.0)]
            current[worker] = task
            if share[task.pack] > 0.999:
                dispatcher.exchange(worker, "a", [*records, *done(task)], "leave?")
                current[worker] = None
            elif dispatcher.exchange(worker, "a", records, "leave?")["leave"]:
                current[worker] = None
    assert rounds <= 16


def test_no_chunk_begins_that_the_time_limit_would_cut(tmp_path: Path) -> None:
    left = iter([1000.0, 1000.0, 45.0])
    dispatcher = make_dispatcher(tmp_path, 9, time_left_s=lambda: next(left))
    (task,) = dispatcher.exchange(0, "a", [], "work")["tasks"]
    assert not dispatcher.exchange(0, "a", [chunk(task, 0.1, 0.1, 40.0)], "leave?")["leave"]
    assert dispatcher.exchange(0, "a", [chunk(task, 0.2, 0.1, 40.0)], "leave?")["leave"]
    assert dispatcher.stopping == "45 s are left of the time limit, and a chunk takes 40 s" and dispatcher.problem is None


def test_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [seconds_of(text) for text in ("1:05", "2:00:00", "1-00:00:10", "UNLIMITED")] == [65.0, 7200.0, 86410.0, None]
    for name in ("SLURM_JOB_ID", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    assert time_left(None)() == float("inf") and 59 < time_left(1.0)() <= 60
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1")
    assert time_left(1.0)() < -1e9


# ---------------------------------------------------------------------- leases


def test_jobs_share_blocks_and_a_dead_ones_blocks_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(64, pack_size=2)  # 32 packs: 16 blocks of 2 for 2 jobs
    one, other = (Leases(tmp_path, plan, (number, 2)) for number in range(2))
    assert one.block_packs == 2 and list(one.packs(3)) == [6, 7]
    taken = [one.take(), other.take(), one.take(), other.take()]
    assert len(set(taken)) == 4
    third = plan.tasks(Standing(), one.packs(taken[0] or 0))[0]
    held = Lease(tmp_path, one.owner, one.block_packs)
    assert held.holds(third) and not Lease(tmp_path, other.owner, 2).holds(third)
    rest = []
    while (block := other.take()) is not None:
        rest.append(block)
    assert len(rest) == 12, "what the first works on is left to it"

    path = leases.lease_path(tmp_path / "leases", taken[0] or 0)
    stamp = path.stat().st_mtime - leases.STALE_S - 1
    os.utime(path, (stamp, stamp))
    assert other.take() == taken[0] and other.take() is None
    assert not held.holds(third), "who was only asleep notices"
    restarted = Leases(tmp_path, plan, (0, 2))
    assert restarted.take() == taken[2], "a job that starts again takes its own at once"

    other.settle(lambda packs: list(packs) == list(other.packs(taken[0] or 0)), release=True)
    assert path.with_suffix(".done").is_file()
    free = []
    while (block := restarted.take()) is not None:
        free.append(block)
    assert sorted([*free, taken[0], taken[2]]) == list(range(16))
    monkeypatch.setattr(leases, "RENEW_S", 0.0)
    mine = leases.lease_path(tmp_path / "leases", free[0])
    os.utime(mine, (1, 1))
    restarted.renew()
    assert mine.stat().st_mtime > 1e9


def test_weights_of_a_folder(tmp_path: Path) -> None:
    from hpc_molgen.farm.plan import _folder

    for name in ("b.pdb", "a.pdb"):
        (tmp_path / name).touch()
    assert _folder(tmp_path)[1:] == (["a.pdb", "b.pdb"], [0.0, 0.0])
    (tmp_path / "weights.csv").write_text("file,weight\nb.pdb, 2.5\n")
    assert _folder(tmp_path)[2] == [0.0, np.log(2.5)]
    for bad in ("b.pdb,-1", "b.pdb,x", "file,weight\nc.pdb,1"):
        (tmp_path / "weights.csv").write_text(bad)
        with pytest.raises(InputError, match=r"weights.csv, line \d"):
            _folder(tmp_path)
