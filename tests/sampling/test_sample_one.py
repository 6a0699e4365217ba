"""The public sample_answers where the device has the kernels: by paged caches, as a run's steps."""

import pytest

from data_engine import sample_answers
from data_engine.sampling.native import backend, page_allocator
from data_engine.sampling.native.scheduler import SamplingEngine


@pytest.mark.parametrize("page", [128, 16], ids=["usual", "of which the prompt takes many"])
def test_answers_are_drawn_by_the_kernels_and_are_the_same(instruct, golden_images, monkeypatch, page):
    def answers() -> list[list[int]]:
        drawn = sample_answers(instruct, golden_images[0], "What is in it?", k=3, top_k=20, max_new_tokens=20)
        return [answer.token_ids for answer in drawn]

    expected, most, stream = answers(), [], SamplingEngine.stream
    monkeypatch.setattr(page_allocator, "PAGE", page)
    # Of a usual prompt; this one is longer.
    monkeypatch.setattr(page_allocator, "PROMPT_TOKENS", 1)
    monkeypatch.setattr(backend, "uses_kernels", lambda model: True)
    monkeypatch.setattr(
        SamplingEngine, "stream", lambda engine, *a: most.append(engine.samples_per_prompt) or stream(engine, *a)
    )
    assert answers() == expected
    assert most == [3]
