"""What the prompts of a family with layers for image states keep in memory."""

import pytest
from asked import ASKED

from data_engine.models.auto.sizes import cache_sizes
from data_engine.models.layers.prefix import run_prefix
from data_engine.pipeline.public_arguments import read_question
from data_engine.pipeline.sample import SampleSettings, request_for
from data_engine.questions.conversation import Conversation
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.scheduler import SamplingEngine

pytestmark = pytest.mark.families


@pytest.fixture(scope="module")
def mllama(checkpoints):
    return checkpoints("mllama")


@pytest.fixture(params=["wide", "high"])
def prefix(request, mllama):
    """Of pictures of two and of three tiles."""
    images = ASKED[request.param].images()
    prompt = mllama.model.prompt(Conversation.of("What is it?"), images, crop=False, max_megapixels=64)
    return run_prefix(mllama.model, prompt)


def test_budgets_count_what_an_image_leaves(mllama, prefix):
    kept = [tensor for noted in prefix.layers.values() if noted.cross for tensor in (noted.keys, noted.values)]
    assert kept
    assert cache_sizes(mllama.folder).per_prompt == sum(tensor.numel() for tensor in kept)


def test_nothing_that_is_kept_of_a_prompt_keeps_more_alive(prefix):
    """Such as the mask of all its tokens, of which the last one's part is kept."""
    [cross] = [noted for noted in prefix.layers.values() if noted.cross]
    assert cross.bias.shape == (1, cross.keys.shape[1])
    kept = [tensor for noted in prefix.layers.values() for tensor in (noted.keys, noted.values)]
    for tensor in (*kept, cross.bias):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_questions_wait_for_a_place_for_their_image_states_and_get_the_same_answers(mllama):
    """By the steps of a GPU: budgets leave fewer places for prompts than rows, since few fit."""
    settings = SampleSettings(2, 0, SamplingParams(0.7, 50, 1.0, 1.0, 6), crop=False, max_megapixels=64)
    asked = [ASKED[name] for name in ("wide", "high", "two images")]
    given = [read_question(one.images(), one.question, 64, "apply") for one in asked]
    requests = [request_for(mllama.model, *one, idx, settings) for idx, one in enumerate(given)]
    drawn = [SamplingEngine(mllama.model, 4, slots, 2).sample(requests, settings.params) for slots in (1, 2, 4)]
    assert len(drawn[0]) == len(asked) * 2
    assert [[one.token_ids for one in each] for each in drawn[1:]] == [[one.token_ids for one in drawn[0]]] * 2
    # One at a time, without anything beside it.
    alone = [one for each in requests for one in SamplingEngine(mllama.model, 4, 4, 2).sample([each], settings.params)]
    assert [one.token_ids for one in alone] == [one.token_ids for one in drawn[0]]
