"""The layouts of a scoring pass against attention's definition and the plain path, flash attention stood in on CPU."""

import pytest
import torch
from answers import Options, dense, drawn, laid_out, plain_flash, question
from prompts import EmbeddedPrompt, packed_token_logps, plain_token_logps, prefix

from data_engine import load_model
from data_engine.models.layers import attention_math
from data_engine.models.layers.attention_math import Bounds, flash, has_flash
from data_engine.scoring import answers_attention, logprobs
from data_engine.scoring.answers_attention import AnswersBehindPrefixes
from data_engine.scoring.logprobs import Scored, score_pass

CPU = torch.device("cpu")


@pytest.fixture
def as_on_a_gpu(monkeypatch) -> list[bool]:
    """Whether the calls of flash attention were causal, in turn."""
    calls: list[bool] = []
    monkeypatch.setattr(answers_attention, "flash", lambda *a: calls.append(a[5]) or plain_flash(*a))
    monkeypatch.setattr(answers_attention, "has_flash", lambda *a: True)
    monkeypatch.setattr(logprobs, "prompts_together", lambda model: 3)
    return calls


@pytest.fixture
def used(monkeypatch) -> set[str]:
    """Which of the ways in plain torch were gone."""
    ways: set[str] = set()
    in_parts, as_batch = AnswersBehindPrefixes._in_parts, answers_attention._as_batch
    monkeypatch.setattr(AnswersBehindPrefixes, "_in_parts", lambda *a: ways.add("in parts") or in_parts(*a))
    monkeypatch.setattr(answers_attention, "_as_batch", lambda *a: ways.add("as a batch") or as_batch(*a))
    return ways


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=str)
@pytest.mark.parametrize("way", ["flash", "in parts", "as a batch"])
def test_every_way_is_one_softmax_over_prefix_and_answer(heads, way, used, monkeypatch, as_on_a_gpu):
    """Of a GPU in half precision, of fp32 on CPU, and of the rest; with grouped-query heads and without."""
    questions = [question(50, (7, 1, 30), heads[1]), question(9, (4,), heads[1]), question(3, (11,), heads[1])]
    parts = drawn(questions, heads)
    monkeypatch.setattr(answers_attention, "has_flash", lambda *a: way == "flash")
    dtype = torch.float32 if way == "in parts" else torch.bfloat16
    found = laid_out(questions, parts, Options(), dtype)
    torch.testing.assert_close(found, dense(questions, parts, Options()), rtol=0, atol=1e-5)
    assert (used, as_on_a_gpu) == ((set(), [True, False]) if way == "flash" else ({way}, []))


def test_answers_of_one_token_come_from_the_prompts_alone(instruct, golden_images, monkeypatch, as_on_a_gpu):
    shared = prefix(instruct, instruct.pixels(golden_images[0], True, 64), "What is it?")
    monkeypatch.setattr(instruct, "run_answers", lambda *a: pytest.fail("nothing is fed"))
    asked = [Scored(EmbeddedPrompt(shared), [[5], [7]]), Scored(EmbeddedPrompt(shared[:9]), [[5]])]
    for one, got in zip(asked, score_pass(instruct, asked), strict=True):
        for answer, token_logps in zip(one.answers, got, strict=True):
            wanted = plain_token_logps(instruct, one.prompt.embeds_PD, answer)
            torch.testing.assert_close(token_logps, wanted, rtol=0, atol=1e-4)
    assert as_on_a_gpu == []


@pytest.mark.parametrize("family", ["instruct", "omni_instruct"])
def test_a_pass_as_on_a_gpu_equals_the_plain_path(
    family, request, golden_rows, golden_images, as_on_a_gpu, monkeypatch
):
    model = request.getfixturevalue(family)
    asked, generator = [], torch.Generator().manual_seed(0)
    for number, lengths in enumerate([[5, 30, 5], [1, 1], [12], [1, 40]]):
        shared = prefix(model, model.pixels(golden_images[number], True, 64), golden_rows[4 * number]["question"])
        ids = [torch.randint(3, 400, (length,), generator=generator).tolist() for length in lengths]
        asked.append(Scored(EmbeddedPrompt(shared), ids))
    together, run_prefixes = [], logprobs.run_prefixes
    monkeypatch.setattr(logprobs, "run_prefixes", lambda *a: together.append(len(a[1])) or run_prefixes(*a))
    for one, got in zip(asked, score_pass(model, asked), strict=True):
        for answer, token_logps in zip(one.answers, got, strict=True):
            wanted = plain_token_logps(model, one.prompt.embeds_PD, answer)
            torch.testing.assert_close(token_logps, wanted, rtol=0, atol=1e-4)
    assert together == [3]
    assert as_on_a_gpu == [True, False] * model.decoder.config.num_hidden_layers


@pytest.mark.parametrize("on_a_gpu", [False, True])
def test_bf16_is_no_worse_than_the_plain_path(goldens, instruct, golden_images, as_on_a_gpu, monkeypatch, on_a_gpu):
    """Both paths in bf16 against fp32: the packed one may not lose more than the plain one does."""
    half = load_model(None, str(goldens / "llava/instruct"), device="cpu", dtype="bfloat16")
    generator = torch.Generator().manual_seed(360)
    ids = [torch.randint(3, 1000, (60,), generator=generator).tolist() for _ in range(6)]
    monkeypatch.setattr(
        answers_attention, "has_flash", lambda device, dtype, width: on_a_gpu and dtype == torch.bfloat16
    )
    shared = prefix(instruct, instruct.pixels(golden_images[0], True, 64), "What is in the picture?")
    shared_half = prefix(half, half.pixels(golden_images[0], True, 64), "What is in the picture?")
    exact = torch.cat(packed_token_logps(instruct, shared, ids))
    packed = (torch.cat(packed_token_logps(half, shared_half, ids)) - exact).abs().mean()
    plain = (torch.cat([plain_token_logps(half, shared_half, answer) for answer in ids]) - exact).abs().mean()
    print(f"{packed:.2e} {plain:.2e}")
    assert packed <= plain * 1.1 + 1e-3
    assert bool(as_on_a_gpu) == on_a_gpu


def test_flash_asks_torch_as_torch_declares_it():
    """On the device that computes shapes alone: log-sum-exps come by head."""
    query, key = (torch.empty(10, heads, 64, dtype=torch.bfloat16, device="meta") for heads in (6, 2))
    bounds = Bounds.of([4, 0, 6], CPU)
    assert (bounds.starts.tolist(), bounds.longest) == ([0, 4, 10], 6)
    out, lse = flash(query, key, key, Bounds(bounds.starts.to("meta"), 6), Bounds(bounds.starts.to("meta"), 6), True, 1)
    assert (out.shape, out.dtype, lse.shape, lse.dtype) == ((10, 6, 64), torch.bfloat16, (6, 10), torch.float32)


@pytest.mark.parametrize("takes_gqa", sorted({False, attention_math.VARLEN_TAKES_GQA}))
@pytest.mark.parametrize("causal", [True, False])
def test_flash_of_every_torch_reaches_one_operator_with_one_meaning(monkeypatch, takes_gqa, causal):
    """The public function, where it is new enough, and else the operator behind it, which is replaced here."""
    monkeypatch.setattr(attention_math, "VARLEN_TAKES_GQA", takes_gqa)
    windows = []

    def operator(query, key, value, starts, key_starts, longest, longest_key, dropout, is_causal, *mask, **rest):
        windows.append((rest.get("window_size_left"), rest.get("window_size_right")))
        assert (dropout, is_causal, any(mask) or rest.get("return_debug_mask", False)) == (0, causal, False)
        bounds = Bounds(starts, longest), Bounds(key_starts, longest_key)
        return (*plain_flash(query, key, value, *bounds, is_causal, rest["scale"]), *[torch.zeros(1)] * 3)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", operator)
    query, key, value = (torch.randn(10, heads, 16) for heads in (6, 2, 2))
    lengths = Bounds.of([4, 6], CPU)
    found = flash(query, key, value, lengths, lengths, causal, 0.3)
    torch.testing.assert_close(found, plain_flash(query, key, value, lengths, lengths, causal, 0.3))
    # To the left everything; to the right nothing where it is causal, which the operator's own flag says too.
    assert windows == [(-1, 0 if causal else -1) if takes_gqa else (None, None)]


def test_flash_is_for_half_precision_on_recent_gpus_alone(monkeypatch):
    gpu, cpu = torch.device("cuda", 0), CPU
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert has_flash(gpu, torch.bfloat16, 128)
    assert has_flash(gpu, torch.float16, 64)
    assert not has_flash(gpu, torch.float32, 128)
    assert not has_flash(cpu, torch.bfloat16, 128)
    assert not has_flash(gpu, torch.bfloat16, 20)
    assert not has_flash(gpu, torch.bfloat16, 512)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not has_flash(gpu, torch.bfloat16, 128)


def test_prompts_that_a_window_would_part_run_alone(
    omni_instruct, golden_rows, golden_images, as_on_a_gpu, monkeypatch
):
    """Of one prompt and its answer it hides nothing, of two in a row it would."""
    prompts = [
        prefix(omni_instruct, omni_instruct.pixels(golden_images[n], True, 64), golden_rows[4 * n]["question"])
        for n in range(2)
    ]
    monkeypatch.setattr(omni_instruct.decoder.config, "sliding_window", max(map(len, prompts)) + 20)
    asked = [Scored(EmbeddedPrompt(shared), [[5, 6, 7], [8, 9]]) for shared in prompts]
    for one, got in zip(asked, score_pass(omni_instruct, asked), strict=True):
        for answer, token_logps in zip(one.answers, got, strict=True):
            wanted = plain_token_logps(omni_instruct, one.prompt.embeds_PD, answer)
            torch.testing.assert_close(token_logps, wanted, rtol=0, atol=1e-4)
