"""What a pass of several prompts asks of a GPU, on tensors without values: nothing is read, copied or mixed on the way.

A tensor of the device "meta" has a shape and strides alone, and raises where the host asks for a number.
"""

import weakref
from pathlib import Path

import pytest
import torch
from one_device import META, OneDevice, arrived
from prompts import spliced
from torch import Tensor

from data_engine import load_model
from data_engine.bench.bare_llama import TINY_LLAMA, BareLlama
from data_engine.models.base import VisionLanguageModel
from data_engine.models.layers import merged_linear, noting
from data_engine.models.layers.attention import LayerCall
from data_engine.models.layers.head import Head
from data_engine.models.layers.merged_linear import MergedLinear, merge_linears
from data_engine.models.layers.prefix import run_prefix, run_prefixes
from data_engine.models.native import embedded
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import model_runner, page_pool
from data_engine.sampling.native.kv_cache import KVCache
from data_engine.sampling.native.model_runner import ModelRunner, ToRun
from data_engine.sampling.native.packing import Packing, _Copies, rows_for
from data_engine.sampling.native.page_allocator import pages_of
from data_engine.sampling.native.page_pool import PagePool
from data_engine.sampling.native.paged_attention import PagedRows
from data_engine.sampling.native.step_graphs import Captures

NO_LIMIT = 10**6


@pytest.fixture(params=["llava/instruct", "omnilmm/instruct"])
def model(request, goldens: Path) -> VisionLanguageModel:
    """In bf16, its layers merged as on a GPU, without values."""
    found = load_model(None, str(goldens / request.param), device="cpu", dtype="bfloat16")
    # Two products in each of two layers.
    assert merge_linears(found.decoder) == 4
    found._modules.to(META)
    for module in found.decoder.modules():
        if isinstance(module, MergedLinear):
            module.product.weight = module.product.weight.to(META)
    found.head, found.device = Head(found.head.weight.to(META)), META
    return found


@torch.inference_mode()
def test_prompts_run_and_are_kept_without_a_wait_or_a_tensor_of_the_host(
    model, golden_rows, golden_images, monkeypatch
):
    """From pixels and ids to pages: what the host has goes by `sent` alone, and no number of the device is read."""
    prompts = [
        spliced(model, model.pixels(image, False, 64), row["question"])
        for image, row in zip(golden_images, golden_rows[::4], strict=True)
    ]
    caches = KVCache(model, 8, 8, PagePool(model, 8, 8, 24, 400))
    packing, passes, together = Packing(model), [], model.run_prompts
    runner = ModelRunner(model, caches, SamplingParams(max_new_tokens=24), PagedRows(2, Captures(None)), packing)
    free = iter(range(1, 400))
    waiting = [
        ToRun(prompt, slot, [next(free) for _ in range(pages_of(prompt.length))]) for slot, prompt in enumerate(prompts)
    ]
    for code in (embedded, model_runner, page_pool):
        monkeypatch.setattr(code, "sent", arrived)
    # The measurement, which is made once a number of rows, waits.
    monkeypatch.setattr(packing, "agree", lambda lengths: True)
    monkeypatch.setattr(model, "run_prompts", lambda some, rows: passes.append(len(some)) or together(some, rows))
    with OneDevice():
        runner.prefill_all(waiting)
    assert passes == [4, 4]
    assert runner.prefix_lengths == [prompt.length for prompt in prompts]


def test_a_measurement_waits_at_its_end_alone(model, monkeypatch):
    """Where the digest is read, of queries, keys and values of two layers."""
    noted = []

    def bits(copies: _Copies) -> bytes:
        noted.append(len(copies._blocks))
        return b"a digest"

    monkeypatch.setattr(_Copies, "bits", bits)
    with OneDevice():
        assert Packing(model).agree([65, 71])
    assert noted == [6, 6]


@pytest.mark.parametrize("groups", [4, 2])
def test_merged_layers_hand_each_prompt_the_attention_call_that_it_makes_alone(groups, monkeypatch):
    """Values are views of one product with queries and keys, so the strides of a prompt are not those of its shape."""
    calls, plain = [], noting.plain

    def noted(call: LayerCall) -> Tensor:
        parts = [(part.shape, part.stride(), part.dtype) for part in (call.query, call.key, call.value)]
        calls.append((call.layer, parts, call.mask, call.scale, sorted(call.options)))
        return plain(call)

    monkeypatch.setattr(noting, "plain", noted)
    monkeypatch.setattr(merged_linear, "merges_linears", lambda *_, **__: True)
    model = BareLlama(TINY_LLAMA | {"num_key_value_heads": groups}, META, torch.bfloat16)
    prompts = [model.prompt(length) for length in (70, 65, 81)]
    for prompt in prompts:
        run_prefix(model, prompt)
    alone = calls.copy()
    calls.clear()
    run_prefixes(model, prompts, rows_for([prompt.length for prompt in prompts]))
    assert calls == [alone[2 * prompt + layer] for layer in range(2) for prompt in range(3)]
    _, (*_, (shape, stride, _)), *_ = alone[0]
    assert (shape, stride[2]) == ((1, groups, 70, 16), 16 * (4 + 2 * groups))


def test_the_benchs_decoder_has_the_rotary_frequencies_of_one_that_is_loaded(goldens):
    """Which stay in fp32 whatever the weights are in."""
    made = BareLlama(TINY_LLAMA, torch.device("cpu"), torch.bfloat16).decoder
    loaded = load_model(None, str(goldens / "llava/instruct"), device="cpu", dtype="bfloat16").decoder
    assert {made.rotary_emb.inv_freq.dtype, loaded.rotary_emb.inv_freq.dtype} == {torch.float32}
    assert {one.dtype for one in made.parameters()} == {torch.bfloat16}
    assert not made.training


@pytest.mark.parametrize("part", ["layers.0.self_attn.k_proj", "layers.1.self_attn.v_proj"])
@pytest.mark.parametrize("measured", [True, False])
def test_memory_that_runs_out_in_a_pass_or_in_its_measurement_leaves_no_tensor_of_it(part, measured, monkeypatch):
    """Between the layers of one product, which keep what the others are handed."""
    monkeypatch.setattr(merged_linear, "merges_linears", lambda *_, **__: True)
    model, rows = BareLlama(TINY_LLAMA, torch.device("cpu"), torch.bfloat16), []
    prompts, packing = [model.prompt(length) for length in (65, 71)], Packing(model)
    if measured:
        monkeypatch.setattr(packing, "agree", lambda lengths: True)

    def full(module, given, made):
        if made.shape[1] > 128:
            rows.extend(map(weakref.ref, (*given, made)))
            raise torch.OutOfMemoryError("no room")

    model.decoder.get_submodule(part).register_forward_hook(full)
    assert len(packing.run(prompts, NO_LIMIT)) == 1
    assert [one() for one in rows] == [None, None]
    assert not packing.may_go([65, 71], NO_LIMIT)
    assert packing.may_go([61, 61], NO_LIMIT)
