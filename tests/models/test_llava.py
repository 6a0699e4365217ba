"""The LLaVA family against the reference's numbers on tiny checkpoints in the published layouts."""

import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from prompts import assert_golden_logps, forward, positions, prefix, spliced
from run_files import png
from safetensors.torch import load_file

from data_engine import load_model, score_answers
from data_engine.models.native.llava import preprocess
from data_engine.models.tokenizer import SentencePieceTokenizer, load_tokenizer
from data_engine.questions.conversation import Conversation
from data_engine.questions.images import BadImage
from data_engine.rewards import Tokens
from data_engine.rewards.implicit import token_rewards
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.scheduler import sample
from data_engine.sampling.requests import PromptRequest

QUESTIONS = range(8)


@pytest.fixture(scope="module")
def stage0(goldens):
    return load_file(goldens / "llava/stage0/stage0.safetensors")


@pytest.fixture(params=["instruct", "reward"])
def checkpoint(request, goldens):
    """A model and the reference's tensors for it."""
    return request.getfixturevalue(request.param), load_file(goldens / f"llava/tensors_{request.param}.safetensors")


def test_a_loaded_model_computes_without_tf32_sums_in_fp32_and_attends_without_cudnn(goldens, monkeypatch):
    """cuDNN's default, by both names that torch has for it; that of products in some containers; that of their sums."""
    products = torch.backends.cuda.matmul
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.set_float32_matmul_precision("high")
    products.allow_bf16_reduced_precision_reduction = products.allow_fp16_reduced_precision_reduction = True
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert products.allow_tf32
    load_model(None, str(goldens / "llava/instruct"), device="cpu", dtype="float32")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"
    assert torch.get_float32_matmul_precision() == "highest"
    assert not products.allow_tf32
    assert not products.allow_bf16_reduced_precision_reduction
    assert not products.allow_fp16_reduced_precision_reduction


def test_ids_and_labels_are_the_references(checkpoint, golden_rows):
    model, tensors = checkpoint
    for number, row in enumerate(golden_rows):
        answer = model.answer_ids(row["question"], row["chosen"])
        labels = tensors[f"row_{number:03d}.labels"]
        assert model.prompt_ids(row["question"]) + answer == tensors[f"row_{number:03d}.input_ids"].tolist()
        assert answer == labels[labels != -100].tolist()


def test_scoring_pixels_are_the_references(checkpoint, golden_images):
    model, tensors = checkpoint
    compared = 0
    for question in QUESTIONS:
        expected = tensors.get(f"row_{4 * question:03d}.pixel_values")
        if expected is not None:
            got = model.pixels(golden_images[question], crop=True, max_megapixels=64)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
            compared += 1
    assert compared == (8 if "row_000.pixel_values" in tensors else 0)


def test_image_features_are_the_references(checkpoint, golden_images):
    model, tensors = checkpoint
    for question in QUESTIONS:
        with torch.inference_mode():
            got = model.encode_images(model.pixels(golden_images[question], crop=True, max_megapixels=64)[None])[0]
        torch.testing.assert_close(got, tensors[f"row_{4 * question:03d}.image_features"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("way", ["packed", "plain"])
def test_token_logps_are_the_references(checkpoint, golden_rows, golden_images, way):
    model, tensors = checkpoint
    for question in QUESTIONS:
        rows = golden_rows[4 * question : 4 * question + 4]
        pixels = model.pixels(golden_images[question], crop=True, max_megapixels=64)
        shared = prefix(model, pixels, rows[0]["question"])
        assert_golden_logps(model, tensors, rows, 4 * question, shared, way)


def test_sampling_prompts_and_padded_pixels_are_the_references(instruct, golden_rows, golden_images, stage0):
    for question in QUESTIONS:
        text = golden_rows[4 * question]["question"]
        assert instruct.prompt_ids(text) == stage0[f"q_{question:03d}.prompt_ids"].tolist()
        got = instruct.pixels(golden_images[question], crop=False, max_megapixels=64)
        torch.testing.assert_close(got, stage0[f"q_{question:03d}.pixel_values_pad"], rtol=0, atol=1e-5)


def test_first_logits_are_the_references(instruct, golden_rows, golden_images, stage0):

    for question in QUESTIONS:
        pixels = instruct.pixels(golden_images[question], crop=False, max_megapixels=64)
        shared = prefix(instruct, pixels, golden_rows[4 * question]["question"])
        with torch.inference_mode():
            hidden = forward(instruct.decoder, shared[None], positions(0, len(shared), shared.device))[0, -1]
            logits = hidden @ instruct.head.weight.T
        torch.testing.assert_close(logits, stage0[f"q_{question:03d}.first_logits"].flatten(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_greedy_answers_are_the_references(instruct, golden_rows, golden_images, stage0, num_rows):
    requests = []
    for question in QUESTIONS:
        pixels = instruct.pixels(golden_images[question], crop=False, max_megapixels=64)
        text = golden_rows[4 * question]["question"]
        requests.append(PromptRequest(spliced(instruct, pixels, text), [0]))
    greedy = sample(instruct, requests, SamplingParams(temperature=0, max_new_tokens=24), num_rows)
    for question, answer in enumerate(greedy):
        # The golden starts with BOS, which transformers 4.37 returned with inputs_embeds.
        assert answer.token_ids == stage0[f"q_{question:03d}.greedy_ids"].tolist()[1:]


def test_rewards_of_our_own_log_probs_are_the_references_matched_ones(
    instruct, reward, goldens, golden_rows, golden_images
):
    """By its second version, which matches rows rightly; its avg is a tenth of ours, since it applies beta twice."""
    expected = json.loads((goldens / "llava/rewards_matched_be9ac29.json").read_text())
    by_text = {(row["question"], row["chosen"]): row for row in expected}
    assert len(expected) == 32
    for question in QUESTIONS:
        rows = golden_rows[4 * question : 4 * question + 4]
        texts = [row["chosen"] for row in rows]
        ours, theirs = (
            score_answers(model, golden_images[question], rows[0]["question"], texts) for model in (instruct, reward)
        )
        for row, one, other in zip(rows, ours, theirs, strict=True):
            got = token_rewards(Tokens.of([one.tolist()]), Tokens.of([other.tolist()]), 0.1)
            wanted = by_text[row["question"], row["chosen"]]
            assert got["sum"].item() == pytest.approx(wanted["sum"], abs=5e-4)
            assert got["avg"].item() == pytest.approx(10 * wanted["avg"], abs=5e-4)
            assert got["min"].item() == pytest.approx(wanted["min"], abs=5e-4)
            assert got["last"].item() == pytest.approx(wanted["ORM"], abs=5e-4)


def _edge_cases(goldens):
    rows = pq.read_table(goldens / "llava/edge/edge_cases.parquet").to_pylist()
    return json.loads((goldens / "llava/edge/edge_results.json").read_text()), rows


# Where the reference masked the whole row, died, or read special tokens out of a user's text. Ours: the text is taken
# literally, and at least the EOS is counted.
NOT_AS_REFERENCE = {
    "empty_answer": "nothing counted",
    "answer_with_assistant_tag": "everything masked",
    "question_with_assistant_tag": "everything masked",
    "answer_with_eos_string": "everything masked",
    "answer_with_bos_string": "<s> read as BOS",
    "answer_with_unk_string": "everything masked",
    "question_with_image_tag": "IndexError",
    "question_with_image_tag_middle": "IndexError",
    "answer_with_image_tag": "IndexError",
    "one_pixel": "ValueError: a 1 x 1 image taken for channels-first",
    "corrupt_image": "the stage dies",
}


@pytest.mark.parametrize("which", ["instruct", "reward"])
def test_edge_cases_are_the_references_where_it_was_sane(which, goldens, request):
    model = request.getfixturevalue(which)
    results, rows = _edge_cases(goldens)
    compared = []
    for row, (name, result) in zip(rows, results.items(), strict=True):
        if name in NOT_AS_REFERENCE or result[which].get("exception"):
            continue
        [logps] = score_answers(model, _bytes(row), row["question"], [row["chosen"]])
        assert len(logps) == result[which]["n_label_tokens"], name
        assert float(logps.double().sum()) == pytest.approx(result[which]["logp"], abs=2e-3), name
        compared.append(name)
    assert len(compared) >= len(results) - len(NOT_AS_REFERENCE) - (which == "reward")


def _bytes(row: dict) -> bytes:
    return row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]


@pytest.mark.parametrize("name", [name for name in NOT_AS_REFERENCE if name != "corrupt_image"])
def test_edge_cases_that_broke_the_reference_are_scored(instruct, goldens, name):
    results, rows = _edge_cases(goldens)
    row = rows[list(results).index(name)]
    [logps] = score_answers(instruct, _bytes(row), row["question"], [row["chosen"]])
    text = instruct.text(instruct.answer_ids(row["question"], row["chosen"]))
    assert len(logps) >= 1
    assert bool(torch.isfinite(logps).all())
    assert text == row["chosen"].strip()


def test_a_corrupt_image_is_a_bad_image_defect_22(instruct, goldens):
    results, rows = _edge_cases(goldens)
    row = rows[list(results).index("corrupt_image")]
    with pytest.raises(BadImage):
        score_answers(instruct, _bytes(row), row["question"], [row["chosen"]])


def test_the_image_marker_in_a_question_is_deleted_in_both_stages_defect_8(instruct):
    assert instruct.prompt_ids("What <image>is it?") == instruct.prompt_ids("What is it?")


def test_both_stages_can_see_the_same_pixels_defect_9(instruct):
    image = Image.fromarray(np.arange(60 * 90 * 3, dtype=np.uint8).reshape(60, 90, 3))
    padded = instruct.pixels(image, crop=False, max_megapixels=64)
    cropped = instruct.pixels(image, crop=True, max_megapixels=64)
    assert padded.shape == cropped.shape == (3, 56, 56)
    assert not torch.equal(padded, cropped)


def test_an_image_of_height_three_is_an_image_defect_21():
    stripes = np.zeros((3, 9, 3), np.uint8)
    stripes[:, 3:6] = 255
    got = preprocess(Image.fromarray(stripes), 3, crop=True, max_megapixels=64)
    # Short edge 3 stays 3, and the centre of 9 columns is the white one: (1 - mean) / std.
    expected = [
        (1 - mean) / std for mean, std in ((0.48145466, 0.26862954), (0.4578275, 0.26130258), (0.40821073, 0.27577711))
    ]
    for channel in range(3):
        assert got[channel].flatten().tolist() == pytest.approx([expected[channel]] * 9, abs=1e-5)


@pytest.mark.parametrize("crop", [True, False])
def test_a_strip_is_refused_by_both_stages_where_it_is_huge_once_resized(crop):
    with pytest.raises(BadImage, match="resized"):
        preprocess(Image.new("RGB", (1, 5000)), 336, crop, max_megapixels=64)


def test_an_image_that_padding_makes_huge_is_refused():
    with pytest.raises(BadImage, match="padded"):
        preprocess(Image.new("RGB", (10_000, 20)), 4, crop=False, max_megapixels=64)


def test_answers_go_by_text_or_by_ids(instruct, golden_images):
    ids = instruct.answer_ids("What is it?", "a red bus")
    by_text, by_bytes = (
        score_answers(instruct, image, "What is it?", ["a red bus"])[0]
        for image in (golden_images[0], png(golden_images[0]))
    )
    [by_ids] = score_answers(instruct, golden_images[0], "What is it?", [ids])
    assert torch.equal(by_text, by_ids)
    assert torch.equal(by_text, by_bytes)
    assert ids[-1] == 2


def test_a_name_of_any_case_loads(goldens):
    for name in ("LLaVA-1.5-7B", "llava-v1.5-7b", "rlaif-v-7b"):
        assert load_model(name, str(goldens / "llava/instruct"), device="cpu").family == "llava"


def test_a_tokenizer_is_read_once_and_again_where_its_file_is_another(goldens, tmp_path):
    for name in ("llava", "llava", "omnilmm"):
        shutil.copy(goldens / name / "instruct/tokenizer.model", tmp_path)
        assert load_tokenizer(tmp_path).vocabulary == SentencePieceTokenizer(tmp_path / "tokenizer.model").vocabulary
        assert load_tokenizer(tmp_path) is load_tokenizer(tmp_path)
    # Of the same size and time, as some tools copy files.
    file, other = tmp_path / "tokenizer.model", tmp_path / "other"
    other.write_bytes(file.read_bytes().replace(b"indicating", b"indicatinG"))
    os.utime(other, ns=(file.stat().st_mtime_ns,) * 2)
    before = load_tokenizer(tmp_path).vocabulary
    other.replace(file)
    assert load_tokenizer(tmp_path).vocabulary != before


def test_an_empty_answer_is_its_end(instruct):
    """And no space in front of it, which the tokenizer would make a token of."""
    assert instruct.answer_ids("What is it?", "") == [*instruct.eos_token_ids]


def test_of_equal_conversations_an_id_stands_behind_what_they_share(instruct, golden_images):
    """What is scored behind a shared prompt is its continuations."""
    asked = Conversation.of("Is it red?", 1)
    shared, tails = instruct.shared_prompt([asked, asked], [golden_images[0]], 64)
    whole = instruct.prompt(asked, [golden_images[0]], True, 64).ids
    assert [[*shared.ids, *tail] for tail in tails] == [whole] * 2
    assert [len(tail) for tail in tails] == [1, 1]
