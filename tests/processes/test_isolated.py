"""What the processes of rules and of images have in common; their own tests try the rest of it."""

import os
import resource
import sys

import pytest

from data_engine.processes import isolated


@pytest.mark.parametrize(("hard", "soft"), [(resource.RLIM_INFINITY, 5 << 30), (9 << 30, 5 << 30), (1 << 30, 1 << 30)])
def test_memory_is_limited_within_what_the_machine_allows(monkeypatch, hard, soft):
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (hard, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, both: limits.append(both))
    isolated.limit_memory(5 << 30)
    assert limits == [(soft, hard)]


def test_a_process_that_has_ended_is_not_killed(monkeypatch):
    """Its number may be another's by now."""
    process = isolated.Isolated([sys.executable, "-c", "raise SystemExit(3)"])
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("killed"))
    assert process.ended() == 3
