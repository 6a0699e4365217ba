"""A decode step reads no number of the device, and sends none: no CUDA graph could hold the step.

Nor has it a number of the host's that another step has not, which a graph would keep.
"""

import traceback
from pathlib import Path

import internvl_folders
import pytest
import torch
from asked import ASKED
from families import FAMILIES, named
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from data_engine.models import load_model
from data_engine.models.layers.fused import fuse_operations
from data_engine.pipeline.public_arguments import read_question
from data_engine.pipeline.sample import SampleSettings, request_for
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import paged_attention
from data_engine.sampling.native.model_runner import ModelRunner
from data_engine.sampling.native.scheduler import SamplingEngine

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.nonzero, aten.masked_select, aten.equal}
BY_INDEX = {aten.index, aten.index_put, aten.index_put_}
# No kernel computes all of their layers: keys wider than values, chunks, an index of keys, a bias.
NOT_BY_KERNELS = {
    "kimi_k25", "llama4", "llama4_beyond", "mistral_large4", "dots3_note", "inkling2", "inkling_mm_model",
}  # fmt: skip
# Their steps are not captured.
READING = {
    "step3p7": "experts run in a loop over those that are chosen",
}
CAPTURED = [
    name for name, family in FAMILIES.items() if family.fast and name not in NOT_BY_KERNELS and name not in READING
]
OWN = [
    pytest.param(kind, marks=() if kind == "qwen2" else pytest.mark.families) for kind in internvl_folders.ARCHITECTURES
]
PARAMS = SamplingParams(0.7, 50, 1.0, 1.0, 4)
ROWS, K = 4, 2


class Reads(TorchDispatchMode):
    """Notes what makes a host wait for a GPU, and where; and what is launched, with shapes and the host's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.launched: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kind = function.overloadpacket
        given = [one.shape if isinstance(one, torch.Tensor) else one for one in _pytree.tree_leaves((args, kwargs))]
        self.launched.append((str(function), *map(str, given)))
        # How many places a mask chooses, the host has to know.
        if kind in READS or (kind in BY_INDEX and any(_is_mask(one) for one in args[1])):
            frames = [one for one in traceback.extract_stack()[:-1] if "/torch/" not in one.filename]
            self.found.append(f"{kind} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})")
        return function(*args, **(kwargs or {}))


class Sends(TorchFunctionMode):
    """Notes lists of the host that the model's code makes tensors of, which no capture allows on a GPU."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.as_tensor, torch.from_numpy):
            self._found.append(f"{function.__name__} of {args[0]}")
        return function(*args, **(kwargs or {}))


def _is_mask(index: torch.Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


@pytest.fixture
def steps(monkeypatch) -> list[Reads]:
    """Of each step, draws included. The kernel's eager formula reads lengths, which the kernel does not."""
    found, formula, advance = [], paged_attention.grouped_decode_attention, ModelRunner.advance

    def kernel(*given):
        with _disable_current_modes():
            return formula(*given)

    def counted(*given):
        with Reads() as reads, Sends(reads.found):
            drawn = advance(*given)
        found.append(reads)
        return drawn

    monkeypatch.setattr(paged_attention, "grouped_decode_attention", kernel)
    monkeypatch.setattr(ModelRunner, "advance", counted)
    return found


def sample(model, steps: list[Reads]) -> None:
    """Two answers to each of two questions, by the steps of a GPU."""
    assert not any(kind.why_no_kernel(model.max_positions) for kind in model.layers)
    fuse_operations(model.decoder)
    settings = SampleSettings(K, 0, PARAMS, crop=False, max_megapixels=64)
    given = [read_question(one.images(), one.question, 64, "apply") for one in (ASKED["wide"], ASKED["high"])]
    requests = [request_for(model, *one, idx, settings) for idx, one in enumerate(given)]
    answers = SamplingEngine(model, ROWS, ROWS, K).sample(requests, PARAMS)
    assert len(answers) == len(requests) * K
    assert len(steps) >= PARAMS.max_new_tokens - 1


def assert_can_be_captured(model, steps: list[Reads]) -> None:
    sample(model, steps)
    assert [one.found for one in steps] == [[]] * len(steps)
    # The first one may be like no other: what a model keeps for all steps is made there.
    assert len(steps) > 2
    assert all(one.launched == steps[1].launched for one in steps[2:])


@pytest.mark.parametrize("name", named(CAPTURED))
def test_a_step_of_a_family_can_be_captured(checkpoints, name, steps):
    assert_can_be_captured(checkpoints(name).reloaded().model, steps)


@pytest.mark.parametrize("name", named(READING))
def test_one_of_which_that_is_not_so_is_known(checkpoints, name, steps):
    sample(checkpoints(name).reloaded().model, steps)
    assert all(one.found for one in steps)


@pytest.mark.parametrize("kind", OWN)
def test_nor_one_of_internvls_own_layout(tmp_path, one_thread, kind, steps):
    """Published ones have a rotary table of the kind "dynamic" or, with Phi-3, "longrope"."""
    model = load_model(None, str(internvl_folders.write(tmp_path / "model", kind)))
    assert_can_be_captured(model, steps)
