"""A prompt asks the device for no number: the host would wait for all that it was given to do, steps of answers too."""

import contextlib
from collections.abc import Iterator

import internvl_folders
import pytest
import torch
from asked import ASKED
from families import FAMILIES, named
from one_device import META, OneDevice, arrived
from test_family_packed_tower import Flash
from test_family_positions import prompt
from torch import Tensor

from data_engine.models import load_model
from data_engine.models.auto import mirrored, own_forward, packed_tower, processed

# What the host waits for there still: numbers that it does not know, and lists that the model's code sends itself.
LEFT = {
    "llava_next": "lengths of the images' features are sent",
    "llava_onevision": "the same",
    "aria": "padding of images",
    "deepseek_vl_hybrid": "places of the second tower's relative positions are sent",
    "molmo2": "a mask of image tokens is as wide as their embeddings",
    "ovis2": "ids of its visual vocabulary are sent",
    "idefics2": "pixels say which images are empty",
    "idefics3": "the same",
    "smolvlm": "the same",
    "minicpmv4_6": "windows of slices",
    "minicpmv4_7": "the same",
    "kimi_k25": "positions of patches",
    "ernie4_5_vl_moe": "where pictures begin is counted on the host, and sent",
    "gemma4": "padding among patches",
    "gemma3n": "torch.distributions checks how sparse the activations of a layer are to be",
    "step3p7": "sizes of pictures are sent, and experts run in a loop over those that are chosen",
    "hunyuan_vl": "numbers of the placeholders' embeddings are counted",
    "paligemma": "the model makes the position behind the prompt",
    "paligemma2": "the same",
    "exaone4_5": "the same",
}
WHOLE = [name for name, family in FAMILIES.items() if family.fast and name not in LEFT]
# Not phi3: an older transformers asks for the largest position of its table of kind "longrope".
OWN = [
    pytest.param(kind, marks=() if kind == "qwen2" else pytest.mark.families)
    for kind in internvl_folders.ARCHITECTURES
    if kind != "phi3"
]


@pytest.fixture
def flash(monkeypatch) -> Flash:
    """As on a GPU."""
    return Flash(monkeypatch)


@contextlib.contextmanager
def on_meta(model, monkeypatch) -> Iterator[None]:
    """The model on tensors without values, of which the host can read none; what it sends goes by `sent` alone."""
    tensor = torch.tensor

    def made(data, *, device=None, **options) -> Tensor:
        assert device is None or torch.device(device) != META or data == [], "a list is sent without `sent`"
        return tensor(data, device=device, **options)

    model._model.to(META)
    model.device = META
    for code in (mirrored, own_forward, packed_tower, processed):
        monkeypatch.setattr(code, "sent", arrived)
    monkeypatch.setattr(packed_tower, "flash", lambda query, *others: (torch.empty_like(query), None))
    monkeypatch.setattr(torch, "tensor", made)
    with OneDevice():
        yield


def run_on_meta(model, asked, monkeypatch) -> None:
    given = prompt(model, asked)
    with on_meta(model, monkeypatch):
        end = model.run_prompt(given)
    assert end.hidden_D.device == META


@pytest.mark.parametrize("name", named(WHOLE))
@pytest.mark.parametrize("of", ["two images", "no image"])
def test_a_familys_prompt_asks_the_device_for_nothing(checkpoints, name, of, flash, monkeypatch):
    # In bf16, since in fp32 a CPU's linear layers are its own.
    checkpoint = checkpoints(name)
    if of in checkpoint.asked():
        model = load_model("auto", str(checkpoint.folder), device="cpu", dtype="bfloat16")
        run_on_meta(model, ASKED[of], monkeypatch)


@pytest.mark.parametrize("name", named(LEFT))
def test_one_of_which_that_is_not_so_is_known(checkpoints, name, flash, monkeypatch):
    model = load_model("auto", str(checkpoints(name).folder), device="cpu", dtype="bfloat16")
    # A read, or a copy that is waited for.
    with pytest.raises((RuntimeError, AssertionError), match=r"meta|sent without|of the host and of the device"):
        run_on_meta(model, ASKED["two images"], monkeypatch)


@pytest.mark.parametrize("kind", OWN)
def test_nor_does_a_prompt_of_internvls_own_layout(tmp_path, one_thread, kind, flash, monkeypatch):
    folder = internvl_folders.write(tmp_path / "model", kind)
    run_on_meta(load_model(None, str(folder), device="cpu", dtype="bfloat16"), ASKED["two images"], monkeypatch)
