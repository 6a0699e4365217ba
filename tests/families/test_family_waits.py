"""A prompt asks the device for no number: the host would wait for all that it was given to do, steps of answers too."""

import contextlib
from collections.abc import Iterator

import internvl_folders
import pytest
import torch
from asked import ASKED
from families import FAMILIES, named
from one_device import META, NoLists, OneDevice, arrived
from test_family_packed_tower import Flash
from test_family_positions import prompt
from torch.overrides import _get_current_function_mode_stack

from data_engine.models import load_model
from data_engine.models.auto.forward import mirrored, own_forward, packed_tower, processed
from data_engine.models.auto.parts import prompt_cache
from data_engine.models.layers.fused import fuse_operations

# What the host waits for there still: numbers that it does not know.
LEFT = {
    "aria": "pixels say which patches are padding",
    "idefics2": "pixels say which images are empty",
    "idefics3": "the same",
    "smolvlm": "the same",
    "gemma4": "weights of patches say which are padding",
    **dict.fromkeys(("chameleon", "emu3"), "pictures become tokens by a table of the host"),
    "step3p7": "experts run in a loop over those that are chosen",
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
    fuse_operations(model.decoder)
    model._model.to(META)
    model.device = META
    # As where it is loaded there: on a CPU, its parts did not show all that they send.
    needs = model.own_forward._sending._needs
    needs.clear()
    needs[model.decoder] = False
    for code in (mirrored, own_forward, packed_tower, processed):
        monkeypatch.setattr(code, "sent", arrived)
    monkeypatch.setattr(packed_tower, "flash", lambda query, *others: (torch.empty_like(query), None))
    with OneDevice(), NoLists():
        yield


def run_on_meta(model, asked, monkeypatch) -> None:
    given = prompt(model, asked)
    with on_meta(model, monkeypatch):
        # The first time, parts show what they send.
        model.run_prompt(given)
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


@torch.inference_mode()
def test_the_decoder_and_layers_that_send_nothing_run_without_the_mode_that_sees_each_call(checkpoints):
    model, modes = checkpoints("qwen2_5_vl").reloaded().model, {}
    forward, given = own_forward.OwnForward(model._model, model.decoder, model.vision), prompt(model, ASKED["wide"])

    def note(part: torch.nn.Module, name: str, sends: bool) -> None:
        def noted(*call) -> None:
            modes.setdefault(name, []).append(len(_get_current_function_mode_stack()))
            if sends:
                torch.tensor([1], device="cpu")

        part.register_forward_pre_hook(noted)

    note(model.vision.patch_embed, "tower", sends=True)
    note(model.vision.blocks[0].norm1, "a layer of it", sends=False)
    note(model.decoder.layers[0], "decoder", sends=True)
    with model._own_attention():
        for sends in (True, True, False):
            forward.run(given, model._inputs(given), prompt_cache(model.text_config, model.device), sends)
    # The first time, parts show what they send.
    assert modes == {"tower": [1, 1, 0], "a layer of it": [1, 0, 0], "decoder": [0, 0, 0]}


@pytest.mark.parametrize("kind", OWN)
def test_nor_does_a_prompt_of_internvls_own_layout(tmp_path, one_thread, kind, flash, monkeypatch):
    folder = internvl_folders.write(tmp_path / "model", kind)
    run_on_meta(load_model(None, str(folder), device="cpu", dtype="bfloat16"), ASKED["two images"], monkeypatch)
