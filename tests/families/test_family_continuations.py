"""Continuations behind conversations that share their pictures: what each conversation says by itself."""

import product
import pytest
import torch
from asked import ASKED
from comparisons import TOLERANCE
from families import FAMILIES, named

from data_engine import load_model, score_answers
from data_engine.errors import UserError
from data_engine.models.auto.model import Auto
from data_engine.questions.conversation import Conversation, Message
from data_engine.scoring.logprobs import Scored, score_pass
from data_engine.scoring.self_check import settle

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

TEXTS = ["Is it right: a dog?", "Is it right: two cats on a table?", "Is it"]
BOTH_WAYS = ("paligemma", "paligemma2")
# Its Q-Former reads the question too.
BY_QUESTION = "instructblip"
SHARING = [name for name, family in FAMILIES.items() if family.fast and name not in (*BOTH_WAYS, BY_QUESTION)]
# The last of one token; none ends as answers do.
CONTINUATIONS = [[72, 33, 90], [12, 8, 44, 23, 61], [9]]


def conversations(num_images: int, system: str | None = None) -> list[Conversation]:
    return [Conversation.of(text, num_images, system) for text in TEXTS]


def scored(model, asked: list[Conversation], images: list) -> list[torch.Tensor]:
    """Log-probs of CONTINUATIONS, behind a beginning that is run once and what each conversation has besides."""
    prompt, tails = model.shared_prompt(asked, images, 64)
    rows = [[*tail, *ids] for tail, ids in zip(tails, CONTINUATIONS, strict=True)]
    settle(model, prompt, max(map(len, rows)))
    [found] = score_pass(model, [Scored(prompt, rows)])
    return [logps[len(tail) :].cpu() for logps, tail in zip(found, tails, strict=True)]


def alone(model, one: Conversation, images: list, ids: list[int]):
    """One by one, through the public function, whose messages name the images."""

    def part(of: str | int) -> dict:
        return {"type": "text", "text": of} if isinstance(of, str) else {"type": "image"}

    parts = [{"role": message.role, "content": [*map(part, message.content)]} for message in one.messages]
    [found] = score_answers(model, images, parts, [ids])
    return found


def assert_equal(model, asked: list[Conversation], images: list) -> None:
    found = scored(model, asked, images)
    assert [len(logps) for logps in found] == [len(ids) for ids in CONTINUATIONS]
    for logps, one, ids in zip(found, asked, CONTINUATIONS, strict=True):
        torch.testing.assert_close(logps, alone(model, one, images, ids), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", named(SHARING))
def test_continuations_are_scored_as_each_conversation_by_itself(checkpoints, name):
    model = checkpoints(name).model
    assert_equal(model, conversations(1), ASKED["wide"].images())


@pytest.mark.parametrize("name", named([*SHARING, *BOTH_WAYS]))
def test_whether_a_prompt_is_read_in_both_directions_shows_in_half_precision_too(checkpoints, name, monkeypatch):
    """By prompts of one length, of which products are summed in one order, whatever the device."""
    model, lengths = load_model("auto", str(checkpoints(name).folder), device=product.DEVICE, dtype="bfloat16"), []
    run = Auto.run_prompt
    monkeypatch.setattr(Auto, "run_prompt", lambda model, prompt: lengths.append(prompt.length) or run(model, prompt))
    assert model.reads_ahead == (name in BOTH_WAYS)
    assert len(lengths) == 2
    assert len(set(lengths)) == 1


@pytest.mark.parametrize("name", named(["qwen2_5_vl", "internvl", "qwen3_5", "qwen3_vl", "idefics3"]))
def test_of_several_pictures_behind_a_system_text_too(checkpoints, name):
    assert_equal(checkpoints(name).model, conversations(2, "Be short."), ASKED["two images"].images())


@pytest.mark.parametrize("name", ["instruct", "omni_instruct"])
def test_of_native_families_too(request, name, golden_images):
    assert_equal(request.getfixturevalue(name), conversations(1), [golden_images[0]])


def test_the_picture_is_run_once_for_all(checkpoints):
    model, calls = checkpoints("qwen2_5_vl").model, []
    handle = model.vision.register_forward_pre_hook(lambda *_: calls.append(1))
    with handle:
        scored(model, conversations(1), ASKED["wide"].images())
        calls.clear()
        scored(model, conversations(1), ASKED["wide"].images())
    # Once for the three; a model is looked at before the first, see `settle`.
    assert len(calls) == 1


@pytest.mark.families
@pytest.mark.parametrize("name", [*BOTH_WAYS, BY_QUESTION])
def test_a_model_that_reads_its_prompt_in_both_directions_says_that_it_cannot(checkpoints, name):
    with pytest.raises(UserError, match="read in both directions, so none is the beginning of another"):
        scored(checkpoints(name).model, conversations(1), ASKED["wide"].images())


@pytest.mark.parametrize("name", named(["internvl", "gemma3"]))
def test_a_model_on_the_plain_path_scores_the_same(checkpoints, name):
    checkpoint = checkpoints(name)
    fast, slow = checkpoint.model, product.load(checkpoint.folder)
    slow.why_plain, slow.is_settled = "it was told so", True
    images = ASKED["wide"].images()
    both = (scored(one, conversations(1), images) for one in (fast, slow))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


def test_conversations_that_differ_before_the_last_picture_are_refused(checkpoints):
    asked = [Conversation((Message("user", (text, 0, "Which?")),)) for text in ("This:", "That:")]
    with pytest.raises(UserError, match="all up to the last image is equal"):
        checkpoints("qwen2_5_vl").model.shared_prompt(asked, ASKED["wide"].images(), 64)
