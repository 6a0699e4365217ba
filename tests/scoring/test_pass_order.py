"""On a GPU the host reads a pass after the next one was launched; on the CPU at once. Results do not depend on it.

That goes for passes of a unit, and for the last one of a unit and the first one of the next.
"""

import time
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from data_engine.pipeline import passes
from data_engine.pipeline.runner import UnitWork
from data_engine.scoring import arriving
from data_engine.scoring.arriving import Arriving
from data_engine.store.sealed import Sealed


class Work:
    tokens, left_out = 10, {}

    def __init__(self, idx: str, rows: int) -> None:
        self.idx, self.rows = idx, rows

    def halves(self):
        return None

    def counted(self, found):
        return found


class Logged:
    """A scorer whose number of an answer is the length of the question's name, plus the answer's place."""

    what = "numbers"

    def __init__(self, device: str, log: list[str]) -> None:
        self.model = SimpleNamespace(device=torch.device(device), why_plain=None, is_split=False)
        self.log = log

    def prepare(self, question, rows):
        return Work(question.idx, len(rows))

    def compute(self, works):
        self.log.append("launch " + " ".join(work.idx for work in works))
        return [[torch.tensor(float(len(work.idx) + at)) for at in range(work.rows)] for work in works]

    def check(self, work, found):
        self.log.append(f"check {work.idx}")


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What is launched and read, in its order."""
    told = []

    class Read(Arriving):
        def read(self):
            found = super().read()
            told.extend(["read"] * bool(found))
            return found

    monkeypatch.setattr(passes, "Arriving", Read)
    return told


def unit(number: int, *names: str) -> UnitWork:
    """Of questions with two answers each."""
    rows = [{"idx": idx, "sample_index": at, "answer": "yes"} for idx in names for at in (0, 1)]
    questions = (SimpleNamespace(idx=idx, missing=False) for idx in names)
    return UnitWork(number, questions, {"sampled_answer": Sealed(pa.Table.from_pylist(rows))})


def numbers(found: passes.Computed) -> list[float]:
    return [float(number) for _, number in found.scored]


@pytest.mark.parametrize(
    ("device", "order"),
    [
        ("cuda", ["launch a", "launch bb", "read", "check a", "launch ccc", "read", "read"]),
        ("cpu", ["launch a", "read", "check a", "launch bb", "read", "launch ccc", "read"]),
    ],
)
def test_a_pass_is_read_behind_the_launch_of_the_next_where_that_is_on_a_gpu(log, device, order):
    work = unit(0, "a", "bb", "ccc")
    sampled = work.inputs["sampled_answer"].table
    found = passes.compute_unit(Logged(device, log), work.questions, sampled, most_tokens=10, check=True)
    assert (log, numbers(found)) == (order, [1, 2, 2, 3, 3, 4])


def runner(log: list[str], device: str, *, split: bool = False, scorer: type[Logged] = Logged) -> passes.AnswerRunner:
    """One question a pass."""
    return passes.AnswerRunner(scorer(device, log), 10, lambda work, found: numbers(found), check=False, split=split)


def test_on_a_gpu_the_next_unit_is_launched_before_the_last_pass_of_one_is_read(log):
    """While the first is published and the third one claimed, the device computes the second."""
    made = runner(log, "cuda")
    assert made.wants_more
    made.submit(unit(4, "a", "bb"))
    assert not made.wants_more
    # Another one is wanted when the last pass runs, and not before: a rank that works leaves units to others.
    assert made.poll() == []
    assert log == ["launch a", "launch bb", "read"]
    assert made.wants_more
    made.submit(unit(7, "ccc"))
    assert not made.wants_more
    assert made.poll() == [(4, [1, 2, 2, 3])]
    assert log[3:] == ["launch ccc", "read"]
    assert made.poll() == []
    assert made.wants_more
    made.submit(unit(9, "dddd", "eeeee"))
    assert made.poll() == [(7, [3, 4])]
    assert log[5:] == ["launch dddd", "read"]
    assert made.poll() == []
    assert log[7:] == ["launch eeeee", "read"]
    # There is none behind it.
    assert made.poll() == [(9, [4, 5, 5, 6])]
    assert log[9:] == ["read"]
    assert made.poll() == []
    # A unit that comes later begins anew.
    assert made.wants_more
    made.submit(unit(1, "a"))
    assert finished(made) == [(1, [1, 2])]


def finished(made: passes.AnswerRunner) -> list[tuple[int, list[float]]]:
    """The next unit."""
    while not (found := made.poll()):
        pass
    return found


@pytest.mark.parametrize(("device", "split"), [("cpu", False), ("cuda", True)])
def test_on_a_cpu_and_of_a_split_model_there_is_one_unit_in_hand(log, device, split):
    made = runner(log, device, split=split)
    for number, name in enumerate(("a", "bb")):
        made.submit(unit(number, name))
        assert not made.wants_more
        assert made.poll() == [(number, [number + 1, number + 2])]
        assert made.wants_more
    assert log == ["launch a", "read", "launch bb", "read"]


class Breaking(Logged):
    def compute(self, works):
        if works[0].idx == "bb":
            raise ZeroDivisionError
        return super().compute(works)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_what_fails_in_a_unit_is_raised_behind_the_unit_before_it(log, device):
    made = runner(log, device, scorer=Breaking)
    made.submit(unit(0, "a"))
    first = made.poll()
    made.submit(unit(1, "ccc", "bb", "dddd"))
    assert (first or finished(made)) == [(0, [1, 2])]
    with pytest.raises(ZeroDivisionError):
        finished(made)
    assert made.poll() == []
    assert "launch dddd" not in log


class Interrupted(Logged):
    def compute(self, works):
        if works[0].idx == "bb":
            raise KeyboardInterrupt
        return super().compute(works)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_after_an_interrupt_nothing_of_the_unit_comes(log, device):
    made = runner(log, device, scorer=Interrupted)
    made.submit(unit(0, "a", "bb", "ccc"))
    with pytest.raises(KeyboardInterrupt):
        finished(made)
    assert made.poll() == []
    assert "launch ccc" not in log


class Slow(Breaking):
    """Prepares slowly."""

    def __init__(self, device, log) -> None:
        super().__init__(device, log)
        self.prepared = []

    def prepare(self, question, rows):
        time.sleep(0.05)
        self.prepared.append(question.idx)
        return super().prepare(question, rows)


def test_what_was_not_prepared_of_a_unit_that_failed_is_not(log):
    scorer, names = Slow("cpu", log), ["bb", *(f"n{number}" for number in range(20))]
    work = unit(0, *names)
    with pytest.raises(ZeroDivisionError):
        passes.compute_unit(scorer, work.questions, work.inputs["sampled_answer"].table, most_tokens=10)
    time.sleep(0.3)
    # Each of the two threads may have been at one.
    assert len(scorer.prepared) <= 4


class Noting(Logged):
    """Tells which questions were prepared."""

    def __init__(self, device, log) -> None:
        super().__init__(device, log)
        self.prepared = set()

    def prepare(self, question, rows):
        self.prepared.add(question.idx)
        return super().prepare(question, rows)


def test_questions_of_the_next_unit_are_prepared_while_the_model_is_at_work_on_one(log):
    scorer = Noting("cuda", log)
    made = passes.AnswerRunner(scorer, 10, lambda work, found: numbers(found), check=False)
    made.submit(unit(0, "a"))
    # The model waits for the first one's, whenever they begin.
    assert not scorer.prepared
    assert made.poll() == []
    made.submit(unit(1, "bb", "ccc"))
    end = time.monotonic() + 60
    while scorer.prepared != {"a", "bb", "ccc"}:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert log == ["launch a"]


def test_numbers_that_lie_on_the_host_come_as_they_are():
    found = [[torch.tensor(1.0), torch.tensor([2.0, 3.0])], None]
    assert Arriving(found).read() is found


class OnCard(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    is_cuda = True


def test_numbers_of_a_device_come_by_one_copy_in_their_shapes(monkeypatch):
    copied = []

    class Copy:
        def __init__(self, values):
            copied.append(values.tolist())

        def read(self):
            return torch.tensor(copied[0])

    monkeypatch.setattr(arriving, "HostCopy", Copy)
    first, second, third = (torch.tensor(one).as_subclass(OnCard) for one in ([1.0, 2.0], 3.0, [[4.0], [5.0]]))
    found = Arriving([[first, second], None, [third]]).read()
    assert copied == [[1.0, 2.0, 3.0, 4.0, 5.0]]
    assert [question and [one.tolist() for one in question] for question in found] == [
        [[1.0, 2.0], 3.0], None, [[[4.0], [5.0]]],
    ]  # fmt: skip
