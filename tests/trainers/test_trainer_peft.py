"""Adapters that peft saved are merged here as peft merges them, to the bit: ms-swift's environment has peft."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.trainers
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def bases(tmp_path_factory, one_thread):
    """The tiny checkpoints of tests/families by name."""
    sys.path.insert(0, str(HERE.parent / "families"))
    import torchvision_names  # noqa: F401
    from checkpoints import Checkpoint

    folder, made = tmp_path_factory.mktemp("bases"), {}
    yield lambda name: made.setdefault(name, made.get(name) or Checkpoint(name, folder)).folder
    sys.path.remove(str(HERE.parent / "families"))


@pytest.mark.parametrize("way", ["attention", "all"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
def test_the_weights_are_those_of_merge_and_unload(bases, tmp_path, name, way):
    from data_engine.models.adapter_folder import model_folder
    from data_engine.models.auto.loading import load_weights

    python = os.environ.get("MS_SWIFT_PYTHON", "")
    if not os.access(python, os.X_OK):
        pytest.skip("no environment of swift: `make test-trainers` makes one (MS_SWIFT_PYTHON)")
    base, adapter, merged = bases(name), tmp_path / "adapter", tmp_path / "merged"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, HERE / "check_peft.py", base, adapter, merged, way], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    ours, theirs, before = (
        dict(load_weights(model_folder(str(folder)), torch.device("cpu"), torch.float32).named_parameters())
        for folder in (adapter, merged, base)
    )
    assert ours.keys() == theirs.keys()
    for weight, value in theirs.items():
        assert torch.equal(ours[weight], value), weight
    assert sum(not torch.equal(before[weight], value) for weight, value in theirs.items()) >= 6
