"""The kernels' path, by its eager formula in fp32: an answer's bits follow from its own prefix and tokens alone."""

from collections.abc import Callable

import pytest
import torch
from prompts import EmbeddedPrompt, even, logits_noted, prefix
from torch import Tensor

from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.kv_cache import num_slots
from data_engine.sampling.native.page_allocator import pages_of
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.requests import PromptRequest
from data_engine.seeds import seed_for

K, ROWS = 6, 14
PARAMS = SamplingParams(temperature=1.0, top_k=20, max_new_tokens=20)
# Of each answer, by its random-number key: ids and reason of the end; of each of its tokens: the logits.
Sampled = tuple[dict[int, tuple], dict[tuple[int, int], Tensor]]


@pytest.fixture(scope="module")
def asked(instruct, golden_rows, golden_images) -> list[PromptRequest]:
    """Six questions of different length, six answers each."""
    found = []
    for number in range(6):
        shared = prefix(
            instruct, instruct.pixels(golden_images[number], False, 64), golden_rows[4 * number]["question"]
        )
        found.append(PromptRequest(EmbeddedPrompt(even(shared)), [seed_for(0, number, index) for index in range(K)]))
    return found


@pytest.fixture(scope="module")
def sampled(instruct) -> Callable[..., Sampled]:
    def sample(*units: list[PromptRequest], lag: int = 1, constant: bool = True, num_pages: int = 0) -> Sampled:
        """The units in one queue; without `constant`, by the CPU's own path."""
        engine = SamplingEngine(instruct, ROWS, num_slots(ROWS, K), K if constant else None, num_pages)
        engine.lag = lag
        requests = [request for unit in units for request in unit]
        with logits_noted() as logits:
            found = engine.sample(requests, PARAMS)
        answers = {requests[one.request].keys[one.sample_index]: (one.token_ids, one.finish_reason) for one in found}
        return answers, logits

    return sample


@pytest.fixture(scope="module")
def together(sampled, asked) -> Sampled:
    found = sampled(asked)
    assert {reason for _, reason in found[0].values()} == {"stop", "length"}
    return found


def differing(one: Sampled, other: Sampled) -> list[tuple[int, int]]:
    """The tokens of answers in both, (key, place), whose logits are not the same bits."""
    both = [at for at in one[1].keys() & other[1].keys() if at[1] < len(one[0][at[0]][0])]
    assert len(both) > 60
    return [at for at in both if not torch.equal(one[1][at], other[1][at])]


@pytest.mark.parametrize(
    "units",
    [[[3]], [[5, 4, 3, 2, 1, 0]], [[0, 1], [2, 3], [4, 5]], [[4, 5], [0, 3]]],
    ids=["alone", "another order", "several units", "other neighbours"],
)
def test_an_answer_has_the_same_bits_whatever_runs_beside_it(sampled, asked, together, units):
    found = sampled(*([asked[number] for number in unit] for unit in units))
    assert found[0].items() <= together[0].items()
    assert differing(found, together) == []


def test_bits_do_not_depend_on_when_tokens_are_read(sampled, asked, together):
    found = sampled(asked, lag=0)
    assert found[0] == together[0]
    assert differing(found, together) == []


def test_bits_do_not_depend_on_how_many_pages_there_are(sampled, asked, together):
    """With as few as one answer to the longest prompt may take, answers have other neighbours and other pages."""
    fewest = max(pages_of(request.prompt.length) for request in asked) + 1
    found = sampled(asked[:2], num_pages=fewest)
    assert found[0].items() <= together[0].items()
    assert differing(found, together) == []


def test_in_the_path_of_a_cpu_bits_depend_on_the_neighbours(sampled, asked):
    """Which is why a unit begins there when the one before it has ended."""
    assert differing(sampled(asked, constant=False), sampled(asked[::-1], constant=False))
