"""The real scheduler over a device that remembers what lies where: each answer reads its own pages and prompt alone.

Questions, lengths, numbers of rows, slots and pages are drawn; so is where memory runs out and where logits are NaN.
"""

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from data_engine.errors import UserError
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import page_allocator
from data_engine.sampling.native.backend import NativeBackend
from data_engine.sampling.native.cpu_attention import OrderedRows, runs
from data_engine.sampling.native.model_runner import NOT_FINITE
from data_engine.sampling.native.page_allocator import PageAllocator, pages_of
from data_engine.sampling.native.paged_attention import PagedRows
from data_engine.sampling.native.scheduler import SamplingEngine, Scheduler
from data_engine.sampling.native.step_graphs import Captures
from data_engine.sampling.requests import BROKEN, TOO_LARGE, Completion, PromptRequest, Queue

END, PAGE, MOST = 2, 4, 22


class Tokens(list):
    """What a launch drew."""

    is_cuda = False

    def tolist(self) -> list[int]:
        return list(self)


class Device:
    """A ModelRunner whose caches hold names: of each page, or row, whose tokens lie there."""

    def __init__(self, world: "World", num_rows: int, num_slots: int, num_pages: int) -> None:
        self.world, self.num_pages = world, num_pages
        self.params = SimpleNamespace(max_new_tokens=world.longest)
        self.model = SimpleNamespace(eos_token_ids=(END,))
        self.placement = PagedRows(4, Captures(None)) if num_pages else OrderedRows()
        self.caches = SimpleNamespace(num_rows=num_rows, num_slots=num_slots)
        self.slots: dict[int, tuple[object, list[int]]] = {}
        self.pages: dict[int, tuple] = {}
        self.tables = [{} for _ in range(num_rows)]
        # Of each row without pages: the places in its suffix where NaN lies.
        self.nan: list[set[int]] = [set() for _ in range(num_rows)]
        # Of each row: its key, its slot and how many tokens it has.
        self.state: list[list | None] = [None] * num_rows

    def page_allocator(self) -> PageAllocator | None:
        return PageAllocator(self.num_pages, pages_of(self.world.longest)) if self.num_pages else None

    def prefill(self, prompt: object, slot: int, pages: list[int]) -> None:
        self.world.may_fail(self.caches.num_rows, prompt.name)
        assert len(pages) == (pages_of(prompt.length) if self.num_pages else 0)
        self.slots[slot] = prompt, list(pages)
        for number, page in enumerate(pages):
            self.pages[page] = (prompt.name, number)

    def forget(self, slot: int) -> None:
        del self.slots[slot]

    @property
    def prompts_a_pass(self) -> int:
        return 3 if self.num_pages else 1

    def share_a_pass(self, lengths: list[int]) -> bool:
        return len(lengths) <= 3 and sum(lengths) % 5 > 0

    def prefill_all(self, waiting: list) -> None:
        for one in waiting:
            self.prefill(*one)

    def first(self, places: list[int], keys: list[int], slots: list[int], ends: object) -> Tokens:
        self.world.may_fail(self.caches.num_rows, keys[0][0])
        assert len(set(places)) == len(places)
        for place, key, slot in zip(places, keys, slots, strict=True):
            self.state[place] = [key, slot, 1]
            assert self.slots[slot][0].name == key[0]
        return Tokens(self.world.token(key, 0) for key in keys)

    def next(self, rows: list) -> Tokens:
        self.world.may_fail(self.caches.num_rows, rows[0].request.prompt.name)
        assert len({id(row) for row in rows}) == len(rows) <= self.caches.num_rows
        for place, row in enumerate(rows):
            key = row.request.keys[row.sample_index]
            assert self.state[place] == [key, row.slot, row.drawn]
            prompt, its_pages = self.slots[row.slot]
            assert prompt is row.request.prompt
            if self.num_pages:
                assert [self.pages[page] for page in its_pages] == [(prompt.name, n) for n in range(len(its_pages))]
                number = (row.drawn - 1) // PAGE
                assert 0 not in row.pages
                if (row.drawn - 1) % PAGE == 0:
                    self.pages[self.tables[place][number]] = (key, number)
                assert [self.tables[place][n] for n in range(number + 1)] == row.pages
                assert [self.pages[page] for page in row.pages] == [(key, n) for n in range(number + 1)]
            self.state[place][2] += 1
        if not self.num_pages:
            self.see_no_nan_of_others(rows)
        return Tokens(self.world.token(self.state[place][0], self.state[place][2] - 1) for place in range(len(rows)))

    def see_no_nan_of_others(self, rows: list) -> None:
        """A run's rows are read up to the end of the longest, and a number that is masked is multiplied by 0."""
        for first, last, longest, _ in runs([row.drawn for row in rows]):
            for place in range(first, last):
                row = rows[place]
                self.nan[place].discard(row.drawn - 1)
                if self.world.broken.get(row.request.keys[row.sample_index], MOST) <= row.drawn:
                    self.nan[place].add(row.drawn - 1)
                else:
                    assert not self.nan[place].intersection(range(longest)), "another's NaN is read"

    def move(self, source: int, target: int, length: int) -> None:
        assert length >= self.state[source][2]
        self.nan[target] = {*(n for n in self.nan[target] if n >= length), *(n for n in self.nan[source] if n < length)}
        self.state[target], self.tables[target] = list(self.state[source]), dict(self.tables[source])

    def give_pages(self, places: list[int], numbers: list[int], pages: list[int]) -> None:
        for place, number, page in zip(places, numbers, pages, strict=True):
            self.tables[place][number] = page

    def clean(self, which: list[int]) -> None:
        for one in which:
            if self.num_pages:
                self.pages.pop(one, None)
            else:
                self.nan[one].clear()


class World:
    """Questions of answers of drawn lengths, the sizes of the caches, and what goes wrong."""

    def __init__(self, seed: int, fails: bool) -> None:
        self.random = random.Random(seed)
        self.longest = self.random.choice([1, 2, 5, MOST])
        self.fails = self.random.choice([0, 0.01, 0.05]) if fails else 0
        self.too_large: set[int] = set()
        self.lengths: dict[tuple, int] = {}
        self.broken: dict[tuple, int] = {}
        self.requests = []
        for number in range(self.random.randint(1, 8)):
            prompt = SimpleNamespace(name=number, length=self.random.choice([1, 3, 4, 9, 17]))
            keys = [(number, index) for index in range(self.random.randint(1, 4))]
            for key in keys:
                self.lengths[key] = self.random.randint(1, self.longest + 3)
                if self.random.random() < 0.1:
                    self.broken[key] = self.random.randrange(self.longest)
            self.requests.append(PromptRequest(prompt, keys))
        self.num_rows, self.num_slots = self.random.randint(1, 6), self.random.randint(1, 6)
        most = max(pages_of(one.prompt.length) for one in self.requests) + pages_of(self.longest)
        self.num_pages = self.random.randint(max(1, most - 2), 2 * most)

    def may_fail(self, num_rows: int, question: int) -> None:
        """Memory runs out for a question; with one answer at a time, it alone does not fit."""
        if self.random.random() < self.fails:
            if num_rows == 1:
                self.too_large.add(question)
            raise torch.OutOfMemoryError("no room")

    def token(self, key: tuple, place: int) -> int:
        if self.broken.get(key) == place:
            return NOT_FINITE
        return END if place + 1 == self.lengths[key] else 100 + place

    def expected(self, key: tuple) -> tuple[list[int], str]:
        ids = []
        for place in range(self.longest):
            token = self.token(key, place)
            if token == NOT_FINITE:
                return ids, BROKEN
            ids.append(token)
            if token == END:
                return ids, "stop"
        return ids, "length"


def sampled(world: World, paged: bool, lag: int, units: bool = False) -> tuple[list[Completion], list[int]]:
    """Answers of all questions, and how large the pools were."""
    num_rows, num_slots, num_pages = world.num_rows, world.num_slots, world.num_pages if paged else 0
    model = SimpleNamespace(device=torch.device("cpu"), is_split=False, max_positions=17 + MOST)
    engine = SamplingEngine(model, num_rows, num_slots, 4 if paged else None, num_pages)
    engine.lag, pools = lag, []

    def runner_for(rows: int, params: SamplingParams) -> Device:
        pools.append(engine._pages_for(rows, params.max_new_tokens) if paged else 0)
        return Device(world, rows, max(1, num_slots * rows // num_rows), pools[-1])

    engine._runner_for = runner_for
    params = SamplingParams(max_new_tokens=world.longest)
    if units:
        return by_units(world, NativeBackend(engine, SimpleNamespace(params=params))), pools
    return engine.sample(world.requests, params), pools


def by_units(world: World, backend: NativeBackend) -> list[Completion]:
    """The questions in units, of which some are empty, each submitted when the back end wants more, as a rank does."""
    units, waiting = [], list(world.requests)
    while waiting:
        size = world.random.randint(0, 3)
        units.append(waiting[:size])
        waiting = waiting[size:]
    found, in_hand, polls = [], 0, 0
    while units or in_hand:
        while units and (backend.wants_more or not in_hand):
            unit = units.pop(0)
            in_hand += sum(len(one.keys) for one in unit)
            backend.submit(iter(unit))
        ended = backend.poll()
        in_hand, polls = in_hand - len(ended), polls + 1
        assert polls < 5000, "answers that were asked for never come"
        found += ended
    return sorted(found, key=lambda one: (one.request, one.sample_index))


@pytest.fixture(autouse=True)
def small_pages(monkeypatch) -> None:
    monkeypatch.setattr(page_allocator, "PAGE", PAGE)


@pytest.mark.parametrize("paged", [True, False])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("units", [False, True])
def test_every_answer_has_its_own_tokens(paged, fails, units):
    """Of all questions at once, or unit by unit, in one queue where caches are paged."""
    ended = set()
    for seed in range(300):
        world = World(seed, fails)
        try:
            found, pools = sampled(world, paged, seed % 3, units)
        except UserError:
            ended.add("none")
            continue
        assert [(one.request, one.sample_index) for one in found] == [
            (number, index) for number, request in enumerate(world.requests) for index in range(len(request.keys))
        ]
        for one in found:
            request = world.requests[one.request]
            ended.add(one.finish_reason)
            if one.finish_reason == TOO_LARGE:
                fits = pages_of(request.prompt.length) + pages_of(world.longest) <= min(pools)
                assert one.request in world.too_large or (paged and not fits), seed
                continue
            assert (one.token_ids, one.finish_reason) == world.expected(request.keys[one.sample_index]), seed
    assert ended >= {"stop", "length", BROKEN}


@pytest.mark.parametrize("fails", [False, True])
def test_every_page_and_slot_is_free_or_held_once(fails, monkeypatch):
    """After each step, prompts that were run ahead of their turn included; at the end all are free."""
    step, run, ahead = Scheduler._step, Scheduler.run, []

    def check(loop: Scheduler) -> None:
        pages, prompts = loop.pages, loop.prompts
        of_prompts = [page for its in prompts._prompt_pages.values() for page in its]
        of_answers = [page for row in loop.rows for page in row.pages]
        assert sorted([*pages.free, *of_prompts, *of_answers]) == list(range(1, pages.number + 1))
        assert pages._of_prompts == len(of_prompts)
        slots = [*prompts._slots.values(), *prompts._free_slots]
        assert sorted(slots) == list(range(loop.runner.caches.num_slots))
        in_flight = Counter(row.number for row in loop.rows)
        assert prompts._alive == {number: in_flight[number] for number in prompts._slots}
        # None waits to be run while an answer may read it.
        assert not prompts._to_run
        ahead.extend(number for number, alive in prompts._alive.items() if not alive)

    def stepped(loop: Scheduler) -> None:
        step(loop)
        check(loop)

    def ran(loop: Scheduler) -> Iterator[Completion | None]:
        yield from run(loop)
        check(loop)
        assert not loop.prompts._slots

    monkeypatch.setattr(Scheduler, "_step", stepped)
    monkeypatch.setattr(Scheduler, "run", ran)
    for seed in range(150):
        with contextlib.suppress(UserError):
            sampled(World(seed, fails), paged=True, lag=seed % 3, units=bool(seed % 2))
    assert ahead


def test_a_question_is_dropped_and_none_that_stands_between_its_answers():
    """As after two answers, of different questions, have given up their pages."""
    queue = Queue(PromptRequest(SimpleNamespace(length=1), [0, 1]) for _ in range(2))
    taken = []
    while len(taken) < 3:
        taken.append(queue.first())
        queue.pop()
    queue.put_back(taken[2:])
    queue.put_back(taken[:1])
    queue.put_back(taken[2:])
    assert [(row.number, row.sample_index) for row in queue.drop()] == [(1, 0), (1, 0), (1, 1)]
    assert [(row.number, row.sample_index) for row in queue.drop()] == [(0, 0)]
    assert queue.first() is None


def test_a_question_that_waits_to_be_read_is_not_left_out_for_one_that_has_no_room(monkeypatch):
    """One answer at a time: the tokens of the first are drawn, and not read yet, when the second prompt is run."""
    world = World(0, fails=False)
    world.longest, world.broken, world.num_rows, world.num_pages = 3, {}, 1, 2
    world.requests = [PromptRequest(SimpleNamespace(name=number, length=1), [(number, 0)]) for number in range(3)]
    world.lengths = {(number, 0): 9 for number in range(3)}

    def may_fail(num_rows: int, question: int) -> None:
        if question == 1:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(world, "may_fail", may_fail)
    found, _ = sampled(world, paged=True, lag=1)
    assert [one.finish_reason for one in found] == ["length", TOO_LARGE, "length"]


def test_what_is_submitted_when_a_question_that_is_too_large_was_the_last_one_is_begun():
    """A rank submits its next unit then, since none is in hand."""
    world = World(0, fails=False)
    world.longest, world.broken, world.num_rows, world.num_pages = 3, {}, 2, 3
    sizes = [1, 5 * PAGE, 1]
    asked = [PromptRequest(SimpleNamespace(name=n, length=size), [(n, 0)]) for n, size in enumerate(sizes)]
    world.lengths = {(number, 0): 2 for number in range(3)}
    engine = SamplingEngine(SimpleNamespace(device=torch.device("cpu"), is_split=False, max_positions=9), 2, 2, 4, 3)
    engine._runner_for = lambda rows, params: Device(world, 2, 2, 3)
    backend = NativeBackend(engine, SimpleNamespace(params=SamplingParams(max_new_tokens=3)))
    found = []
    for one in asked:
        backend.submit(iter([one]))
        ended = []
        for _ in range(9):
            ended = ended or backend.poll()
        found += ended
    assert [(one.request, one.finish_reason) for one in found] == [(0, "stop"), (1, TOO_LARGE), (2, "stop")]
