"""Claims while others change them: taken over, swept, touched or removed between two steps of this process."""

import builtins
import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from claim_files import claim_of, dead_pid, is_taken

from data_engine.store import claims as claims_module
from data_engine.store.claims import Claims


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
