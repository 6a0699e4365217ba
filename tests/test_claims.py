"""Claims: one owner at a time, given back, and lapsed where the owner died."""

import json
import os
import subprocess
import sys
import time

import pytest

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
