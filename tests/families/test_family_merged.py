"""Models of transformers whose linear layers are merged, as on a GPU, beside plain ones."""

import pytest
import torch
from asked import ASKED
from families import FAMILIES
from internvl_folders import write

from data_engine import load_model, sample_answers, score_answers
from data_engine.models.layers import cpu_linear
from data_engine.models.layers.merged_linear import MergedLinear, merge_linears

ANSWERS = [[72, 33, 90], [12, 8]]
# Part of `make test`; the others take a minute.
QUICK = ("internvl", "qwen2_5_vl", "qwen2")
# Decoders of three layers, each with three layers of attention and two of the MLP that are called together.
ALL = ("llava", "llava_onevision", "internvl", "qwen2_5_vl", "gemma3")
# Some layers carry a state, and have no such attention.
FEWER = {"qwen3_5": 9}


def some(names):
    """Parameters of a test, of which most are for `make test-families`."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.families) for name in names]


def both(monkeypatch, load) -> tuple:
    """The model with merged layers, and with plain ones."""
    monkeypatch.setattr(cpu_linear, "pack_linears", lambda decoder, once: merge_linears(decoder))
    ours = load()
    monkeypatch.setattr(cpu_linear, "pack_linears", lambda decoder, once: None)
    return ours, load()


def assert_equal(ours, plain) -> None:
    image, question = ASKED["wide"].images()[0], "What is in it?"
    assert ours.why_plain == plain.why_plain
    found, expected = (score_answers(model, image, question, ANSWERS) for model in (ours, plain))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    drawn, wanted = (
        [one.token_ids for one in sample_answers(model, image, question, k=2, temperature=0.0, max_new_tokens=8)]
        for model in (ours, plain)
    )
    assert drawn == wanted


def count(model) -> int:
    return sum(isinstance(module, MergedLinear) for module in model.decoder.modules())


@pytest.mark.parametrize("name", some(FAMILIES))
def test_families_stay_what_they_are(checkpoints, name, monkeypatch):
    folder = str(checkpoints(name).folder)
    ours, plain = both(monkeypatch, lambda: load_model("auto", folder, device="cpu", dtype="float32"))
    if name in ALL or name in FEWER:
        assert count(ours) == FEWER.get(name, 3 * 5)
    assert_equal(ours, plain)


@pytest.mark.parametrize("kind", some(["qwen2", "internlm2", "qwen3"]))
def test_internvls_own_layout_too(tmp_path, kind, monkeypatch):
    folder = str(write(tmp_path / "internvl", kind))
    ours, plain = both(monkeypatch, lambda: load_model(None, folder, device="cpu", dtype="float32"))
    assert count(ours) == 5 * 2
    assert_equal(ours, plain)
