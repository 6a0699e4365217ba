"""Checkpoints in every published form, whole and broken."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import edit, replace_weights, save_as_bins, weights
from prompts import prefix
from safetensors.torch import load_file

from data_engine import load_model, score_answers
from data_engine.models.checkpoints.checkpoint import content_files, fingerprint
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.store.file_hashes import hash_files


@pytest.fixture
def folder(goldens, tmp_path) -> Path:
    """A copy of the instruct checkpoint with CLIP beside it; config.json may be edited."""
    shutil.copytree(goldens / "llava/instruct", tmp_path / "model")
    shutil.copytree(goldens / "llava/openai", tmp_path / "openai")
    return tmp_path / "model"


def clip(goldens: Path) -> dict[str, torch.Tensor]:
    return load_file(goldens / "llava/openai/clip-vit-large-patch14-336/model.safetensors")


def load(folder: Path, name: str | None = None):
    return load_model(name, str(folder), device="cpu", dtype="float32")


def assert_same_model(folder: Path, instruct, image) -> None:
    [expected] = score_answers(instruct, image, "What is it?", ["a red bus"])
    [got] = score_answers(load(folder), image, "What is it?", ["a red bus"])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_pytorch_bin_shards_with_an_index(folder, instruct, golden_images):
    save_as_bins(folder)
    assert_same_model(folder, instruct, golden_images[0])


def test_every_file_of_which_a_number_may_depend_is_in_the_fingerprint(folder):
    """By the names that transformers writes and reads, in folders of any family."""
    shaping = (
        "config.json", "generation_config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json",
        "spiece.model", "sentencepiece.bpe.model", "qwen.tiktoken", "added_tokens.json", "special_tokens_map.json",
        "vocab.json", "vocab.txt", "merges.txt", "preprocessor_config.json", "processor_config.json",
        "video_preprocessor_config.json", "chat_template.json", "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja", "conversation.py", "value_head.safetensors",
    )  # fmt: skip
    (folder / "additional_chat_templates").mkdir()
    for name in (*shaping, "README.md", "training_args.bin", "trainer_state.json", ".gitattributes"):
        (folder / name).touch()
    weights = [file.name for file in folder.glob("model*.safetensors")]
    assert {str(file.relative_to(folder)) for file in content_files(folder)} == {*shaping, *weights}
    # A file by another name is read in another way.
    before = fingerprint([folder], hash_files)
    (folder / "chat_template.jinja").rename(folder / "chat_template.jinja2")
    assert fingerprint([folder], hash_files) != before


def test_a_bin_file_that_would_run_code_is_refused(folder):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    for file in folder.glob("model*"):
        file.unlink()
    torch.save({"lm_head.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="weights_only"):
        load(folder)


@pytest.mark.parametrize(
    "prefixes", [("language_model.model.", "language_model.", ""), ("model.language_model.", "", "model.")]
)
def test_the_layout_of_transformers_old_and_new(folder, goldens, instruct, golden_images, prefixes):
    decoder, head, rest = prefixes
    tensors = {}
    for name, value in weights(folder).items():
        projector = re.fullmatch(r"model\.mm_projector\.([02])\.(.*)", name)
        if projector:
            tensors[f"{rest}multi_modal_projector.linear_{1 + int(projector[1]) // 2}.{projector[2]}"] = value
        elif name == "lm_head.weight":
            tensors[f"{head}lm_head.weight"] = value
        else:
            tensors[decoder + name.removeprefix("model.")] = value
    tower = {name: value for name, value in clip(goldens).items() if name.startswith("vision_model.")}
    # transformers 5.23 saves the tower without its inner level, older ones and the published files with it.
    level = "vision_model." if rest == "" else ""
    tensors |= {
        f"{rest}vision_tower.{level}{name.removeprefix('vision_model.')}": value for name, value in tower.items()
    }
    replace_weights(folder, tensors)
    old = json.loads((folder / "config.json").read_text())
    text = {key: old[key] for key in old if not key.startswith(("mm_", "tune_", "model_type", "image_aspect"))}
    vision = json.loads((goldens / "llava/openai/clip-vit-large-patch14-336/config.json").read_text())["vision_config"]
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llava",
                "text_config": text | {"model_type": "llama"},
                "vision_config": vision,
                "vision_feature_layer": -2,
                "vision_feature_select_strategy": "default",
                "image_token_index": 999,
            }
        )
    )
    assert_same_model(folder, instruct, golden_images[0])


@pytest.mark.parametrize("old_names", [True, False])
def test_what_transformers_itself_saves_loads_and_scores_alike(folder, tmp_path, golden_images, old_names):
    """The second formula: LlavaForConditionalGeneration, run by transformers, on the very same file."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
    tower = CLIPVisionConfig(hidden_size=32, intermediate_size=48, image_size=56, patch_size=14, **layers)
    text = LlamaConfig(vocab_size=1002, hidden_size=48, intermediate_size=64, num_key_value_heads=2, **layers)
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=1000)
    theirs = LlavaForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path / "saved", save_original_format=old_names)
    names = tensor_names(tmp_path / "saved")
    assert ("language_model.lm_head.weight" in names) == old_names
    assert not any("vision_model." in name for name in names)
    shutil.copy(folder / "tokenizer.model", tmp_path / "saved")
    ours = load(tmp_path / "saved")
    pixels, answer = ours.pixels(golden_images[0], True, 64), ours.answer_ids("What is it?", "a red bus")
    prompt = ours.prompt_ids("What is it?")
    at = prompt.index(-200)
    ids = torch.tensor([[*prompt[:at], *[1000] * 16, *prompt[at + 1 :], *answer]])
    with torch.inference_mode():
        logits = theirs(input_ids=ids, pixel_values=pixels[None]).logits[0]
    expected = logits.log_softmax(-1)[-len(answer) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])[:, 0]
    [got] = score_answers(ours, golden_images[0], "What is it?", [answer])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert len(prefix(ours, pixels, "What is it?")) == len(prompt) + 15


def tensor_names(folder: Path) -> set[str]:
    return set(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("old_names", [True, False])
@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPModel", "CLIPVisionModelWithProjection"])
def test_a_tower_that_transformers_itself_saves_loads_and_sees_alike(folder, instruct, golden_images, kind, old_names):
    """The published tower, read and saved again by each of transformers' classes that have it."""
    import transformers

    tower = folder.parent / "openai/clip-vit-large-patch14-336"
    theirs = getattr(transformers, kind).from_pretrained(tower)
    shutil.rmtree(tower)
    theirs.save_pretrained(tower, save_original_format=old_names)
    # transformers 5.23 saves the tower alone without the level above, unless it was read with it.
    flat = kind == "CLIPVisionModel" and not old_names
    assert ("embeddings.class_embedding" in tensor_names(tower)) == flat
    assert_same_model(folder, instruct, golden_images[0])


def test_the_flat_names_of_a_tower_are_no_weights_of_a_checkpoint(folder, goldens):
    flat = {name.removeprefix("vision_model."): value for name, value in clip(goldens).items()}
    name = "embeddings.class_embedding"
    replace_weights(folder, weights(folder) | {name: flat[name]})
    with pytest.raises(ModelError, match=r"unexpected weight embeddings\.class_embedding"):
        load(folder)


def test_clip_inside_the_checkpoint_is_used_before_the_folder(folder, goldens, instruct, golden_images):
    inside = {f"model.vision_tower.vision_tower.{n}": v * 1.5 for n, v in clip(goldens).items() if "vision_model" in n}
    replace_weights(folder, weights(folder) | inside)
    [plain] = score_answers(instruct, golden_images[0], "What is it?", ["a red bus"])
    [got] = score_answers(load(folder), golden_images[0], "What is it?", ["a red bus"])
    assert not torch.allclose(got, plain, atol=1e-2)


@pytest.mark.parametrize("place", ["openai/clip-vit-large-patch14-336", "clip-vit-large-patch14-336"])
@pytest.mark.parametrize("inside", [True, False])
def test_the_tower_is_found_in_the_checkpoint_and_beside_it(folder, instruct, golden_images, place, inside):
    target = (folder if inside else folder.parent) / place
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder.parent / "openai/clip-vit-large-patch14-336", folder.parent / "moved")
    shutil.move(folder.parent / "moved", target)
    assert_same_model(folder, instruct, golden_images[0])


def test_the_tower_may_be_an_absolute_path(folder, instruct, golden_images, tmp_path):
    shutil.move(tmp_path / "openai/clip-vit-large-patch14-336", tmp_path / "elsewhere")
    edit(folder / "config.json", mm_vision_tower=str(tmp_path / "elsewhere"))
    assert_same_model(folder, instruct, golden_images[0])


def test_the_tower_is_never_looked_up_from_the_working_directory_defect_35(folder, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    shutil.move(tmp_path / "openai", work / "openai")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="no CLIP tower"):
        load(folder)


@pytest.mark.slow
def test_the_known_tower_needs_no_folder_where_the_weights_are_inside(folder, tmp_path):
    """A full-size CLIP of zeros inside the checkpoint, and no folder to read its configuration from."""
    from transformers import CLIPVisionModel

    from data_engine.models.native.llava_config import KNOWN_TOWERS

    shutil.rmtree(tmp_path / "openai")
    with torch.device("meta"):
        known = CLIPVisionModel(KNOWN_TOWERS["clip-vit-large-patch14-336"])
    level = "model.vision_tower.vision_tower.vision_model."
    tower = {
        level + name.removeprefix("vision_model."): torch.zeros(value.shape, dtype=torch.float16)
        for name, value in known.named_parameters()
    }
    tensors = weights(folder) | tower
    tensors["model.mm_projector.0.weight"] = torch.zeros(64, 1024)
    replace_weights(folder, tensors)
    assert load(folder).image_tokens == 576


def test_known_leftovers_are_ignored(folder, instruct, golden_images):
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(8) for i in range(2)}
    replace_weights(folder, weights(folder) | old)
    assert_same_model(folder, instruct, golden_images[0])


def test_an_unexpected_weight_is_named(folder):
    replace_weights(folder, weights(folder) | {"model.layers.7.mlp.up_proj.weight": torch.zeros(2, 2)})
    with pytest.raises(ModelError, match=r"unexpected weight model\.layers\.7\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_missing_weight_is_named(folder):
    tensors = weights(folder)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    replace_weights(folder, tensors)
    with pytest.raises(ModelError, match=r"lacks 1 weight .* decoder\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_weight_of_another_shape_is_named(folder):
    replace_weights(folder, weights(folder) | {"lm_head.weight": torch.zeros(7, 64)})
    with pytest.raises(ModelError, match=r"lm_head\.weight .* \[7, 64\], config\.json makes it \[1000, 64\]"):
        load(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "missing: model-00002-of-00002.safetensors"),
        (lambda f: [file.unlink() for file in f.glob("model*")], "has no weights"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "tokenizer.model").unlink(), "neither tokenizer.model nor tokenizer.json"),
        (lambda f: (f / "tokenizer.model").write_bytes(b"no"), "not a SentencePiece model"),
        (lambda f: (f / "model-00001-of-00002.safetensors").write_bytes(b"cut"), "not a whole safetensors file"),
        (lambda f: edit(f / "config.json", model_type="bert"), "model_type 'bert', which is a text-only model"),
        (lambda f: edit(f / "config.json", mm_projector_type="linear"), "mm_projector_type 'linear'"),
        (lambda f: edit(f / "config.json", image_aspect_ratio="anyres"), "'anyres': LLaVA-1.6 in its own layout"),
        (lambda f: edit(f / "config.json", mm_vision_tower=...), "no mm_vision_tower"),
        (lambda f: edit(f / "config.json", mm_vision_select_layer=-9), "selects vision layer -9"),
        (lambda f: edit(f / "config.json", mm_use_im_patch_token=True), "mm_use_im_patch_token True"),
    ],
)  # fmt: skip
def test_a_broken_checkpoint_is_an_error_that_says_what(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ModelError, match=re.escape(message)):
        load(folder)


def test_a_name_that_contradicts_or_is_unknown_is_an_error_defect_27(folder):
    with pytest.raises(ModelError, match=r"unknown model name 'llama'; known: llava-1\.5-7b"):
        load(folder, "llama")
    with pytest.raises(ModelError, match="family omnilmm, but"):
        load(folder, "OmniLMM-12B")


MEASURE = """
import sys, torch
from data_engine import load_model
import data_engine.models.native.llava
def anonymous(what="RssAnon"):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(what)) * 1024
import threading, time
before, peak, done = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous()); time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
model = load_model(None, sys.argv[1], device="cpu", dtype=sys.argv[2])
peak = max(peak, anonymous()); done.set(); thread.join()
weights = sum(p.numel() * p.element_size() for p in model._modules.parameters())
print((peak - before) / weights)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [(torch.float16, "float32"), (torch.bfloat16, "bfloat16")],
)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_loading_holds_the_weights_once(folder, goldens, stored, dtype, form):
    """Peak anonymous memory in a process of its own, on a checkpoint of about 200 MB with layers of realistic share."""
    from transformers import LlamaConfig, LlamaModel

    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 24, "vocab_size": 4000}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 8}
    edit(folder / "config.json", **sizes)
    with torch.device("meta"):
        decoder = LlamaModel(LlamaConfig(**sizes))
    shapes = {f"model.{name}": value.shape for name, value in decoder.named_parameters()}
    shapes |= {"lm_head.weight": (4000, 512)}
    shapes |= {"model.mm_projector.0.weight": (512, 32), "model.mm_projector.0.bias": (512,)}
    shapes |= {"model.mm_projector.2.weight": (512, 512), "model.mm_projector.2.bias": (512,)}
    tensors = {name: torch.ones(shape, dtype=stored) for name, shape in shapes.items()}
    replace_weights(folder, tensors)
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    del tensors
    command = [sys.executable, "-c", MEASURE, str(folder), dtype]
    ratio = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"peak anonymous memory: {ratio:.2f} times the weights")
    assert 0.9 < ratio <= 1.2
