"""OmniLMM checkpoints: every form of weights and tokenizer, what is wrong with a broken one."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from folders import edit, replace_weights, save_as_bins, weights

from data_engine import load_model, score_answers
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.native.eva import heads_of
from data_engine.models.native.omnilmm import OmniLMM
from data_engine.models.tokenizer import load_tokenizer

TOKENIZER_FILES = ("added_tokens.json", "tokenizer_config.json", "tokenizer.json")


@pytest.fixture
def folder(goldens, tmp_path) -> Path:
    """A copy of the instruct checkpoint, to be spoilt."""
    return Path(shutil.copytree(goldens / "omnilmm/instruct", tmp_path / "model"))


def load(folder: Path, name: str | None = None):
    return load_model(name, str(folder), device="cpu", dtype="float32")


def assert_same_model(folder: Path, expected, image) -> None:
    got = load(folder)
    assert got.prompt_ids("What is it?") == expected.prompt_ids("What is it?")
    one, other = (score_answers(model, image, "What is it?", ["a red bus"])[0] for model in (got, expected))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["OmniLMM-12B", "omnilmm-12b", "RLAIF-V-12B", "rlaif-v-12b", None])
def test_a_name_of_any_case_loads_or_none(goldens, name):
    assert load(goldens / "omnilmm/reward", name).family == "omnilmm"


def test_a_name_of_the_other_family_is_refused(goldens):
    with pytest.raises(ModelError, match="of the family llava, but"):
        load(goldens / "omnilmm/instruct", "RLAIF-V-7B")


def test_pytorch_bin_shards_with_an_index(folder, omni_instruct, golden_images):
    save_as_bins(folder)
    assert_same_model(folder, omni_instruct, golden_images[0])


def test_a_key_bias_and_rotary_tables_change_nothing(folder, omni_instruct, golden_images):
    extra = {f"model.vision_tower.blocks.{i}.attn.k_bias": torch.randn(48) for i in range(3)}
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(32)
    replace_weights(folder, weights(folder) | extra)
    assert_same_model(folder, omni_instruct, golden_images[0])


@pytest.mark.parametrize("kept", TOKENIZER_FILES)
def test_image_tokens_are_found_in_any_of_the_tokenizers_files(folder, omni_instruct, golden_images, kept):
    for name in TOKENIZER_FILES:
        if name != kept:
            (folder / name).unlink()
    assert_same_model(folder, omni_instruct, golden_images[0])


def test_the_fast_tokenizer_alone_gives_the_same_ids(folder, omni_instruct):
    plain = load_tokenizer(folder)
    (folder / "tokenizer.model").unlink()
    fast = load_tokenizer(folder)
    # Special tokens beyond the vocabulary are none that a text is encoded to.
    assert (fast.vocabulary, fast.num_ids) == (plain.vocabulary, plain.num_ids)
    model = load(folder)
    for text in ("What is it?", " two  spaces ", "line\nline", "</s> <im_patch>", "图片里有什么？", ""):
        assert model.prompt_ids(text) == omni_instruct.prompt_ids(text)
        assert model.answer_ids("What?", text) == omni_instruct.answer_ids("What?", text)


@pytest.mark.parametrize("form", ["tokenizer.model", "tokenizer.json"])
def test_special_tokens_and_ids_beyond_the_vocabulary_have_no_text(folder, form):
    """A model whose table of embeddings is larger than its tokenizer may draw such an id."""
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("a red bus")
    if form == "tokenizer.json":
        (folder / "tokenizer.model").unlink()
        tokenizer = load_tokenizer(folder)
    unknown, begin, end, beyond = 0, 1, 2, 10**6
    assert tokenizer.decode([begin, unknown, *ids, beyond, end]) == tokenizer.decode(ids) == "a red bus"


def test_without_weights_ids_are_the_texts_and_words_that_they_are_to_the_model(folder, omni_instruct):
    """So given ids are written as sampled ones are."""
    side, tokenizer = OmniLMM.text_side(folder), load_tokenizer(folder)
    ids = tokenizer.encode("\n a red bus \n")
    assert side.text(ids) == omni_instruct.text(ids) == "a red bus"
    words = ["a", "bus"]
    assert side.word_ids(words) == omni_instruct.word_ids(words) != []


def test_the_pad_token_is_never_looked_at_defect_20(folder, goldens, omni_instruct, golden_images):
    """With pad </s>, which made the reference blind for the ends of turns, nothing changes."""
    for file in (goldens / "omnilmm/tokenizer_pad_eos").iterdir():
        shutil.copy(file, folder)
    assert json.loads((folder / "tokenizer_config.json").read_text())["pad_token"] == "</s>"
    assert_same_model(folder, omni_instruct, golden_images[0])


def without(folder: Path, pattern: str) -> None:
    replace_weights(folder, {name: value for name, value in weights(folder).items() if not re.search(pattern, name)})


def forget(folder: Path, token: str) -> None:
    """A tokenizer that does not know a token, whichever file is asked."""
    edit(folder / "added_tokens.json", **{token: ...})
    content = json.loads((folder / "tokenizer_config.json").read_text())
    known = {key: told for key, told in content["added_tokens_decoder"].items() if told["content"] != token}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=known)
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(folder / "tokenizer.json", added_tokens=[told for told in content["added_tokens"] if told["content"] != token])


def config(**fields: object):
    return lambda folder: edit(folder / "config.json", **fields)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (config(mm_vision_tower=...), "no mm_vision_tower"),
        (config(mm_use_im_start_end=False), "mm_use_im_start_end False; this family needs true"),
        (config(mm_use_im_start_end=...), "mm_use_im_start_end None"),
        (config(num_query=...), "num_query None; expected a positive integer"),
        (config(num_query=15), "num_query 15; the queries form a square"),
        (config(num_query=64), "pos_embed"),
        (config(image_size="large"), "image_size 'large'; expected a positive integer"),
        (config(image_size=100), "image_size 100; the patches are 14 wide"),
        (config(num_key_value_heads=...), "num_key_value_heads None"),
        (config(rms_norm_eps=...), "rms_norm_eps None"),
        (config(hidden_size=200), "hidden_size 200; the resampler's heads are 128 wide"),
        (config(mm_hidden_size=1792), "mm_hidden_size 1792; the tower's weights are 48 wide"),
        (config(vocab_size=500), "vocab_size 500, but the tokenizer beside it gives ids up to 599"),
        (config(vocab_size=601), "gives <im_start> the id 601, vocab_size is 601"),
        (config(num_hidden_layers=3), "lacks 9 weights that config.json asks for: decoder.layers.2."),
        (lambda f: without(f, "vision_tower"), "no whole vision tower, which belongs inside the checkpoint"),
        (lambda f: without(f, "vision_tower.pos_embed"), "no model.vision_tower.pos_embed"),
        (lambda f: without(f, r"blocks\.1\.norm2\.bias"), "lacks 1 weight that config.json asks for: vision.blocks.1"),
        (lambda f: without(f, "resampler.query"), "asks for: resampler.query"),
        (lambda f: replace_weights(f, weights(f) | {"model.box_head": torch.zeros(2)}), "weight model.box_head in"),
        (lambda f: forget(f, "<im_patch>"), "has no <im_patch>"),
        (lambda f: forget(f, "<im_start>"), "has no <im_start>"),
        (lambda f: forget(f, "<im_end>"), "has no <im_end>"),
        (lambda f: edit(f / "added_tokens.json", **{"<box>": 604}), "gives <box> the id 603, another file 604"),
    ],
)  # fmt: skip
def test_a_broken_checkpoint_is_an_error_that_says_what(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ModelError, match=re.escape(message)):
        load(folder)


def test_heads_are_those_of_the_published_width_and_of_the_tiny_one():
    assert [heads_of(width) for width in (1792, 48, 32, 6)] == [16, 4, 8, 1]
