"""How a model of transformers takes a GPU's memory, `meta` in the place of one, and what is said while it is loaded."""

import pytest
import torch
from transformers import modeling_utils
from transformers.utils import logging as transformers_logging

from data_engine.bench import shapes
from data_engine.errors import UserError
from data_engine.models.auto.weights.loading import load_weights, quiet, refusing_misfits
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


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("CUDA error: device-side assert triggered")], ids=str
)
def test_what_a_device_reports_is_no_fault_of_the_checkpoints(tmp_path, error):
    with pytest.raises(type(error)) as told, refusing_misfits(tmp_path):
        raise error
    assert told.value is error


@pytest.mark.parametrize("had_bar", [True, False])
def test_transformers_says_what_it_did_before_a_model_was_loaded(had_bar):
    bar = {True: transformers_logging.enable_progress_bar, False: transformers_logging.disable_progress_bar}
    before = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    try:
        bar[had_bar]()
        transformers_logging.set_verbosity_info()
        with quiet():
            assert not transformers_logging.is_progress_bar_enabled()
            assert transformers_logging.get_verbosity() == transformers_logging.ERROR
        assert transformers_logging.is_progress_bar_enabled() == had_bar
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
    finally:
        bar[before[0]]()
        transformers_logging.set_verbosity(before[1])
