"""Rotary embedding by a kernel, in attention modules that call what does the same; others stay as they are."""

import functools
import importlib

import pytest
import torch
import transformers
from fused_layers import llama, run
from packaging.version import Version
from torch import nn
from transformers.models.glm4_moe import modeling_glm4_moe
from transformers.models.llama import modeling_llama
from transformers.utils.deprecation import deprecate_kwarg

from data_engine.models.layers import fused
from data_engine.models.layers.fused import fuse_operations


def test_rotary_embedding_that_is_called_otherwise_is_the_models_own(calls):
    decoder, plain = llama(), modeling_llama.apply_rotary_pos_emb
    fuse_operations(decoder)
    rotary = type(decoder.layers[0].self_attn).forward.__globals__[fused.ROTARY]
    assert rotary is not plain
    calls.clear()
    heads, table = torch.randn(2, 3, 5, 8), torch.randn(2, 5, 8)
    side_by_side = heads.transpose(1, 2)
    for number, (given, options) in {
        1: ((heads, heads, table, table), {}),
        2: ((side_by_side, side_by_side, table, table), {"unsqueeze_dim": 2}),
        # By the model's own code from here on.
        3: ((side_by_side, side_by_side, table, table, 2), {}),
        4: ((heads[0], heads[0], table[0], table[0], 0), {}),
        5: ((heads, heads, table), {"sin": table}),
        6: ((heads.transpose(0, 1), heads.transpose(0, 1), table, table), {"unsqueeze_dim": 0}),
    }.items():
        for one, other in zip(rotary(*given, **options), plain(*given, **options), strict=True):
            assert torch.equal(one, other)
        assert calls == {"apply_rotary": min(number, 2)}
    with pytest.raises(TypeError, match="scale"):
        rotary(heads, heads, table, table, scale=2.0)


def rotate_half(x):
    """Of neighbours, backwards."""
    return torch.stack((x[..., 1::2], -x[..., ::2]), -1).flatten(-2)


def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed


@pytest.mark.parametrize(("halves", "changed"), [(rotate_half, 0), (modeling_llama.rotate_half, 1)])
def test_rotary_embedding_by_other_halves_stays(halves, changed, monkeypatch):
    class Attention(nn.Module):
        def forward(self, query, key, cos, sin):
            return apply_rotary_pos_emb(query, key, cos, sin)

    monkeypatch.setitem(globals(), "rotate_half", halves)
    assert fuse_operations(Attention()) == changed


def in_this_release(model: str) -> bool:
    """LFM3 came with transformers 5.23."""
    return model != "lfm3" or Version(transformers.__version__) >= Version("5.23")


# Models of transformers, whether tables reach half of a head, or are of fp32 beside heads that are not, and whether the
# kernel stands for it.
FORMS = [
    ("llama", False, False, True),
    ("llama", False, True, True),
    ("glm4v", False, False, True),
    ("glm4v", True, False, True),
    ("glm_ocr", True, False, True),
    ("cohere", False, False, True),
    ("cohere2", False, False, True),
    ("cohere2", False, True, True),
    ("ernie4_5_vl_moe", False, False, True),
    ("ernie4_5_vl_moe", False, True, True),
    ("hunyuan_vl", False, False, True),
    ("hunyuan_vl", False, True, True),
    ("lfm3", False, True, True),
    ("lfm3", False, False, False),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("model", "half", "fp32_tables", "by_kernel"), [form for form in FORMS if in_this_release(form[0])]
)
def test_each_form_that_models_have_is_the_same_to_the_last_bit(
    model, half, fp32_tables, by_kernel, dtype, calls, monkeypatch
):
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    monkeypatch.setitem(globals(), "apply_rotary_pos_emb", module.apply_rotary_pos_emb)

    class Attention(nn.Module):
        def forward(self, query, key, cos, sin):
            return apply_rotary_pos_emb(query, key, cos, sin)

    attention = Attention()
    heads = [torch.randn(2, count, 5, 16).to(dtype) for count in (6, 2)]
    table = torch.randn(2, 2, 5, 8 if half else 16).to(torch.float32 if fp32_tables else dtype)
    expected = attention(*heads, *table)
    assert fuse_operations(attention) == 1
    calls.clear()
    for one, other in zip(attention(*heads, *table), expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert calls["apply_rotary"] == (by_kernel or dtype == torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model", ["deepseek_v3", "mistral4"])
def test_pairs_of_neighbours_that_are_laid_apart_are_the_same_to_the_last_bit(model, dtype, calls, monkeypatch):
    """By a function of another name, beside the usual one."""
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    for name in (fused.ROTARY, fused.INTERLEAVED):
        monkeypatch.setitem(globals(), name, getattr(module, name))

    class Attention(nn.Module):
        def forward(self, query, key, cos, sin, interleaved):
            turn = apply_rotary_pos_emb_interleave if interleaved else apply_rotary_pos_emb  # noqa: F821
            return turn(query, key, cos, sin)

    attention, table = Attention(), torch.randn(2, 2, 5, 8).to(dtype)
    heads = [torch.randn(2, count, 5, 24).to(dtype)[..., 16:] for count in (6, 1)]
    expected = [attention(*heads, *table, interleaved) for interleaved in (True, False)]
    assert fuse_operations(attention) == 1
    for number, made in enumerate(expected, 1):
        calls.clear()
        assert all(map(torch.equal, attention(*heads, *table, number == 1), made))
        assert calls == {"apply_rotary": 1}


def tokens_first(q, k, cos, sin, unsqueeze_dim=2):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed


def test_rotary_embedding_of_tokens_before_heads_by_default_stays(monkeypatch):
    class Attention(nn.Module):
        def forward(self, query, key, cos, sin):
            return apply_rotary_pos_emb(query, key, cos, sin)

    monkeypatch.setitem(globals(), "rotate_half", modeling_llama.rotate_half)
    monkeypatch.setitem(globals(), "apply_rotary_pos_emb", tokens_first)
    attention = Attention()
    # As many heads as tokens: either could be the other.
    heads, table = torch.randn(2, 3, 3, 8), torch.randn(2, 3, 8)
    expected = attention(heads, heads, table, table)
    assert fuse_operations(attention) == 0
    assert all(map(torch.equal, attention(heads, heads, table, table), expected))


def test_an_attention_module_keeps_what_it_holds_and_its_defaults(calls, monkeypatch):
    class Base(nn.Module):
        def forward(self, query, key):
            return query + key

    scale, table = 3.0, torch.randn(2, 5, 8)

    class Attention(Base):
        def forward(self, query, key, table=table, *, shift=2.0):
            query, key = apply_rotary_pos_emb(query, key, table, table)
            return scale * super().forward(query, key) + shift

    monkeypatch.setitem(globals(), "rotate_half", modeling_llama.rotate_half)
    attention, heads = Attention(), torch.randn(2, 3, 5, 8)
    expected = attention(heads, heads)
    assert fuse_operations(attention) == 1
    calls.clear()
    assert torch.equal(attention(heads, heads), expected)
    assert calls == {"apply_rotary": 1}
    # Once more changes nothing.
    assert fuse_operations(attention) == 0


def doubled(function):
    @functools.wraps(function)
    def wrapped(*given, **options):
        return 2 * function(*given, **options)

    return wrapped


@pytest.mark.parametrize(
    ("wrapper", "changed"), [(deprecate_kwarg("keys", version="1000.0", new_name="key"), 1), (doubled, 0)]
)
def test_what_takes_a_former_name_of_an_argument_is_looked_into_and_no_other_wrapper(wrapper, changed, monkeypatch):
    class Attention(nn.Module):
        @wrapper
        def forward(self, query, key):
            query, key = apply_rotary_pos_emb(query, key, table, table)
            return query + key

    monkeypatch.setitem(globals(), "rotate_half", modeling_llama.rotate_half)
    attention, heads, table = Attention(), torch.randn(2, 3, 5, 8), torch.randn(2, 5, 8)
    expected = attention(heads, key=heads)
    assert fuse_operations(attention) == changed
    assert torch.equal(attention(heads, key=heads), expected)


@pytest.mark.usefixtures("known_anew")
def test_functions_that_the_package_kernels_made_modules_of_stay(monkeypatch):
    """As it does with transformers 5.17."""
    plain = modeling_llama.apply_rotary_pos_emb

    class Func(nn.Module):
        def forward(self, *given):
            return plain(*given)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", Func())
    decoder = llama()
    expected = run(decoder)
    assert fuse_operations(decoder) == 2 * 3 + 1
    assert torch.equal(run(decoder), expected)


@pytest.mark.usefixtures("known_anew")
def test_rotary_embedding_of_a_part_is_known_only_where_it_turns_a_part_alike(monkeypatch):
    def other_part(q, k, cos, sin, unsqueeze_dim=1):
        """The last numbers in the place of the first."""
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        stays = q.shape[-1] - cos.shape[-1]

        def turned(heads):
            rest, part = heads[..., :stays], heads[..., stays:]
            return torch.cat((rest, part * cos + modeling_llama.rotate_half(part) * sin), -1)

        return turned(q), turned(k)

    monkeypatch.setattr(modeling_glm4_moe, "apply_rotary_pos_emb", other_part)
    known = [one.__module__.split(".modeling_")[-1] for one, _ in fused._known_rotary()]
    assert known == [name for name in fused.KNOWN_ROTARY if name != "glm4_moe" and in_this_release(name)]


@pytest.mark.usefixtures("known_anew")
def test_to_try_what_is_known_seeds_no_device_and_draws_from_no_generator(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    assert len(fused._known_modules()) == len(fused.KNOWN)
    assert len(fused._known_rotary()) == 8 + in_this_release("lfm3")
    assert not seeded
    assert torch.equal(torch.get_rng_state(), before)
