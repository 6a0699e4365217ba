"""What the prompts of a family with layers for image states keep in memory."""

import pytest
from asked import ASKED

from data_engine.models.auto.sizes import cache_sizes
from data_engine.models.layers.prefix import run_prefix
from data_engine.questions.conversation import Conversation

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
