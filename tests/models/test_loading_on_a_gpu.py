"""How a model of transformers takes a GPU's memory; `meta` is in the place of one."""

import pytest
import torch
from transformers import modeling_utils

from data_engine.bench import shapes
from data_engine.errors import UserError
from data_engine.models.auto.weights.loading import load_weights, refusing_misfits
from data_engine.models.checkpoints.json_files import ModelError
from data_engine_kernels import CannotLaunch


def test_weights_are_not_cut_from_one_piece_of_memory(tmp_path, monkeypatch):
    """Of which nothing that is freed later could be returned. transformers takes it where it is told of a device."""
    taken = []
    monkeypatch.setattr(modeling_utils, "caching_allocator_warmup", lambda *of: taken.append(of))
    shapes.write_checkpoint(tmp_path / "model", 400, shapes.QWEN)
    model = load_weights(tmp_path / "model", torch.device("meta"), torch.bfloat16)
    assert model.device.type == "meta"
    assert not taken
    # Whoever loads a model by transformers alone gets what it does.
    modeling_utils.caching_allocator_warmup("as before")
    assert taken == [("as before",)]


def test_a_machine_that_cannot_launch_kernels_is_no_fault_of_the_checkpoints(tmp_path):
    with pytest.raises(UserError) as told, refusing_misfits(tmp_path):
        raise CannotLaunch("install a C compiler")
    assert str(told.value) == "install a C compiler"
    assert not isinstance(told.value, ModelError)
