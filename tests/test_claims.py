"""Claims: one owner at a time, given back, and lapsed where the owner died."""

import builtins
import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from data_engine.store import claims as claims_module
from data_engine.store.claims import LAPSE_S, Claims
from data_engine.store.process_identity import ProcessIdentity

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


def is_taken(claims: Claims) -> bool:
    with claims.hold("sampled_answer", 4) as taken:
        return taken


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


def dead_pid() -> int:
    """The id of a process that has ended, and was waited for."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def claim_of(tmp_path, **fields):
    """A claim on unit 4 by a process that is like this one but for `fields`."""
    path = tmp_path / "claims/sampled_answer-00004.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(vars(replace(ProcessIdentity.of_this_process(), **fields))))
    return path


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


def test_of_two_that_saw_the_same_lapse_one_gets_the_claim(tmp_path, monkeypatch):
    """The first is held up between its look and its taking over, which the second does in the meantime."""
    path = claim_of(tmp_path, pid=dead_pid())
    slow, quick = Claims(tmp_path, 0), Claims(tmp_path, 1)
    held_up, let_go, got = threading.Event(), threading.Event(), []
    judge = slow._has_lapsed

    def judge_slowly(*arguments) -> bool:
        lapsed = judge(*arguments)
        held_up.set()
        assert let_go.wait(30)
        return lapsed

    monkeypatch.setattr(slow, "_has_lapsed", judge_slowly)
    thread = threading.Thread(target=lambda: got.append(is_taken(slow)))
    thread.start()
    assert held_up.wait(30)
    with quick.hold("sampled_answer", 4) as taken:
        assert taken
        mine = path.read_text()
        let_go.set()
        thread.join()
        assert got == [False]
        assert path.read_text() == mine
        assert list(path.parent.iterdir()) == [path]
    assert not list(path.parent.iterdir())


TAKE = """
import sys, time
from pathlib import Path
from data_engine.store.claims import Claims
claims = Claims(Path(sys.argv[1]), 1)
for line in sys.stdin:
    while time.time() < float(line):
        pass
    with claims.hold("sampled_answer", 4) as taken:
        print(taken, flush=True)
        # Held until all have tried.
        sys.stdin.readline()
"""


def test_processes_that_see_a_lapse_at_the_same_moment_do_not_share_the_unit(tmp_path):
    pid = dead_pid()
    command = [sys.executable, "-c", TAKE, str(tmp_path)]
    ranks = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in "123"
    ]
    try:
        for _ in range(40):
            claim_of(tmp_path, pid=pid)
            at = time.time() + 0.02
            for rank in ranks:
                rank.stdin.write(f"{at}\n")
            taken = [rank.stdout.readline() for rank in ranks]
            for rank in ranks:
                rank.stdin.write("\n")
            assert taken.count("True\n") <= 1
            until = time.monotonic() + 30
            while list((tmp_path / "claims").iterdir()) and taken.count("True\n"):
                assert time.monotonic() < until
    finally:
        for rank in ranks:
            rank.communicate()


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


def test_a_claim_that_was_taken_over_is_left_to_its_new_owner(tmp_path):
    """This process was held still for longer than a claim lasts."""
    with Claims(tmp_path, 0).hold("sampled_answer", 4) as taken:
        assert taken
        path = claim_of(tmp_path, host="elsewhere")
    assert json.loads(path.read_text())["host"] == "elsewhere"
    assert list(path.parent.iterdir()) == [path]


def test_an_owner_touches_its_claim_again_and_again_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module, "HEARTBEAT_S", 0.01)
    path = tmp_path / "claims/sampled_answer-00004.json"
    with Claims(tmp_path, 0).hold("sampled_answer", 4):
        for year in (1, 2):
            os.utime(path, (year, year))
            until = time.monotonic() + 30
            while path.stat().st_mtime == year:
                assert time.monotonic() < until, "the heartbeat touched nothing"
                time.sleep(0.001)
        beats, found = threading.Event(), []
        read = claims_module._read

        def counted(place):
            found.append(place)
            beats.set() if len(found) > 3 else None
            return read(place)

        os.utime(claim_of(tmp_path, host="elsewhere"), (3, 3))
        monkeypatch.setattr(claims_module, "_read", counted)
        assert beats.wait(30)
    assert path.stat().st_mtime == 3


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOENT, errno.ENOTDIR])
@pytest.mark.parametrize("call", ["open", "link", "rename"])
def test_a_claim_that_another_host_has_just_removed_is_not_there(tmp_path, monkeypatch, call, number):
    """What NFS answers while another host removes and makes claims; a rank then looks again."""
    path, claims = claim_of(tmp_path, pid=dead_pid()), Claims(tmp_path, 0)
    module = builtins if call == "open" else os
    real, failed = getattr(module, call), []

    def stale(first, *rest, **options):
        if not failed and path.name in (os.path.basename(str(first)), *map(os.path.basename, map(str, rest))):
            failed.append(first)
            raise OSError(number, os.strerror(number), str(first))
        return real(first, *rest, **options)

    monkeypatch.setattr(module, call, stale)
    is_taken(claims)
    assert failed
    assert is_taken(claims) or is_taken(claims)
    assert not list(path.parent.iterdir())


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


def test_two_that_sweep_at_the_same_time_both_end_well(tmp_path, monkeypatch):
    """The second one sweeps whatever the first one's look at the clock has left in the folder by then."""
    one, other = Claims(tmp_path, 0), Claims(tmp_path, 1)
    fstat, swept = os.fstat, []

    def late(descriptor):
        if not swept:
            swept.extend(one.folder.iterdir())
            other.sweep()
        return fstat(descriptor)

    monkeypatch.setattr(claims_module.os, "fstat", late)
    one.sweep()
    assert len(swept) == 1
    assert not list(one.folder.iterdir())


def test_a_claim_that_is_taken_over_while_another_sweeps_stays(tmp_path, monkeypatch):
    path, claims = claim_of(tmp_path, pid=dead_pid()), Claims(tmp_path, 0)
    died = claims._owner_has_died

    def taken_over(found):
        path.unlink()
        claim_of(tmp_path)
        return died(found)

    monkeypatch.setattr(claims, "_owner_has_died", taken_over)
    claims.sweep()
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(path.parent.iterdir()) == [path]


def test_whose_claim_was_taken_over_is_told_so(tmp_path):
    claims = Claims(tmp_path, 0)
    with claims.hold("pairing", 0) as taken:
        assert taken
        assert claims.still_holds("pairing", 0)
        [path] = (tmp_path / "claims").iterdir()
        path.unlink()
        assert not claims.still_holds("pairing", 0)
        # One of the same process: a claim is one by its number.
        with Claims(tmp_path, 0).hold("pairing", 0) as other:
            assert other
            assert not claims.still_holds("pairing", 0)


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
