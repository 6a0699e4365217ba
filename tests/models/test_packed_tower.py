"""A tower that runs the images of a prompt as one row: which numbers it is handed, and when it stays as it is."""

import itertools

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Tower

from data_engine.errors import LostRankError
from data_engine.models.auto.forward import mirrored as mirrors
from data_engine.models.auto.forward import packed_tower
from data_engine.models.auto.forward.mirrored import Known, mirrored
from data_engine.models.auto.forward.packed_tower import NAME, PackedTower, TowerCall, tower_calls

CPU = torch.device("cpu")
# Two images, whose windows of 4 x 4 patches are cut at the edges.
GRID = torch.tensor([[1, 6, 4], [1, 4, 10]])
PIXELS = torch.randn(24 + 40, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vision() -> Tower:
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(
        depth=2, hidden_size=32, num_heads=2, intermediate_size=32, out_hidden_size=16, window_size=56,
        fullatt_block_indexes=[1],
    )  # fmt: skip
    return Tower._from_config(config, attn_implementation="sdpa").eval()


def grid() -> Tensor:
    return mirrored({"it": GRID}, {"it": GRID}, Known(CPU))["it"]


@torch.inference_mode()
def own_call(vision: Tower) -> TowerCall:
    with tower_calls(vision) as calls:
        vision(PIXELS.to(vision.dtype), grid_thw=grid())
    return calls[0]


def flash(monkeypatch, attend) -> None:
    """As on a device that has flash attention."""
    monkeypatch.setattr(packed_tower, "has_flash", lambda *of: True)
    monkeypatch.setattr(packed_tower, "flash", attend)


def within_bounds(query, key, value, queries, keys, causal, scale):
    mixed = []
    for start, end in itertools.pairwise(queries.starts.tolist()):
        query_H, key_H, value_H = (part[start:end].float().transpose(0, 1) for part in (query, key, value))
        mixed.append(((query_H @ key_H.mT * scale).softmax(-1) @ value_H).transpose(0, 1))
    return torch.cat(mixed).to(query.dtype), None


def unable(*given):
    raise RuntimeError("head dimension not supported")


def test_a_model_without_a_tower_makes_no_calls():
    with tower_calls(None) as calls:
        pass
    assert calls == []


@torch.inference_mode()
def test_a_tower_is_handed_numbers_of_its_grid_by_name_or_by_place(vision, monkeypatch):
    sent = []
    for code in (packed_tower, mirrors):
        monkeypatch.setattr(code, "sent", lambda value, device: sent.append(value) or value)
    own = own_call(vision)
    assert PackedTower.of(vision, own) is not None
    sent.clear()
    with tower_calls(vision) as calls:
        vision(PIXELS, grid_thw=grid())
        num_sent = len(sent)
        vision(PIXELS, grid())
        vision(PIXELS, grid_thw=GRID)
    by_name, by_place, unknown = calls
    assert by_name.options.keys() - {"grid_thw"} == by_place.options.keys() >= {"position_ids", "cu_window_seqlens"}
    # 24 and 40 patches.
    assert by_name.options["cu_seqlens"].tolist() == [0, 24, 64]
    assert by_name.options["max_seqlen"] == 40
    assert unknown.options.keys() == {"grid_thw"}
    assert all(torch.equal(call.hidden, own.hidden) for call in calls)
    # Positions and the order of windows: attention in a call for each image asks the host for bounds.
    assert num_sent == 2


def test_in_half_precision_what_flash_rounds_otherwise_is_no_fault(vision, monkeypatch):
    vision.to(torch.bfloat16)
    own = own_call(vision)
    flash(monkeypatch, within_bounds)
    assert PackedTower.of(vision, own) is not None
    assert vision.config._attn_implementation == NAME


@torch.inference_mode()
def test_a_tower_that_can_do_neither_stays_as_it_was(vision, monkeypatch):
    own = own_call(vision)
    flash(monkeypatch, unable)
    monkeypatch.setattr(packed_tower, "_takes_numbers", lambda vision: False)
    assert PackedTower.of(vision, own) is None
    assert vision.config._attn_implementation == "sdpa"
    monkeypatch.undo()
    with tower_calls(vision) as calls:
        vision(PIXELS, grid_thw=grid())
    assert calls[0].options.keys() == {"grid_thw"}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), LostRankError("rank 1 is gone")])
def test_what_says_nothing_of_the_tower_is_raised(vision, monkeypatch, error):
    own = own_call(vision)

    def failing(*given):
        raise error

    flash(monkeypatch, failing)
    with pytest.raises(type(error)):
        PackedTower.of(vision, own)
