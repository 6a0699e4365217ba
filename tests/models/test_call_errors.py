"""A model that cannot be called is not what a file is that cannot be written."""

import errno

import pytest

from data_engine import load_model
from data_engine.bench import shapes
from data_engine.models.auto import probing
from data_engine.questions.conversation import Conversation
from data_engine.scoring import self_check

FULL = OSError(errno.EDQUOT, "Disk quota exceeded", "/home/me/.triton/cache/kernel.json")


def fails(error: Exception):
    def act(*_: object) -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "why"),
    [(FULL, None), (OSError("could not get source code"), "OSError: could not get source code"),
     (KeyError("mask"), "KeyError: 'mask'")],
)  # fmt: skip
def test_a_full_disk_does_not_put_a_model_on_the_plain_path(tmp_path, monkeypatch, error, why):
    """Triton writes each kernel that it compiles; the plain path would be frozen for all of the run."""
    shapes.write_checkpoint(tmp_path, 400, shapes.QWEN)

    def told() -> str:
        return f"its decoder cannot be called on its own ({why})"

    monkeypatch.setattr(probing, "layers_of", fails(error))
    if why is None:
        with pytest.raises(OSError, match="Disk quota exceeded"):
            load_model(None, str(tmp_path), device="cpu", dtype="float32")
    else:
        assert load_model(None, str(tmp_path), device="cpu", dtype="float32").why_plain == told()
    monkeypatch.undo()
    model = load_model(None, str(tmp_path), device="cpu", dtype="float32")
    prompt = model.prompt_without_images(Conversation.of("a", 0))
    monkeypatch.setattr(self_check, "score_pass", fails(error))
    if why is None:
        with pytest.raises(OSError, match="Disk quota exceeded"):
            self_check.why_not_shared(model, prompt, 4)
    else:
        assert self_check.why_not_shared(model, prompt, 4) == told()
