"""Adapters that peft saved are merged here as peft merges them, to the bit: ms-swift's environment has peft."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.trainers
HERE = Path(__file__).parent
GOLDENS = HERE.parent / "goldens"


@pytest.fixture(scope="module")
def bases(tmp_path_factory, one_thread):
    """The tiny checkpoints of tests/families by name."""
    sys.path.insert(0, str(HERE.parent / "families"))
    import torchvision_names  # noqa: F401
    from checkpoints import Checkpoint

    folder, made = tmp_path_factory.mktemp("bases"), {}
    yield lambda name: made.setdefault(name, made.get(name) or Checkpoint(name, folder)).folder
    sys.path.remove(str(HERE.parent / "families"))


def merge_by_peft(base: Path, folder: Path, way: str) -> tuple[Path, Path]:
    """The adapter that peft saved, and what it merged it into."""
    python = os.environ.get("MS_SWIFT_PYTHON", "")
    if not os.access(python, os.X_OK):
        pytest.skip("no environment of swift: `make test-trainers` makes one (MS_SWIFT_PYTHON)")
    adapter, merged = folder / "adapter", folder / "merged"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, HERE / "check_peft.py", base, adapter, merged, way], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return adapter, merged


def assert_same(adapter: Path, merged: Path, base: Path, parameters: Callable[[Path], dict], least: int) -> None:
    """To the bit, and at least so many are not the base's."""
    from data_engine.models.checkpoints.adapter_folder import model_folder

    ours, theirs, before = (parameters(model_folder(str(folder))) for folder in (adapter, merged, base))
    assert ours.keys() == theirs.keys()
    for weight, value in theirs.items():
        assert torch.equal(ours[weight], value), weight
    assert sum(not torch.equal(before[weight], value) for weight, value in theirs.items()) >= least


def of_transformers(folder: Path) -> dict[str, torch.Tensor]:
    from data_engine.models.auto.weights.loading import load_weights

    return dict(load_weights(folder, torch.device("cpu"), torch.float32).named_parameters())


def of_family(folder: Path) -> dict[str, torch.Tensor]:
    """Of a family that reads its weights itself."""
    from data_engine.models import family_class
    from data_engine.models.registry import family_of

    loaded = family_class(family_of(folder)).load(folder, torch.device("cpu"), torch.float32)
    return dict(loaded._modules.named_parameters())


@pytest.mark.parametrize("way", ["attention", "all"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
def test_the_weights_are_those_of_merge_and_unload(bases, tmp_path, name, way):
    base = bases(name)
    assert_same(*merge_by_peft(base, tmp_path, way), base, of_transformers, 6)


@pytest.mark.parametrize("name", ["llava/reward", "omnilmm/instruct"])
def test_those_of_the_original_layouts_are_as_well(tmp_path, name):
    base = GOLDENS / name
    # Copies find CLIP beside them.
    (tmp_path / "openai").symlink_to(GOLDENS / "llava/openai")
    assert_same(*merge_by_peft(base, tmp_path, "own"), base, of_family, 8)


@pytest.mark.parametrize("kind", ["internlm2", "phi3", "qwen3_moe"])
def test_those_of_internvls_own_layout_are_as_well(bases, tmp_path, kind):
    """Packed weights are changed before they are split, experts before they are put together."""
    import internvl_folders

    base = internvl_folders.write(tmp_path / "base", kind)
    assert_same(*merge_by_peft(base, tmp_path, "own"), base, of_transformers, 12)
