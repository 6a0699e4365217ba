"""Pages of suffixes: how many there are, and how many answers they are expected to do for."""

import pytest

from data_engine.sampling.native.page_allocator import SEEN, PageAllocator, num_pages
from data_engine.sampling.requests import PromptRequest, Sequence


def row(pages: PageAllocator, number: int) -> Sequence:
    """An answer with so many pages."""
    made = Sequence(0, PromptRequest(lambda: None, [1]), 0)
    for _ in range(number):
        pages.take(made)
    return made


def test_there_are_half_of_those_that_the_rows_could_fill_and_enough_for_one():
    """512 tokens are four pages of 128, 130 are two, 100 are one."""
    assert num_pages(200, 512) == 400
    assert num_pages(200, 130) == num_pages(200, 100) == 200
    assert num_pages(1, 512) == 4


def test_at_first_every_answer_is_expected_to_fill_all_its_pages():
    """Three answers at four pages each leave none of 15 for a fourth."""
    pages = PageAllocator(15, 4)
    assert pages.expected()[1:] == [4, 4, 4, 4]
    rows = [row(pages, 1), row(pages, 1)]
    assert pages.suffice_for_another(rows)
    assert not pages.suffice_for_another([*rows, row(pages, 1)])


def test_answers_are_expected_to_end_where_others_did():
    """Of 8 + 1 + 23 with one page, 23 ended there; of those that went on to two, none ended before the fourth."""
    pages = PageAllocator(100, 4)
    for _ in range(23):
        pages.release(row(pages, 1), at_its_end=True)
    held = row(pages, 2)
    share = (SEEN + 1) / (SEEN + 1 + 23)
    assert pages.expected()[1:] == pytest.approx([share * 4 + (1 - share) * 1, 4, 4, 4])
    assert len(pages.free) == 98
    pages.release(held, at_its_end=False)
    assert pages.expected()[2] == 4
    assert sorted(pages.free) == list(range(1, 101))


def test_without_a_free_page_nothing_else_matters():
    pages = PageAllocator(4, 4)
    row(pages, 4)
    assert not pages.suffice_for_another([])
