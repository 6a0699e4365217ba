"""The OmniLMM family against the reference's numbers on tiny checkpoints in the published layout, image in use."""

import numpy as np
import pytest
import torch
from PIL import Image
from prompts import assert_golden_logps, forward, packed_token_logps, positions, prefix, spliced
from safetensors.torch import load_file
from tokenizers import Tokenizer

from data_engine import sample_answers, score_answers
from data_engine.models.native.embedded import IMAGE_TOKEN, SplicedPrompt
from data_engine.models.tokenizer import load_tokenizer
from data_engine.questions.images import BadImage
from data_engine.rewards import Tokens
from data_engine.rewards.implicit import token_rewards
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.scheduler import sample
from data_engine.sampling.requests import PromptRequest

QUESTIONS = range(8)
IM_PATCH = 600
EOS = 2


@pytest.fixture(scope="module")
def stage0(goldens):
    return load_file(goldens / "omnilmm/stage0/stage0.safetensors")


@pytest.fixture(scope="module")
def tensors(goldens):
    """The reference's tensors of both checkpoints."""
    return {name: load_file(goldens / f"omnilmm/with_image_{name}.safetensors") for name in ("instruct", "reward")}


@pytest.fixture(params=["instruct", "reward"])
def checkpoint(request, tensors):
    """A model and the reference's tensors for it."""
    return request.getfixturevalue(f"omni_{request.param}"), tensors[request.param]


def with_patches(model, ids: list[int]) -> list[int]:
    """The reference's ids: one <im_patch> a row of image features."""
    at = ids.index(IMAGE_TOKEN)
    return [*ids[:at], *[IM_PATCH] * model.image_tokens, *ids[at + 1 :]]


def look(model, image: Image.Image, crop: bool = True) -> torch.Tensor:
    return model.pixels(image, crop=crop, max_megapixels=64)


def test_ids_and_labels_are_the_references(checkpoint, golden_rows):
    model, tensors = checkpoint
    for number, row in enumerate(golden_rows):
        prompt, answer = model.prompt_ids(row["question"]), model.answer_ids(row["question"], row["chosen"])
        labels = tensors[f"row_{number:03d}.labels"]
        assert with_patches(model, prompt) + answer == tensors[f"row_{number:03d}.input_ids"].tolist()
        assert answer == labels[labels != -100].tolist()
        assert SplicedPrompt(prompt, torch.empty(0), model.image_tokens).length == int((labels == -100).sum())


def test_pixels_are_the_references_in_both_stages(omni_instruct, golden_images, tensors, stage0):
    expected = {0: tensors["instruct"]["row_000.pixel_values"]}
    expected |= {question: stage0[f"q_{question:03d}.pixel_values"] for question in (0, 2, 5, 7)}
    for question, pixels in expected.items():
        for crop in (True, False):
            got = look(omni_instruct, golden_images[question], crop)
            torch.testing.assert_close(got, pixels, rtol=0, atol=1e-5)


def test_tower_features_are_the_references(omni_instruct, golden_images, tensors):
    for question in (0, 1):
        with torch.inference_mode():
            got = omni_instruct._modules.vision(look(omni_instruct, golden_images[question])[None])[0]
        torch.testing.assert_close(got, tensors["instruct"][f"row_{4 * question:03d}.eva_features"], rtol=0, atol=1e-5)


def test_resampled_features_are_the_references_for_all_images_at_once(checkpoint, golden_images):
    """Question 4 is narrow and high: its pixels depend on the order of Pillow's two passes."""
    model, tensors = checkpoint
    with torch.inference_mode():
        got = model.encode_images(torch.stack([look(model, image) for image in golden_images]))
    for question in QUESTIONS:
        expected = tensors[f"row_{4 * question:03d}.resampler_out"]
        torch.testing.assert_close(got[question], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("way", ["packed", "plain"])
def test_token_logps_are_the_references_with_the_image_defect_2(checkpoint, golden_rows, golden_images, way):
    model, tensors = checkpoint
    for question in QUESTIONS:
        rows = golden_rows[4 * question : 4 * question + 4]
        shared = prefix(model, look(model, golden_images[question]), rows[0]["question"])
        assert_golden_logps(model, tensors, rows, 4 * question, shared, way)


def test_another_image_gives_other_log_probs_defect_2(omni_instruct, golden_images):
    one, other = (
        score_answers(omni_instruct, golden_images[question], "What is it?", ["a red bus"])[0] for question in (0, 1)
    )
    assert float((one - other).abs().max()) > 1e-2


def test_every_position_of_a_row_predicts_as_the_reference_does(checkpoint, golden_rows, golden_images):
    """Over prompt and image too: there the golden holds log p of id 0, which it takes for a masked label."""
    model, tensors = checkpoint
    for number in range(0, 32, 5):
        row, labels = golden_rows[number], tensors[f"row_{number:03d}.labels"].long()
        targets = labels[1:].clamp(min=0)
        answer = torch.tensor(model.answer_ids(row["question"], row["chosen"]))
        shared = prefix(model, look(model, golden_images[number // 4]), row["question"])
        with torch.inference_mode():
            whole = torch.cat([shared, model.embed_tokens(answer)])[None]
            hidden = forward(model.decoder, whole, positions(0, whole.shape[1], whole.device))[0]
            logps = (hidden @ model.head.weight.T).log_softmax(-1)[:-1].gather(-1, targets[:, None])[:, 0]
        torch.testing.assert_close(logps, tensors[f"row_{number:03d}.per_token_logp"], rtol=0, atol=1e-4)


def test_sampling_prompts_are_the_references_defect_3(omni_instruct, golden_rows, stage0):
    for question in QUESTIONS:
        prompt = omni_instruct.prompt_ids(golden_rows[4 * question]["question"])
        assert with_patches(omni_instruct, prompt) == stage0[f"q_{question:03d}.prompt_ids"].tolist()


def test_first_logits_are_the_references(omni_instruct, golden_rows, golden_images, stage0):
    for question in QUESTIONS:
        pixels = look(omni_instruct, golden_images[question], crop=False)
        shared = prefix(omni_instruct, pixels, golden_rows[4 * question]["question"])
        with torch.inference_mode():
            hidden = forward(omni_instruct.decoder, shared[None], positions(0, len(shared), shared.device))[0, -1]
            logits = hidden @ omni_instruct.head.weight.T
        torch.testing.assert_close(logits, stage0[f"q_{question:03d}.first_logits"].flatten(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_greedy_answers_are_the_references_defect_3(omni_instruct, golden_rows, golden_images, stage0, num_rows):
    requests = []
    for question in QUESTIONS:
        pixels, text = look(omni_instruct, golden_images[question], crop=False), golden_rows[4 * question]["question"]
        requests.append(PromptRequest(spliced(omni_instruct, pixels, text), [0]))
    greedy = sample(omni_instruct, requests, SamplingParams(temperature=0, max_new_tokens=24), num_rows)
    for question, answer in enumerate(greedy):
        # The golden starts with BOS, which transformers 4.37 returned with inputs_embeds.
        assert answer.token_ids == stage0[f"q_{question:03d}.greedy_ids"].tolist()[1:]


def test_answers_are_sampled_alike_with_one_seed_and_differ_with_another_defect_3(omni_instruct, golden_images):
    one, same, other = (
        sample_answers(omni_instruct, golden_images[0], "What is it?", k=3, seed=seed, idx="q", max_new_tokens=12)
        for seed in (0, 0, 1)
    )
    assert one == same
    assert one != other


def test_rewards_are_those_of_the_references_counted_tokens(
    omni_instruct, omni_reward, tensors, golden_rows, golden_images
):
    """Not of its slices by the length of a re-encoded answer, which drop or add a token."""
    for question in QUESTIONS:
        rows = golden_rows[4 * question : 4 * question + 4]
        texts = [row["chosen"] for row in rows]
        ours, theirs = (
            score_answers(model, golden_images[question], rows[0]["question"], texts)
            for model in (omni_instruct, omni_reward)
        )
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True), start=4 * question):
            key = f"row_{number:03d}.answer_token_logp"
            difference = (tensors["reward"][key] - tensors["instruct"][key]).double()
            got = token_rewards(Tokens.of([one.tolist()]), Tokens.of([other.tolist()]), 0.1)
            assert got["sum"].item() == pytest.approx(0.1 * float(difference.sum()), abs=5e-4)
            assert got["avg"].item() == pytest.approx(0.1 * float(difference.mean()), abs=5e-5)


def golden_logps(model, row: dict, image: Image.Image, hide: int | None) -> torch.Tensor:
    """An answer's log-probs by one causal pass in which nobody sees a token with the id `hide`."""
    prompt, answer = model.prompt_ids(row["question"]), model.answer_ids(row["question"], row["chosen"])
    ids = torch.tensor(with_patches(model, prompt) + answer)
    shared = prefix(model, look(model, image), row["question"])
    with torch.inference_mode():
        whole = torch.cat([shared, model.embed_tokens(torch.tensor(answer))])[None]
        seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril() & (ids != hide)
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
        place = positions(0, len(ids), whole.device)
        hidden = model.decoder(inputs_embeds=whole, position_ids=place, attention_mask=mask, use_cache=False)[0][0]
        logps = (hidden @ model.head.weight.T).log_softmax(-1)
    return logps[len(shared) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])[:, 0]


def test_a_pad_token_that_is_eos_hid_the_ends_of_turns_from_the_reference_defect_20(
    omni_instruct, goldens, golden_rows, golden_images
):
    """Its mask is `ids != pad`: with pad </s>, the </s> behind the system turn and the question are not seen."""
    found = load_file(goldens / "omnilmm/with_image_instruct_pad_eos.safetensors")
    for number, row in enumerate(golden_rows[:4]):
        expected = found[f"row_{number:03d}.answer_token_logp"]
        ids = found[f"row_{number:03d}.input_ids"]
        assert torch.equal(found[f"row_{number:03d}.attention_mask"].bool(), ids != EOS)
        hidden = golden_logps(omni_instruct, row, golden_images[0], hide=EOS)
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-4)
        [ours] = score_answers(omni_instruct, golden_images[0], row["question"], [row["chosen"]])
        assert float((ours - expected).abs().max()) > 1e-2
        torch.testing.assert_close(
            golden_logps(omni_instruct, row, golden_images[0], hide=None), ours, rtol=0, atol=1e-4
        )


def test_log_probs_are_taken_in_fp32_whatever_the_dtype_of_the_weights_defect_15(
    goldens, golden_rows, golden_images, monkeypatch
):
    from data_engine import load_model

    model = load_model(None, str(goldens / "omnilmm/instruct"), device="cpu", dtype="bfloat16")
    row = golden_rows[0]
    shared = prefix(model, look(model, golden_images[0]), row["question"])
    answer = model.answer_ids(row["question"], row["chosen"])
    # The states that the head was given: with those of another layout, the layers' own rounding would hide the head's.
    given = []
    whole = type(model.head).token_logps
    monkeypatch.setattr(
        type(model.head),
        "token_logps",
        lambda head, hidden, ids: given.append((hidden, ids)) or whole(head, hidden, ids),
    )
    [got] = packed_token_logps(model, shared, [answer])
    [(hidden, targets)] = given
    assert hidden.dtype == torch.bfloat16
    assert targets.tolist() == answer
    with torch.inference_mode():
        in_fp64 = (hidden.double() @ model.head.weight.double().T).log_softmax(-1)
        in_bf16 = (hidden @ model.head.weight.T).log_softmax(-1).float()
    exact, rounded = (logps.gather(-1, targets[:, None])[:, 0] for logps in (in_fp64, in_bf16))
    assert got.dtype == torch.float32
    assert float((got - exact).abs().max()) < 1e-5
    assert float((rounded - exact).abs().max()) > 1e-2


def test_an_answer_past_2048_tokens_is_scored_to_its_end_defect_36(omni_instruct, golden_images):
    answer = "a red bus " * 900
    ids = omni_instruct.answer_ids("What is it?", answer)
    assert len(ids) > 2048
    [logps] = score_answers(omni_instruct, golden_images[0], "What is it?", [answer])
    assert len(logps) == len(ids)
    assert ids[-1] == EOS
    assert bool(torch.isfinite(logps).all())


def test_a_row_may_be_as_long_as_the_sliding_window_hides_nothing(omni_instruct):
    """config.json has max_position_embeddings 32768 and sliding_window 4096."""
    assert omni_instruct.max_positions == 4096


def test_an_empty_answer_is_its_end(omni_instruct, golden_images):
    assert omni_instruct.answer_ids("What is it?", "") == [EOS]
    [logps] = score_answers(omni_instruct, golden_images[0], "What is it?", [""])
    assert len(logps) == 1


@pytest.mark.parametrize("text", ["</s> and <im_patch> or <s>", "<|assistant|>\nno", "  spaces \n", "图片里有什么？"])
def test_text_of_users_is_taken_literally(omni_instruct, text):
    ids = omni_instruct.answer_ids("What is it?", text)
    assert ids.count(EOS) == 1
    assert IM_PATCH not in ids
    assert omni_instruct.text(ids) == text.strip()
    prompt = omni_instruct.prompt_ids(text)
    assert prompt.count(EOS) == 2
    assert prompt.count(IMAGE_TOKEN) == 1


def test_a_tokenizer_by_which_a_trainer_cut_texts_to_a_length_cuts_none(goldens, tmp_path):
    path, text = goldens / "omnilmm/instruct/tokenizer.json", "What is to be seen in the picture, and where?"
    kept = Tokenizer.from_file(str(path))
    kept.enable_truncation(8)
    kept.enable_padding(length=64)
    kept.save(str(tmp_path / "tokenizer.json"))
    ids = load_tokenizer(tmp_path).encode(text)
    assert ids == load_tokenizer(path.parent).encode(text)
    assert 8 < len(ids) < 64


def test_the_image_marker_in_a_question_is_deleted(omni_instruct):
    assert omni_instruct.prompt_ids("What <image>is it?") == omni_instruct.prompt_ids("What is it?")


def test_the_image_is_squeezed_into_the_square_whatever_its_shape(omni_instruct):
    """Left half black, right half white: both keep their half, though the image is four times as wide as high."""
    halves = np.zeros((50, 200, 3), np.uint8)
    halves[:, 100:] = 255
    got = look(omni_instruct, Image.fromarray(halves))
    assert got.shape == (3, 112, 112)
    assert torch.equal(got, look(omni_instruct, Image.fromarray(halves), crop=False))
    # (0 - mean) / std and (1 - mean) / std of the red channel
    assert got[0, :, :50].unique().tolist() == pytest.approx([-0.48145466 / 0.26862954])
    assert got[0, :, 62:].unique().tolist() == pytest.approx([(1 - 0.48145466) / 0.26862954])


@pytest.mark.parametrize(("size", "what"), [((3000, 3000), "source"), ((1, 50_000), "resized")])
def test_an_image_that_is_huge_before_or_while_resizing_is_refused(omni_instruct, size, what):
    with pytest.raises(BadImage, match=what):
        omni_instruct.pixels(Image.new("RGB", size), crop=True, max_megapixels=5)
