"""Pages of prompts and answers: how many there are, and how many answers they are expected to do for."""

from types import SimpleNamespace

import pytest

from data_engine.sampling.native.page_allocator import SEEN, PageAllocator, num_pages_of, pages_of
from data_engine.sampling.native.prompts_kept import PromptsKept
from data_engine.sampling.requests import PromptRequest, Sequence


def row(pages: PageAllocator, number: int) -> Sequence:
    """An answer with so many pages."""
    made = Sequence(0, PromptRequest(lambda: None, [1]), 0)
    for _ in range(number):
        pages.take(made)
    return made


def test_where_no_number_is_given_there_are_half_of_those_that_the_rows_could_fill_and_those_of_the_prompts():
    """512 tokens are four pages of 128, 130 are two, a prompt of 704 is six."""
    assert [pages_of(tokens) for tokens in (512, 130, 128, 0)] == [4, 2, 1, 0]
    assert num_pages_of(200, 3, 512) == 418
    assert num_pages_of(200, 1, 130) == 206
    assert num_pages_of(1, 1, 512) == 4 + 6


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


def test_a_prompt_takes_its_pages_beside_those_of_the_answers():
    """Of 15 pages, a prompt of 300 tokens has three: two answers of four pages beside it, and no third."""
    pages = PageAllocator(15, 4)
    prompt = pages.take_for_prompt(300)
    rows = [row(pages, 1), row(pages, 1)]
    assert pages.suffice_for_another(rows)
    assert not pages.suffice_for_another(rows, prompt_tokens=1)
    third = row(pages, 1)
    assert not pages.suffice_for_another([*rows, third])
    pages.release_prompt(prompt)
    pages.release(third, at_its_end=False)
    assert pages.suffice_for_another(rows, prompt_tokens=3 * 128)
    assert not pages.suffice_for_another(rows, prompt_tokens=3 * 128 + 1)
    assert sorted([*pages.free, *(page for one in rows for page in one.pages)]) == list(range(1, 16))


def test_a_prompt_and_the_first_page_of_its_answer_must_be_free():
    """Answers that are all expected to end with one page: what is free decides."""
    pages = PageAllocator(10, 1)
    rows = [row(pages, 1) for _ in range(4)]
    assert pages.suffice_for_another(rows, prompt_tokens=5 * 128)
    assert not pages.suffice_for_another(rows, prompt_tokens=6 * 128)


def test_what_fits_with_nothing_beside_it_fits_at_its_longest():
    """Four pages of an answer leave six of ten to a prompt."""
    pages = PageAllocator(10, 4)
    assert pages.can_ever_hold(6 * 128)
    assert not pages.can_ever_hold(6 * 128 + 1)
    row(pages, 4)
    assert pages.can_ever_hold(6 * 128)


def test_a_prompt_is_not_dropped_for_the_next_answer_to_it():
    """Nothing has room: the prompt stays for when there is, and the one of another question goes for it."""
    forgotten, ran = [], []
    runner = SimpleNamespace(
        caches=SimpleNamespace(num_slots=2), prompts_a_pass=4, forget=forgotten.append, prefill_all=ran.extend
    )
    pages = SimpleNamespace(suffice_for_another=lambda rows, tokens: False, take_for_prompt=lambda tokens: [])
    pages.release_prompt = lambda of_prompt: None
    prompts = PromptsKept(runner, pages)
    asked = [PromptRequest(SimpleNamespace(length=9), [0, 1]) for _ in range(2)]
    (first, second), (other, waiting) = ([Sequence(n, one, at) for at in (0, 1)] for n, one in enumerate(asked))
    for row, following in ((first, second), (other, waiting)):
        prompts.add(row)
        prompts.run()
        prompts.remove(row, following)
    assert not prompts.make_room(second, [])
    assert forgotten == [other.slot]
    prompts.add(second)
    prompts.run()
    assert len(ran) == 2
