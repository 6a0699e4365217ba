"""Models of transformers whose small operations go by the kernels' formulas, as on a GPU, beside their own code."""

import pytest
from asked import ASKED
from families import FAMILIES

from data_engine import load_model, sample_answers, score_answers
from data_engine.models.layers.fused import fuse_operations

ANSWERS = [[72, 33, 90], [12, 8]]
# Part of `make test`; the others take half a minute.
QUICK = ("internvl", "qwen2_5_vl", "qwen3_5")
# Norms, MLPs and attention modules whose code is their own, and stays.
LEFT = {
    # MLPs that cut what they make.
    "step3p7": {"Step3p7MLP"},
    "minimax_m3_vl": {"MiniMaxM3VLDenseMLP"},
    # All of its own, and rotary embedding by complex numbers.
    "llama4": {"Llama4TextAttention", "Llama4TextL2Norm", "Llama4TextMLP", "Llama4TextRMSNorm"},
    "llama4_beyond": {"Llama4TextAttention", "Llama4TextL2Norm", "Llama4TextMLP", "Llama4TextRMSNorm"},
    # Norms by mean, and those of the part that makes pictures tokens.
    "chameleon": {"ChameleonLayerNorm", "GroupNorm"},
    # Norms by mean, and places that are learned.
    "blip_2": {"LayerNorm", "OPTAttention"},
    # Image states have no place to be turned by.
    "mllama": {"MllamaTextCrossAttention"},
    # On the plain path: an index with norms of its own, and rotary embedding of queries alone.
    "mistral_large4": {"LayerNorm", "MistralLarge4TextAttention"},
    "dots3_note": {"LayerNorm"},
    # On the plain path: nothing is turned.
    "inkling2": {
        "Inkling2FullAttention", "Inkling2RMSNorm", "Inkling2SlidingAttention", "Inkling2UnweightedRMSNorm",
    },
    "inkling_mm_model": {"InklingAttention", "InklingMLP"},
    # Nothing is turned, an MLP has no gate, and a norm of groups comes behind the gate.
    "nemotron_h_omni": {"NemotronHAttention", "NemotronHMLP", "NemotronHRMSNormGated"},
    "cosmos3_edge": {"Cosmos3EdgeTextMLP"},
    # Norms of groups, and rotary embedding of queries alone as well.
    "qwen4_exp": {"Qwen4ExpTextAttention", "Qwen4ExpTextRMSNorm"},
    # All of its own but one norm, and nothing is turned.
    "glm5_next": {
        "Glm5NextTextAttention", "Glm5NextTextLinearAttention", "Glm5NextTextMLP", "Glm5NextTextRMSNormGated",
        "Glm5NextTextUnweightedRMSNorm", "LayerNorm",
    },
    # Norms that round one and the weight together, or scale before they norm.
    "muse_spark": {"MuseSparkTextCenteredRMSNorm", "MuseSparkTextInputScaledRMSNorm"},
}  # fmt: skip


def numbers(model) -> list:
    """Log-probs of answers, and an answer."""
    image, question = ASKED["wide"].images()[0], "What is in it?"
    drawn = sample_answers(model, image, question, k=2, seed=1, max_new_tokens=4)
    scored = score_answers(model, image, question, ANSWERS)
    return [*(one.token_ids for one in drawn), *(one.tolist() for one in scored)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.families) for name in FAMILIES]
)
def test_families_keep_every_bit(checkpoints, name, dtype):
    model = load_model("auto", str(checkpoints(name).folder), device="cpu", dtype=dtype)
    expected = numbers(model)
    before = {module: type(module) for module in model.decoder.modules()}
    changed = fuse_operations(model.decoder)
    left = {kind.__name__ for module, kind in before.items() if type(module) is kind}
    assert {kind for kind in left if kind.endswith(("Norm", "MLP", "Attention", "Gated"))} == LEFT.get(name, set())
    assert changed == sum(type(module) is not kind for module, kind in before.items())
    assert numbers(model) == expected


def test_every_family_that_is_named_is_one():
    assert set(LEFT) <= set(FAMILIES)
