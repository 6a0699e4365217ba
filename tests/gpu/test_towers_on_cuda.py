"""A vision tower with windows, in bf16 on a GPU: a layer attends in one flash call, and the host waits for nothing."""

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from data_engine.models.auto.forward.mirrored import Known, mirrored
from data_engine.models.auto.forward.packed_tower import NAME, PackedTower, tower_calls
from data_engine.sampling.native.step_graphs import refusing_waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on the machine"),
]
DEVICE = torch.device("cuda", 0)
# Two images, whose windows of 4 x 4 patches are cut at the edges.
GRID = torch.tensor([[1, 10, 14], [1, 6, 26]])


@pytest.fixture
def vision() -> Qwen2_5_VisionTransformerPretrainedModel:
    """Heads as wide as those of Qwen2.5-VL-7B's tower."""
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(
        depth=4, hidden_size=320, num_heads=4, intermediate_size=640, out_hidden_size=64, window_size=56,
        fullatt_block_indexes=[1, 3],
    )  # fmt: skip
    made = Qwen2_5_VisionTransformerPretrainedModel._from_config(config, attn_implementation="sdpa")
    return made.to(DEVICE, torch.bfloat16).eval()


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(int(GRID.prod(1).sum()), 3 * 2 * 14 * 14, device=DEVICE, dtype=torch.bfloat16)


@torch.inference_mode()
def test_a_packed_tower_gives_the_numbers_of_its_own_attention_without_a_wait(vision, pixels):
    grid = mirrored({"grid": GRID.to(DEVICE)}, {"grid": GRID}, Known(DEVICE))["grid"]
    with tower_calls(vision) as calls:
        vision(pixels, grid_thw=grid)
    [own] = calls
    packed = PackedTower.of(vision, own)
    assert packed is not None
    assert vision.config._attn_implementation == NAME
    with refusing_waits():
        found = vision(pixels, grid_thw=grid)[0]
    off = (found.float() - own.hidden.float()).norm() / own.hidden.float().norm()
    assert off < 2e-2
