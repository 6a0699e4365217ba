"""Another release of transformers computes the numbers of the pinned one, in every family, or refuses it by name.

Run by `make test-oldest` and `make test-newest`, with the other release first on PYTHONPATH. What it is held against is
computed in a process that does not see it.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import PIL
import product
import pytest
import torch
import torchvision_names  # noqa: F401, before transformers, where this file is a program
import transformers
from asked import ASKED
from checkpoints import Checkpoint
from comparisons import answers, score_difference, wrong_greedy_rows
from families import FAMILIES, LATER
from safetensors.torch import load_file, save_file

from data_engine.models.checkpoints.json_files import ModelError

pytestmark = pytest.mark.releases

ROOT = Path(__file__).parents[2]
PROMPTS = ("wide", "high", "no image")
# A fault of a release moved the log-probs of a prompt by 0.013 nat or more, releases without one by 3e-6 at most.
TOLERANCE = 1e-5
# Families that a release does not know, or has a fault for (data_engine/models/auto/releases.py).
REFUSED = {
    "5.17.0": {
        "granite_docling", "hunyuan_vl", "lfm3_vl", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "molmo2",
        "paddleocr_vl", "paligemma2", "step3p7", "vipllava", "mistral_large4", "hyperclovax_vision_v2",
        "nemotron_h_omni", "cohere_compass", "dots3_note", "inkling2", "minimax_m3_vl", "qwen4_exp", "glm5_next",
        "muse_spark", "muse_glimmer",
    },
    "5.24.0": {"llama4", "llama4_beyond"},
}  # fmt: skip
# Families whose processor a release has take no prompt without an image.
BY_IMAGE = {"5.17.0": {"deepseek_ocr2"}}


def assert_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=rf"transformers {transformers.__version__}\b.*pip install"):
        product.load(folder)


def numbers(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """log p of each token of a few answers, by prompt, and whether prompts are shared and packed."""
    model = product.load(folder)
    without_image = FAMILIES[name].without_image and name not in BY_IMAGE.get(transformers.__version__, ())
    prompts = [prompt for prompt in PROMPTS if ASKED[prompt].sizes or without_image]
    found = {prompt: torch.cat(product.scores(model, ASKED[prompt], answers())) for prompt in prompts}
    return found | {"paths": torch.tensor([product.is_fast(model), model.packs_prompts])}


@pytest.fixture(scope="module")
def pinned(tmp_path_factory) -> tuple[Path, str]:
    """Each family's checkpoint and its numbers, by the releases that `make setup` installs, and that of Pillow."""
    folder = tmp_path_factory.mktemp("pinned")
    other = Path(transformers.__file__).parents[1]
    path = [one for one in os.environ.get("PYTHONPATH", "").split(":") if Path(one).resolve() != other.resolve()]
    environment = os.environ | {"PYTHONPATH": ":".join(path)}
    done = subprocess.run(
        [sys.executable, __file__, folder], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2] != transformers.__version__
    return folder, done.stdout.split()[-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_the_numbers_of_the_pinned_release_or_is_refused_by_name(pinned, name):
    folder, pillow = pinned
    if name in REFUSED.get(transformers.__version__, ()):
        assert_refused(folder / name)
        return
    expected, found = load_file(folder / f"{name}.safetensors"), numbers(folder / name, name)
    if name in BY_IMAGE.get(transformers.__version__, ()):
        del expected["no image"]
    assert found.keys() == expected.keys()
    assert torch.equal(found.pop("paths"), expected.pop("paths"))
    # How Pillow resizes that picture depends on its release.
    if PIL.__version__ != pillow:
        del expected["high"]
    for prompt, logps in expected.items():
        assert (found[prompt] - logps).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", LATER)
def test_a_family_of_a_later_release_has_the_numbers_of_stock_transformers(name, tmp_path):
    checkpoint = Checkpoint(name, tmp_path, LATER[name])
    if name in REFUSED.get(transformers.__version__, ()):
        assert_refused(checkpoint.folder)
        return
    assert product.is_fast(checkpoint.model) == checkpoint.family.fast
    for asked in checkpoint.asked().values():
        assert score_difference(checkpoint, asked) <= TOLERANCE
        assert wrong_greedy_rows(checkpoint, asked) == 0


def test_the_releases_of_the_list_are_those_that_run():
    """A package that is missing in the folder would be the pinned one, without a word."""
    overlay = Path(transformers.__file__).parents[1]
    lines = (ROOT / f"tests/versions/{overlay.name}.txt").read_text().splitlines()
    wanted = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert {name: version(name) for name in wanted} == wanted


def write_all(folder: Path) -> None:
    for name in FAMILIES:
        save_file(numbers(Checkpoint(name, folder).folder, name), folder / f"{name}.safetensors")
    print(transformers.__version__, PIL.__version__)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_all(Path(sys.argv[1]))
