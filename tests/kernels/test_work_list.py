"""The list of the parts of decode attention that have work."""

from dataclasses import replace

import pytest
import torch
from fake_runner import tasks_needed

from data_engine_kernels import RowIndex, members_of
from data_engine_kernels.work_list import Division, Launch, num_programs

# Up to 4 parts of 16 tokens a prefix and 3 of 8 a suffix; 3 query heads a key/value head, 4 queries a tile, 3 tiles.
BY = Division(split=16, own=8, prefix_parts=4, own_parts=3, shared=3, queries=4, tiles=3)


def index(slots, suffixes, prefixes, most: int = 4) -> RowIndex:
    slots, suffixes, prefixes = (torch.tensor(numbers, dtype=torch.long) for numbers in (slots, suffixes, prefixes))
    members = members_of(slots, len(prefixes), most)
    return RowIndex(slots, suffixes, prefixes, members, torch.zeros(len(slots), 3), torch.zeros(len(prefixes), 4))


def listed(rows: RowIndex, by: Division = BY) -> list[int]:
    work = rows.work(by)
    assert work.tasks.dtype == work.count.dtype == torch.int32
    return work.tasks[: int(work.count)].tolist()


def test_it_has_the_parts_with_tokens_and_queries_in_ascending_order():
    """Slot 1 is read by rows 0 and 3: 6 queries, two tiles of three; its 17 tokens are two parts of four.

    Slot 0 has tokens and no rows; slot 2 has a row and no tokens.
    """
    found = listed(index([1, -1, 2, 1], [8, 0, 9, 24], [33, 17, 0]))
    prefixes = [12 + 0, 12 + 1, 12 + 4, 12 + 5]
    suffixes = [36 + 0, 36 + 6, 36 + 7, 36 + 9, 36 + 10, 36 + 11]
    assert found == prefixes + suffixes


@pytest.mark.parametrize("seed", range(5))
def test_there_are_as_many_as_are_counted_one_by_one(seed):
    """Lengths at, before and behind the end of each part and page; idle rows; slots without rows."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(most: int, size: int) -> list[int]:
        return torch.randint(0, most, (size,), generator=generator).tolist()

    prefixes, slots = drawn(65, 5), [number - 1 for number in drawn(6, 9)]
    suffixes = [0 if slot < 0 else own for slot, own in zip(slots, drawn(25, 9), strict=True)]
    found = listed(index(slots, suffixes, prefixes, most=9), replace(BY, tiles=7))
    assert len(found) == len(set(found)) == tasks_needed(slots, suffixes, prefixes, BY)


def test_without_rows_there_is_none():
    assert listed(index([], [], [33, 5])) == []
    assert listed(index([-1, -1], [0, 0], [33, 5])) == []


def test_it_is_made_once_for_all_layers_that_are_divided_alike():
    rows = index([0], [1], [1])
    assert rows.work(BY) is rows.work(replace(BY))
    assert rows.work(replace(BY, split=8)) is not rows.work(BY)
    assert replace(rows)._work == {}


def test_programs_are_as_many_as_rows_and_heads_but_where_those_are_few():
    assert num_programs(132, rows=245 * 32, most=10**6) == 245 * 32
    assert num_programs(132, rows=20 * 4, most=10**6) == 132 * 8
    # There is never one without any task that it could get.
    assert num_programs(132, rows=3, most=30) == 30
    assert num_programs(132, rows=245 * 32, most=10**6, launch=Launch(programs=3)) == 132 * 3
    assert num_programs(132, rows=245 * 32, most=10**6, launch=Launch(programs=10**6)) == 10**6
