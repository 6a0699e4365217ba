"""What a rank in lock-step makes of the heartbeats of others, without ranks; test_lock_step.py has real ones."""

import threading
import time
from types import SimpleNamespace

import pytest

from data_engine.errors import LostRankError
from data_engine.processes import heartbeats
from data_engine.processes.heartbeats import ENDED, Heartbeats


@pytest.fixture
def beats(monkeypatch):
    """Those of the last of three ranks, none of which has been heard of for long; no thread runs."""
    for name in ("BEAT_S", "EXIT_GRACE_S", "LOST_S"):
        monkeypatch.setattr(heartbeats, name, 0)
    found = Heartbeats.__new__(Heartbeats)
    found._rank, found._counts = 2, dict.fromkeys((0, 1), (5, time.monotonic() - 9))
    found._hosts, found._reason, found._reasons, found._message = {0: "a", 1: "b", 2: "c"}, None, {}, None
    found._lost, found._closed = threading.Event(), threading.Event()
    found._beating = SimpleNamespace(join=lambda seconds: None)
    found.exited = []
    found._exit_process = found.exited.append
    return found


def test_of_several_lost_ranks_rank_0_is_named_last(beats):
    """It serves the store, and exits when another one is lost: the others hear of neither then."""
    beats._watch()
    assert beats.exited == ["rank 1 on b died, or has not been heard of for 0 s"]
    assert beats._lost.is_set()


def test_a_rank_that_ended_is_told_with_its_reason(beats):
    beats._counts[1] = (ENDED + 7, time.monotonic() - 9)
    beats._reasons[1] = "it is out of memory"
    beats._watch()
    assert beats.exited == ["rank 1 on b has ended: it is out of memory"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        # A collective that fails, since a rank is gone.
        (RuntimeError("connection closed by peer"), "rank 1 on b died"),
        (LostRankError("out of memory"), "rank 2 on c: out of memory"),
        (ValueError("a mistake of its own"), "a mistake of its own"),
    ],
)
def test_what_ends_a_rank_is_told_by_the_rank_that_was_lost_where_that_is_why(beats, error, raised):
    beats._message = "rank 1 on b died"
    beats._lost.set()
    kind = ValueError if isinstance(error, ValueError) else LostRankError
    with pytest.raises(kind) as caught, beats.naming_lost_ranks():
        raise error
    assert str(caught.value) == raised
    assert beats._closed.is_set()
    assert beats._reason == str(error)


class Store:
    """A store that notes what is written to it."""

    def __init__(self) -> None:
        self.values, self.written = {"host-0": b"a", "host-1": b"b"}, []

    def set(self, name: str, value: str) -> None:
        self.written.append(name)
        self.values[name] = value.encode()

    def get(self, name: str) -> bytes:
        return self.values[name]

    def add(self, name: str, number: int) -> int:
        self.written += [name] * (number > 0)
        self.values[name] = self.values.get(name, 0) + number
        return self.values[name]


@pytest.mark.parametrize(
    ("reason", "message", "written"),
    [
        # The reason first: whoever sees that a rank has ended reads it at once.
        ("a mistake", None, ["host-2", "reason-2", "beat-2"]),
        (None, None, ["host-2", "beat-2"]),
        # One that ends because another one is lost is not to be named in its place.
        ("a call failed", "rank 1 died", ["host-2"]),
    ],
)
def test_a_rank_says_that_it_ends_and_why_unless_another_one_is_lost(beats, reason, message, written):
    beats._store, beats._reason, beats._message = Store(), reason, message
    beats._closed.set()
    beats._beat()
    assert beats._store.written == written
    assert beats._store.values.get("beat-2", 0) >= (0 if message else ENDED)
