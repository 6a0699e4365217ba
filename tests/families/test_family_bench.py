"""`data-engine bench --model` on a checkpoint of each family: stock is given what the processor made, and agrees."""

from functools import cache

import pytest

from data_engine.bench import measure, model
from data_engine.bench.model import Sizes
from data_engine.bench.ways import WAYS
from data_engine.errors import UserError

TINY = Sizes(k=2, questions=2, drawn_questions=2, answer_tokens=4, new_tokens=3, most_tokens=4, rounds=1)

# Of which stock transformers cannot compute several rows: pieces of images, or their features, do not match.
NOT_IN_ROWS = {
    "minicpmv4_6": {"padded batch", "generate, batches", "generate, four, drawn"},
    "minicpm_ocr": {"padded batch", "generate, batches", "generate, four, drawn"},
    "minicpmv4_7": {"padded batch", "generate, batches", "generate, four, drawn"},
    "llama4": {name for name in WAYS if name.startswith(("generate", "reference"))},
}


@pytest.fixture(scope="module", autouse=True)
def ceilings_once():
    """The device is the same for every family, and its ceilings take 2 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "ceilings", cache(measure.ceilings))
        yield


@pytest.mark.families
def test_every_way_does_its_work_and_the_engine_agrees_with_stock(checkpoint):
    options = measure.Options(model=str(checkpoint.folder), rows=4, questions=1000)
    if not checkpoint.family.fast:
        with pytest.raises(UserError, match="runs on the plain path"):
            measure.run(TINY, options)
        return
    left_out = NOT_IN_ROWS.get(checkpoint.folder.name, set())
    result = measure.run(TINY, options)
    scoring = {"engine, scoring": 8, "one at a time, twice": 8, "padded batch": 8}
    assert {name: one["tokens"] for name, one in result["ways"].items() if WAYS[name].work == "scoring"} == {
        name: tokens for name, tokens in scoring.items() if name not in left_out
    }
    assert set(result["ways"]) == set(WAYS) - left_out
    assert result["largest_difference_nat"] < 1e-4
    assert 0 < result["overhead"] < 1


@pytest.mark.parametrize("name", ["qwen2_5_vl"])
def test_a_model_on_the_plain_path_is_refused_with_the_reason(name, checkpoints, monkeypatch):
    def settle(loaded, prompt, num_new):
        loaded.why_plain = "its layers choose keys by an index of their own"

    monkeypatch.setattr(model, "settle", settle)
    with pytest.raises(UserError, match=r"qwen2_5_vl runs on the plain path \(its layers choose keys"):
        measure.run(TINY, measure.Options(model=str(checkpoints(name).folder)))
