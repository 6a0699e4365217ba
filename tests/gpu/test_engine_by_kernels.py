"""Sampling and scoring with every kernel in its place, against plain torch on the CPU."""

import contextlib
from collections import Counter
from pathlib import Path

import pytest
import torch

import data_engine_kernels
from data_engine import load_model
from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.models.layers import cpu_linear, fused, merged_linear
from data_engine.questions.conversation import Conversation
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.kv_cache import num_slots
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.requests import PromptRequest
from data_engine.scoring.logprobs import Scored, score_pass
from data_engine.seeds import seed_for

pytestmark = pytest.mark.gpu
K, ROWS, QUESTIONS = 3, 5, 3
PARAMS = SamplingParams(temperature=1.0, top_k=20, max_new_tokens=5)
KERNELS = {"rms_norm_kernel", "rotary_kernel", "act_and_mul_kernel", "parts_kernel", "merge_kernel", "_parts_kernel"}


@pytest.fixture
def launched(monkeypatch, device) -> Counter:
    """How often each kernel was launched; those of token_logps and attention have names of their own."""
    from data_engine_kernels import attention_triton, layer_triton, logps_triton

    counted: Counter = Counter()

    class Counting:
        def __init__(self, name: str, kernel) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            counted[self.name] += 1
            return self.kernel[grid]

    for module in (attention_triton, layer_triton, logps_triton):
        for name in KERNELS & vars(module).keys():
            monkeypatch.setattr(module, name, Counting(name, getattr(module, name)))
    return counted


@pytest.fixture
def as_on_a_gpu(monkeypatch, device) -> None:
    """In the interpreter: models are loaded and kernels chosen as on CUDA."""
    # What they are held against is the formula, on a CPU.
    assert fused._known_modules()
    assert fused._known_rotary()
    if device.type == "cpu":
        monkeypatch.setattr(cpu_linear, "pack_linears", lambda decoder, once: None)
        monkeypatch.setattr(merged_linear, "merges_linears", lambda device, split: not split)
        monkeypatch.setattr(data_engine_kernels, "use_triton", lambda tensor: True)
        monkeypatch.setattr(data_engine_kernels, "_launching_on", lambda device: contextlib.nullcontext())


def sampled(model: VisionLanguageModel, prompts: list[Prompt], by_kernels: bool) -> dict[tuple[int, int], tuple]:
    """Token ids and reason of the end of each answer, by question and number."""
    requests = [
        PromptRequest(prompt, [seed_for(0, at, index) for index in range(K)]) for at, prompt in enumerate(prompts)
    ]
    engine = SamplingEngine(model, ROWS, num_slots(ROWS, K), K if by_kernels else None)
    return {
        (one.request, one.sample_index): (one.token_ids, one.finish_reason) for one in engine.sample(requests, PARAMS)
    }


@pytest.mark.parametrize("folder", ["llava/instruct", "omnilmm/instruct"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_answers_and_their_log_probs_are_those_of_plain_torch(
    folder, device, launched, request, goldens: Path, golden_rows, golden_images
):
    plain = request.getfixturevalue("instruct" if folder.startswith("llava") else "omni_instruct")
    ours = load_model(None, str(goldens / folder), device=device.type, dtype="float32")
    asked = [
        (Conversation.of(row["question"]), [image])
        for row, image in zip(golden_rows[::4], golden_images[:QUESTIONS], strict=False)
    ]
    our_prompts, prompts = ([model.prompt(*one, True, 64) for one in asked] for model in (ours, plain))
    found = sampled(ours, our_prompts, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_engine_kernels, "use_triton", lambda tensor: False)
        expected = sampled(plain, prompts, False)
    assert len(found) == QUESTIONS * K
    assert found == expected

    answers = [[list(found[question, index][0]) for index in range(K)] for question in range(QUESTIONS)]
    logps = score_pass(ours, list(map(Scored, our_prompts, answers)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_engine_kernels, "use_triton", lambda tensor: False)
        wanted = score_pass(plain, list(map(Scored, prompts, answers)))
    for one, other in zip(logps, wanted, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(mine.cpu(), theirs, rtol=0, atol=1e-4)
    assert set(launched) == KERNELS
    # For each prompt, step and pass of answers, of two layers at least. On a GPU prompts go together, and a step is
    # launched to warm up, to rehearse and to be captured.
    passes = 2 * (2 + 3 + 1 if device.type == "cuda" else 2 * QUESTIONS + PARAMS.max_new_tokens)
    assert launched["rotary_kernel"] >= passes
    assert launched["act_and_mul_kernel"] >= passes
    assert launched["rms_norm_kernel"] >= 2 * passes
