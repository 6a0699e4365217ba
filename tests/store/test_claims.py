"""Claims: one owner at a time, given back, and lapsed where the owner died."""

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from claim_files import claim_of, dead_pid, is_taken

from data_engine.store.claims import LAPSE_S, Claims

HOLD = """
import sys, time
from pathlib import Path
from data_engine.store.claims import Claims
with Claims(Path(sys.argv[1]), 1).hold("sampled_answer", 4) as taken:
    print(taken, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds unit 4."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_unit_that_another_process_works_on_is_not_taken(tmp_path, other):
    with Claims(tmp_path, 0).hold("sampled_answer", 4) as taken:
        assert not taken
    with Claims(tmp_path, 0).hold("sampled_answer", 5) as taken:
        assert taken


def test_the_claim_of_a_killed_process_lapses_at_once_on_its_host(tmp_path, other):
    other.kill()
    other.wait()
    with Claims(tmp_path, 0).hold("sampled_answer", 4) as taken:
        assert taken
    assert not list((tmp_path / "claims").iterdir())


def test_the_claim_of_a_killed_process_that_nobody_waits_for_lapses_at_once(tmp_path, other):
    """As in a container whose first process is no init: the entry of the process stays."""
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert is_taken(Claims(tmp_path, 0))


@pytest.fixture
def elsewhere(tmp_path):
    """The claim of another host on unit 4."""
    path = tmp_path / "claims/sampled_answer-00004.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "born": "1"}))
    return path


@pytest.fixture
def clock(monkeypatch):
    """This process's own clock, as a list whose last entry is now."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[-1])
    return now


def test_the_claim_of_another_host_lapses_when_nobody_touches_it(tmp_path, elsewhere, clock):
    claims = Claims(tmp_path, 0)
    assert not is_taken(claims)
    clock.append(clock[-1] + LAPSE_S - 1)
    assert not is_taken(claims)
    clock.append(clock[-1] + 2)
    assert is_taken(claims)


def test_a_claim_that_is_touched_does_not_lapse(tmp_path, elsewhere, clock):
    claims = Claims(tmp_path, 0)
    for beat in range(6):
        os.utime(elsewhere, (beat, beat))
        clock.append(clock[-1] + LAPSE_S / 2)
        assert not is_taken(claims)


@pytest.mark.parametrize("jump", [-100_000_000, -7200, 7200, 100_000_000])
def test_a_clock_that_jumps_takes_no_claim_from_its_owner(tmp_path, elsewhere, clock, monkeypatch, jump):
    """The owner's clock, or that of the file server, jumps by hours or years between two beats; or this host's own."""
    claims = Claims(tmp_path, 0)
    assert not is_taken(claims)
    touched = elsewhere.stat().st_mtime + jump
    os.utime(elsewhere, (touched, touched))
    clock.append(clock[-1] + 1)
    assert not is_taken(claims)
    monkeypatch.setattr(time, "time", lambda: touched - 2 * jump)
    assert not is_taken(claims)
    # It still lapses when its owner is gone, wherever the clocks stand.
    clock.append(clock[-1] + LAPSE_S + 1)
    assert is_taken(claims)


@pytest.mark.parametrize(
    "place", [{}, {"host": "elsewhere"}, {"boot": "another"}, {"namespace": "pid:[1]"}, {"boot": None}]
)
def test_a_process_id_says_something_on_its_own_host_boot_and_namespace_only(tmp_path, clock, place):
    """Containers share the host's name and boot but not its process ids; two hosts may have one name."""
    claim_of(tmp_path, pid=dead_pid(), **place)
    claims = Claims(tmp_path, 0)
    assert is_taken(claims) == (not place)
    clock.append(clock[-1] + LAPSE_S + 1)
    assert is_taken(claims)


def test_a_process_that_cannot_say_where_it_is_believes_in_no_death(tmp_path, clock, monkeypatch):
    claim_of(tmp_path, pid=dead_pid(), namespace=None)
    claims = Claims(tmp_path, 0)
    claims._me = replace(claims._me, namespace=None)
    assert not is_taken(claims)


def test_a_claim_says_where_its_process_id_is_valid(tmp_path):
    claims = Claims(tmp_path, 7)
    with claims.hold("sampled_answer", 4):
        told = json.loads((tmp_path / "claims/sampled_answer-00004.json").read_text())
    with open("/proc/sys/kernel/random/boot_id") as file:
        assert told["boot"] == file.read().strip()
    assert told["namespace"] == os.readlink("/proc/self/ns/pid")
    assert (told["pid"], told["rank"]) == (os.getpid(), 7)
    with open("/proc/self/stat") as file:
        assert told["born"] == file.read().rpartition(")")[2].split()[19]


def test_the_claim_of_a_process_whose_id_another_one_has_now_lapses_at_once(tmp_path):
    claim_of(tmp_path, born="1")
    assert is_taken(Claims(tmp_path, 0))


def test_a_process_of_another_user_that_proc_hides_lives(tmp_path, clock, monkeypatch):
    claim_of(tmp_path, pid=1)

    def denied(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("data_engine.store.process_identity._stat", lambda pid: os.stat(f"/no/proc/{pid}"))
    claims = Claims(tmp_path, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", denied)
        assert not is_taken(claims)


def test_an_owner_that_touches_its_claim_at_the_last_moment_keeps_it(tmp_path, elsewhere, clock, monkeypatch):
    claims = Claims(tmp_path, 0)
    assert not is_taken(claims)
    clock.append(clock[-1] + LAPSE_S + 1)
    before, rename = os.stat(elsewhere).st_ino, os.rename

    def touched_first(source, target) -> None:
        os.utime(elsewhere, (5, 5))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", touched_first)
        assert not is_taken(claims)
    assert os.stat(elsewhere).st_ino == before
    assert list(elsewhere.parent.iterdir()) == [elsewhere]


def test_a_removed_folder_of_claims_is_made_again(tmp_path):
    claims = Claims(tmp_path, 0)
    claims.folder.rmdir()
    assert is_taken(claims)


def test_sweeping_leaves_the_claims_of_living_owners(tmp_path, other):
    claims = Claims(tmp_path, 0)
    claims.sweep()
    [path] = (tmp_path / "claims").iterdir()
    other.kill()
    other.wait()
    (tmp_path / "claims/.half").write_text("{")
    old = tmp_path / "claims/reward_logps-00001.json"
    old.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(old, (time.time() - LAPSE_S - 5,) * 2)
    claims.sweep()
    assert not list(path.parent.iterdir())


def test_a_broken_claim_file_stops_nobody(tmp_path):
    claims = Claims(tmp_path, 0)
    (tmp_path / "claims/sampled_answer-00004.json").write_text("{")
    with claims.hold("sampled_answer", 4) as taken:
        assert taken


def test_a_claim_is_given_back_when_the_work_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), Claims(tmp_path, 0).hold("reward_logps", 1):
        raise ZeroDivisionError
    with Claims(tmp_path, 1).hold("reward_logps", 1) as taken:
        assert taken
