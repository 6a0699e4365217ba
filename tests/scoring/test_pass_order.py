"""On a GPU the host reads a pass after the next one was launched; on the CPU at once. Results do not depend on it."""

from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from data_engine.pipeline import passes
from data_engine.scoring import arriving
from data_engine.scoring.arriving import Arriving


class Work:
    tokens = 10

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
        self.model, self.log = SimpleNamespace(device=torch.device(device), why_plain=None), log

    def prepare(self, question, rows):
        return Work(question.idx, len(rows))

    def compute(self, works):
        self.log.append("launch " + " ".join(work.idx for work in works))
        return [[torch.tensor(float(len(work.idx) + at)) for at in range(work.rows)] for work in works]

    def check(self, work, found):
        self.log.append(f"check {work.idx}")


def computed(monkeypatch, device: str) -> tuple[list[str], list[float]]:
    log = []

    class Read(Arriving):
        def read(self):
            log.append("read")
            return super().read()

    monkeypatch.setattr(arriving, "Arriving", Read)
    names = ("a", "bb", "ccc")
    rows = [{"idx": idx, "sample_index": at, "answer": "yes"} for idx in names for at in (0, 1)]
    sampled = pa.Table.from_pylist(rows)
    questions = [SimpleNamespace(idx=idx, missing=False) for idx in names]
    found = passes.compute_unit(Logged(device, log), questions, sampled, most_tokens=10, check=True)
    return log, [float(number) for _, number in found.scored]


@pytest.mark.parametrize(
    ("device", "order"),
    [
        ("cuda", ["launch a", "launch bb", "read", "check a", "launch ccc", "read", "read"]),
        ("cpu", ["launch a", "read", "check a", "launch bb", "read", "launch ccc", "read"]),
    ],
)
def test_a_pass_is_read_behind_the_launch_of_the_next_where_that_is_on_a_gpu(monkeypatch, device, order):
    assert computed(monkeypatch, device) == (order, [1, 2, 2, 3, 3, 4])


def test_numbers_that_lie_on_the_host_come_as_they_are():
    found = [[torch.tensor(1.0), torch.tensor([2.0, 3.0])], None]
    assert Arriving(found).read() is found
