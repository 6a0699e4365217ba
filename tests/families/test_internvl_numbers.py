"""InternVL's own layout against plain formulas: the same logits, for each decoder and both towers."""

import json

import internvl_folders
import pytest
import torch
from asked import HIGH, WIDE
from internvl_forward import Reference
from safetensors.torch import load_file
from tiny_parts import picture

from data_engine import load_model, score_answers
from data_engine.questions.conversation import Conversation

ANSWER = [40, 50, 60, 45, 70, 41]
QUICK = ["internlm2", "qwen2"]
CASES = [
    pytest.param(kind, wide, marks=() if kind in QUICK else pytest.mark.families)
    for kind in internvl_folders.ARCHITECTURES
    for wide in ((False, True) if kind == "qwen2" else (kind in ("internlm2", "qwen3_moe"),))
]


@pytest.mark.parametrize(("kind", "wide"), CASES)
def test_logits_are_those_of_the_plain_formulas(tmp_path, one_thread, kind, wide):
    folder = internvl_folders.write(tmp_path / "model", kind, wide_vision=wide)
    model = load_model(None, str(folder), device="cpu", dtype="float32")
    assert (model.family, model.why_plain) == ("auto", None)
    images = [picture(*size, seed=sum(size)) for size in (WIDE, HIGH)]
    prompt = model.prompt(Conversation.of("What is it?", 2), images, crop=False, max_megapixels=64)
    ids, pixels = prompt.inputs["input_ids"][0], prompt.inputs["pixel_values"]
    assert len(pixels) > 4
    reference = Reference(json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"))
    image_id = json.loads((folder / "added_tokens.json").read_text())["<IMG_CONTEXT>"]
    expected = reference.logits(torch.cat([ids, torch.tensor(ANSWER)]), pixels, image_id)[len(ids) - 1 : -1]
    found = model.plain_logits(prompt, ANSWER)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    [logps] = score_answers(model, images, "What is it?", [ANSWER])
    wanted = expected.log_softmax(-1).gather(1, torch.tensor(ANSWER)[:, None])[:, 0]
    torch.testing.assert_close(logps.double(), wanted, atol=1e-5, rtol=0)
