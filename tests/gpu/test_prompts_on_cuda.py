"""Prompts in one pass on a GPU: what was measured to agree has the bits of each alone, and nothing waits."""

import pytest
import torch
from PIL import Image
from prompts import EmbeddedPrompt, one_a_pass, prefix

from data_engine import load_model
from data_engine.bench import shapes
from data_engine.bench.bare_llama import LLAMA_7B, BareLlama
from data_engine.models.layers.prefix import run_prefixes
from data_engine.questions.conversation import Conversation
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.kv_cache import KVCache
from data_engine.sampling.native.model_runner import ModelRunner, ToRun
from data_engine.sampling.native.packing import Packing, rows_for
from data_engine.sampling.native.page_pool import PagePool
from data_engine.sampling.native.paged_attention import PagedRows
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.native.step_graphs import Captures, refusing_waits
from data_engine.sampling.requests import PromptRequest
from data_engine.seeds import seed_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on the machine"),
]
DEVICE = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def wide() -> BareLlama:
    """Four layers of LLaVA-1.5-7B's decoder, merged as they are in a run."""
    torch.manual_seed(0)
    return BareLlama(LLAMA_7B | {"num_hidden_layers": 4}, DEVICE, torch.bfloat16)


@pytest.mark.parametrize(
    "lengths", [(616, 604), (640, 640), (616, 604, 631), (616, 604, 631, 622), (700, 590, 611, 1024), (66, 131, 67, 65)]
)
@torch.inference_mode()
def test_prompts_that_were_measured_to_agree_have_the_bits_of_each_alone(wide, lengths):
    """Bit for bit in bf16, in a decoder as wide as LLaVA's."""
    if not Packing(wide).agree(lengths):
        pytest.skip(f"on this card, prompts of {lengths} tokens run one at a time")
    prompts = [wide.prompt(length) for length in lengths]
    for found, prompt in zip(run_prefixes(wide, prompts, rows_for(lengths)), prompts, strict=True):
        [expected] = run_prefixes(wide, [prompt], rows_for([prompt.length]))
        assert torch.equal(found.end.hidden_D, expected.end.hidden_D)
        for layer, noted in found.layers.items():
            assert torch.equal(noted.keys, expected.layers[layer].keys)
            assert torch.equal(noted.values, expected.layers[layer].values)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A small Qwen2.5-VL in bf16, by transformers' own code."""
    folder = tmp_path_factory.mktemp("qwen")
    shapes.write_checkpoint(folder, 400, shapes.QWEN)
    return load_model(None, str(folder), device=str(DEVICE), dtype="bfloat16")


def asked(model) -> list:
    """Pictures of several sizes; none in the last."""
    pictures = [Image.effect_noise(size, 60).convert("RGB") for size in ((336, 280), (280, 448), (168, 560))]
    prompts = [model.prompt(Conversation.of("What is it?"), [picture], True, 64) for picture in pictures]
    return [*prompts, model.prompt_without_images(Conversation.of("What is it?"))]


@torch.inference_mode()
def test_prompts_of_a_model_of_transformers_run_in_one_pass_without_a_wait(qwen):
    assert qwen.packs_prompts
    prompts = asked(qwen)
    lengths = [one.length for one in prompts]
    run_prefixes(qwen, prompts, rows_for(lengths))
    with refusing_waits():
        found = run_prefixes(qwen, prompts, rows_for(lengths))
    packing = Packing(qwen)
    for one, prompt in zip(found, prompts, strict=True):
        [alone] = run_prefixes(qwen, [prompt], rows_for([prompt.length]))
        assert one.end.next_position == alone.end.next_position
        off = (one.end.hidden_D - alone.end.hidden_D).float().norm() / alone.end.hidden_D.float().norm()
        assert off < 0.05
        if packing.agree(lengths):
            assert torch.equal(one.end.hidden_D, alone.end.hidden_D)


@torch.inference_mode()
def test_a_measurement_comes_out_the_same_again(wide):
    one, other = Packing(wide), Packing(wide)
    for num_rows in (640, 1280, 2560):
        assert one.fingerprint(num_rows) == other.fingerprint(num_rows)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def tiny(request, goldens):
    return load_model(None, str(goldens / "llava/instruct"), device=str(DEVICE), dtype=request.param)


@pytest.fixture
def prompts(tiny, golden_rows, golden_images) -> list[EmbeddedPrompt]:
    return [
        EmbeddedPrompt(prefix(tiny, tiny.pixels(image, False, 64), row["question"]))
        for image, row in zip(golden_images, golden_rows[::4], strict=True)
    ]


def test_answers_are_those_of_prompts_that_run_one_at_a_time(tiny, prompts, monkeypatch):
    requests = [PromptRequest(one, [seed_for(0, n, i) for i in range(2)]) for n, one in enumerate(prompts)]
    params = SamplingParams(1.0, 20, max_new_tokens=24)
    # Pages beside which there is room for four prompts in a pass.
    found = SamplingEngine(tiny, 16, 16, samples_per_prompt=2, num_pages=400).sample(requests, params)
    one_a_pass(monkeypatch)
    assert SamplingEngine(tiny, 16, 16, samples_per_prompt=2, num_pages=400).sample(requests, params) == found


@torch.inference_mode()
def test_a_refill_waits_for_nothing_once_its_numbers_of_rows_were_measured(tiny, prompts):
    caches = KVCache(tiny, 8, 8, PagePool(tiny, 8, 8, 24, 400))
    runner = ModelRunner(tiny, caches, SamplingParams(max_new_tokens=24), PagedRows(2, Captures(None)), Packing(tiny))
    waiting = [ToRun(prompt, slot, [1 + slot]) for slot, prompt in enumerate(prompts)]
    runner.prefill_all(waiting)
    torch.cuda.synchronize()
    with refusing_waits():
        runner.prefill_all(waiting)


@torch.inference_mode()
def test_memory_that_runs_out_in_a_pass_or_in_its_measurement_is_given_back(tiny, prompts, monkeypatch):
    """At the second layer of more than 128 rows."""
    tried = []

    def too_much(module, given):
        if given[0].shape[1] > 128:
            tried.append(given[0].shape[1])
            torch.empty(1 << 42, dtype=torch.uint8, device=DEVICE)

    measured = Packing(tiny)
    # As on a card on which all agree.
    monkeypatch.setattr(measured, "agree", lambda lengths: True)
    # Libraries have their workspaces after the first pass.
    assert len(measured.run(prompts[:4], 10**6)) == 4
    hook = tiny.decoder.layers[1].register_forward_pre_hook(too_much)
    try:
        before = torch.cuda.memory_allocated(DEVICE)
        for packing in (measured, Packing(tiny)):
            assert len(packing.run(prompts[:4], 10**6)) == 1
            assert torch.cuda.memory_allocated(DEVICE) == before
    finally:
        hook.remove()
    # 65, 71, 65 and 81 tokens; the first three have 256 rows.
    assert tried == [384, 256, 384, 256]
