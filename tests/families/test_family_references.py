"""The references of the suite: real folders, two stock paths that agree, prompts and weights that can show a fault."""

import pytest
import torch
from asked import ASKED
from comparisons import STEPS, TOLERANCE
from families import VISION, Family, missing
from reference import token_logps


def test_the_two_references_agree_and_greedy_answers_are_varied(checkpoint):
    stock = checkpoint.stock
    for asked in checkpoint.asked().values():
        ids, logits_TV = stock.greedy(asked, STEPS, stock.placeholders, [])
        assert not set(ids) & set(stock.placeholders)
        # A model that says the same token again and again would hide answers that were mixed up.
        assert len(set(ids)) >= 5
        assert logits_TV.std(-1).min() > 0.5
        torch.testing.assert_close(stock.score(asked, ids), token_logps(logits_TV, ids), atol=TOLERANCE, rtol=0)


def test_the_picture_is_seen(checkpoint):
    """Its negative, under the same prompt, moves the logits."""
    stock = checkpoint.stock
    inputs = stock.inputs(ASKED["wide"])
    negative = {name: -value if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        first, other = (stock.model(**given).logits[0, -1] for given in (inputs, negative))
    assert (first - other).abs().max() > 0.1


def test_a_picture_is_no_row_of_patches_and_multimodal_positions_are_not_the_count(checkpoint):
    """Else a product that counts its tokens, instead of continuing their positions, would pass."""
    stock, found = checkpoint.stock, {}
    for asked in (ASKED["wide"], ASKED["high"]):
        inputs = stock.inputs(asked)
        if "image_grid_thw" not in inputs:
            continue
        short, long = sorted(side // 2 for side in inputs["image_grid_thw"][0, 1:].tolist())
        assert short >= 2
        assert long >= 3
        if not checkpoint.family.counts:
            handle = stock.model.get_decoder().register_forward_pre_hook(
                lambda module, args, given: found.update(given), with_kwargs=True
            )
            given = stock.model.prepare_inputs_for_generation(**inputs, is_first_iteration=True, use_cache=False)
            with torch.no_grad(), handle:
                stock.model(**given)
            assert found["position_ids"].max() + 1 != inputs["input_ids"].shape[1]


def test_the_folder_holds_the_weights_that_were_built(checkpoint):
    loaded, built = checkpoint.stock.model.state_dict(), checkpoint.built.state_dict()
    assert loaded.keys() == built.keys()
    assert not [name for name, value in loaded.items() if not torch.equal(value, built[name])]


@pytest.mark.families
def test_the_folder_holds_a_processor_that_transformers_loads_by_itself(checkpoint):
    from transformers import AutoProcessor

    if checkpoint.family.video and (told := missing(VISION)):
        pytest.skip(f"its video processor needs {told}")
    loaded = AutoProcessor.from_pretrained(checkpoint.folder)
    assert type(loaded).__name__ == type(checkpoint.processor).__name__
    # Some processors leave the template to their tokenizer, which reads the same file.
    assert (loaded.chat_template or loaded.tokenizer.chat_template) == checkpoint.processor.chat_template


def test_a_package_that_is_missing_is_named():
    family = Family("", "", needs=("no_such_package", "re"))
    assert family.missing() == "no_such_package, which cannot be imported: `make test-families` fetches it"
