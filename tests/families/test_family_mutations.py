"""The suite can fail: with a fault in the product, it does, in the families that the fault concerns."""

import mutations
import product
import pytest
from asked import ASKED
from comparisons import TOLERANCE, score_difference, wrong_greedy_rows
from families import named

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

WINDOWS = (
    "gemma3 gemma3n paligemma2 aya_vision cohere2_vision gemma4 lfm3_vl exaone4_5 step3p7 cohere_compass "
    "gemma4_unified muse_spark"
)
POSITIONS = (
    "qwen2_vl qwen2_5_vl qwen3_vl qwen3_5 glm4v ernie4_5_vl_moe qwen2_5_omni_thinker minicpmv4_7 paligemma "
    "cosmos3_edge cohere_compass qwen3_omni_moe_thinker glmga"
)
MASKS = "gemma3 paligemma2 cohere2_vision gemma4 molmo2 lfm3_vl cohere_compass gemma4_unified"


def is_red(checkpoint) -> bool:
    """Whether a comparison of the suite fails, or the product does."""
    try:
        return any(
            score_difference(checkpoint, ASKED[prompt]) > TOLERANCE or wrong_greedy_rows(checkpoint, ASKED[prompt])
            for prompt in ("wide", "high")
        )
    except AssertionError:
        raise
    except Exception:
        return True


def judge(checkpoint, mutation) -> None:
    fresh = checkpoint.reloaded()
    with mutation():
        # The product's own check may notice and send the model to the plain path, which the suite then sees.
        assert is_red(fresh) or product.is_fast(fresh.model) != fresh.family.fast
    fresh = checkpoint.reloaded()
    with mutations.unchecked(), mutation():
        assert is_red(fresh)
    # The fault is gone again.
    assert not is_red(checkpoint.reloaded())


@pytest.mark.parametrize("name", named(WINDOWS.split()))
def test_a_product_without_windows_fails(checkpoints, name):
    judge(checkpoints(name), mutations.windows_off)


@pytest.mark.parametrize("name", named(POSITIONS.split()))
def test_a_product_that_counts_positions_fails(checkpoints, name):
    judge(checkpoints(name), mutations.positions_counted)


@pytest.mark.parametrize("name", named(MASKS.split()))
def test_a_product_without_a_mask_function_fails(checkpoints, name):
    judge(checkpoints(name), mutations.no_mask_function)
