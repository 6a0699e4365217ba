"""Models of transformers with every kernel in its place, against plain torch on the CPU.

In Triton's interpreter (tests/kernels/test_interpreted.py), or on CUDA.
"""

import contextlib
from importlib.util import find_spec

import pytest
import torch
from asked import ASKED

import data_engine_kernels
from data_engine import load_model, sample_answers, score_answers
from data_engine.models.layers import cpu_linear, fused, merged_linear
from data_engine.sampling.native import backend

pytestmark = pytest.mark.gpu


@pytest.fixture
def device(monkeypatch) -> str:
    """With the interpreter, models are loaded and kernels chosen as on CUDA."""
    if torch.cuda.is_available():
        return "cuda"
    if find_spec("triton") is None:
        pytest.skip("Triton is there on Linux alone")
    import triton

    if not triton.knobs.runtime.interpret:
        pytest.skip("no CUDA device")
    # What they are held against is the formula, on a CPU.
    assert fused._known_modules()
    assert fused._known_rotary()
    monkeypatch.setattr(cpu_linear, "pack_linears", lambda decoder, once: None)
    monkeypatch.setattr(merged_linear, "merges_linears", lambda device, split: not split)
    for code in (data_engine_kernels, backend):
        monkeypatch.setattr(code, "use_triton", lambda tensor: True)
    monkeypatch.setattr(data_engine_kernels, "_launching_on", lambda device: contextlib.nullcontext())
    return "cpu"


def numbers(model, question: str = "What is in it?") -> tuple[list, list]:
    """Ids of answers, and their log-probs and those of others."""
    image = ASKED["wide"].images()[0]
    drawn = [one.token_ids for one in sample_answers(model, image, question, k=3, seed=1, max_new_tokens=4)]
    return drawn, score_answers(model, image, question, [*drawn, [72, 33, 90]])


@pytest.fixture
def plain(checkpoints):
    """What plain torch makes of a family, before kernels are chosen."""
    return lambda name: numbers(load_model("auto", str(checkpoints(name).folder), device="cpu", dtype="float32"))


# Biases and grouped heads; rotary embedding of neighbours in fp32, and centred norms; image states. `make
# test-families` has no GPU; on one, all families run in tests/families.
@pytest.mark.parametrize("name", ["qwen2_5_vl", "aya_vision", "mllama"])
def test_answers_and_their_log_probs_are_those_of_plain_torch(name, plain, request, checkpoints, monkeypatch):
    expected, wanted = plain(name)
    device, launched = request.getfixturevalue("device"), []
    from data_engine_kernels import attention_triton, layer_triton

    for module, operation in (
        (layer_triton, "rms_norm"), (layer_triton, "apply_rotary"), (layer_triton, "act_and_mul"),
        (attention_triton, "grouped_decode_attention"),
    ):  # fmt: skip
        kernel = getattr(module, operation)

        def counting(*given, kernel=kernel, name=operation, **options):
            launched.append(name)
            return kernel(*given, **options)

        monkeypatch.setattr(module, operation, counting)
    ours = load_model("auto", str(checkpoints(name).folder), device=device, dtype="float32")
    found, got = numbers(ours)
    assert found == expected
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=0, atol=1e-4)
    assert set(launched) == {"rms_norm", "apply_rotary", "act_and_mul", "grouped_decode_attention"}
