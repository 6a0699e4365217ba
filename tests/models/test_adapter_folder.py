"""An adapter and its base laid together: whose files are read, where the base is looked for, what binds the two."""

import json
import shutil
from pathlib import Path

import adapters
import pytest
import torch
from folders import edit, weights
from refusals import told
from transformers.models.auto.image_processing_auto import get_image_processor_config

from data_engine import load_model
from data_engine.config import RunConfig
from data_engine.job.checkpoints import Checkpoint
from data_engine.models import roles
from data_engine.models.checkpoints import adapter_folder
from data_engine.models.checkpoints.adapter_folder import laid_together, model_folder, parts
from data_engine.store.file_hashes import hash_files

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def base(goldens, tmp_path) -> Path:
    (tmp_path / "openai").symlink_to(goldens / "llava/openai")
    return Path(shutil.copytree(goldens / "llava/reward", tmp_path / "base"))


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    return adapters.write(tmp_path / "adapter", base, adapters.stored(adapters.matrices({Q: weights(base)[Q]})))


@pytest.mark.parametrize(
    ("own", "theirs", "read"),
    [
        # A vocabulary takes the whole tokenizer's place: of two tokenizers, half of each is none.
        ("tokenizer.json", "tokenizer.model added_tokens.json config.json", "a/tokenizer.json b/config.json"),
        ("tokenizer.model tokenizer_config.json", "tokenizer.json vocab.json merges.txt",
         "a/tokenizer.model a/tokenizer_config.json"),
        ("tokenizer_config.json", "tokenizer.model tokenizer_config.json", "a/tokenizer_config.json b/tokenizer.model"),
        # transformers takes the .jinja where both are there.
        ("chat_template.json", "chat_template.jinja", "a/chat_template.json"),
        ("processor_config.json", "preprocessor_config.json", "a/processor_config.json b/preprocessor_config.json"),
        ("preprocessor_config.json", "preprocessor_config.json", "a/preprocessor_config.json"),
        ("conversation.py", "conversation.py config.json", "a/conversation.py b/config.json"),
        # Neither how texts nor how pictures are read.
        ("README.md training_args.bin config.json", "config.json generation_config.json",
         "b/config.json b/generation_config.json"),
    ],
)  # fmt: skip
def test_tokenizer_processor_and_template_of_the_adapter_win(tmp_path, own, theirs, read):
    """a is the adapter, b its base."""
    for folder, names in ((tmp_path / "a", own), (tmp_path / "b", theirs)):
        folder.mkdir()
        for name in names.split():
            (folder / name).write_text("")
    folder = laid_together(tmp_path / "a", tmp_path / "b")
    files = [one.resolve() for one in folder.iterdir() if not one.name.startswith(".")]
    assert sorted(str(file.relative_to(tmp_path)) for file in files) == sorted(read.split())


@pytest.mark.parametrize("newer", [True, False], ids=["of release 5", "of release 4"])
def test_pixels_are_made_by_the_adapters_processor_whichever_release_saved_the_base(tmp_path, newer):
    """Release 4 wrote what makes pixels into preprocessor_config.json, and the processor's own settings beside it."""
    for name in "ab":
        (tmp_path / name).mkdir()
    own = {"patch_size": 14} | ({"image_processor": {"size": {"shortest_edge": 56}}} if newer else {})
    (tmp_path / "b/processor_config.json").write_text(json.dumps(own))
    (tmp_path / "a/preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 28}}))
    folder = laid_together(tmp_path / "a", tmp_path / "b")
    assert get_image_processor_config(folder)["size"] == {"shortest_edge": 28}
    # Settings of the processor that are in no file of the adapter stay those of the base, without which none is made.
    assert json.loads((folder / "processor_config.json").read_text()) == {"patch_size": 14}
    assert json.loads((tmp_path / "b/processor_config.json").read_text()) == own


def test_an_adapter_with_both_files_of_a_processor_is_read_as_transformers_reads_it(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        own = {"image_processor": {"size": {"shortest_edge": 42 if name == "a" else 56}}}
        (tmp_path / name / "processor_config.json").write_text(json.dumps(own))
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 28}}))
    alone = get_image_processor_config(tmp_path / "a")
    assert get_image_processor_config(laid_together(tmp_path / "a", tmp_path / "b")) == alone
    assert alone["size"] == {"shortest_edge": 42}


def test_a_message_about_a_file_of_the_links_names_that_of_the_adapter_or_of_its_base(tmp_path):
    for name in "ab":
        (tmp_path / name / "additional_chat_templates").mkdir(parents=True)
        (tmp_path / name / "additional_chat_templates/tool.jinja").touch()
    (tmp_path / "b/config.json").touch()
    folder = laid_together(tmp_path / "a", tmp_path / "b")
    told = adapter_folder.with_real_places(
        f"{folder}/additional_chat_templates/tool.jinja: of {folder}/config.json, and of none in {folder}"
    )
    a, b = tmp_path / "a", tmp_path / "b"
    assert (
        told == f"{a}/additional_chat_templates/tool.jinja: of {b}/config.json, and of none in {a} (an adapter of {b})"
    )


def test_peft_where_it_is_installed_finds_nothing_to_merge_once_more(adapter, base):
    folder = model_folder(str(adapter))
    assert not (folder / "adapter_config.json").exists()
    assert parts(folder) == (adapter, base)
    # As a run hands it on.
    assert model_folder(str(folder)) == folder


def test_a_tokenizer_that_grew_with_the_adapter_is_the_models(adapter, base):
    shutil.copy(base / "tokenizer.model", adapter)
    raw = json.loads((base / "tokenizer_config.json").read_text())
    raw["added_tokens_decoder"] = {"999": {"content": "<new>", "special": True}}
    (adapter / "tokenizer_config.json").write_text(json.dumps(raw))
    assert "<new>" in Checkpoint.find(str(adapter)).control_tokens
    assert "<new>" not in Checkpoint.find(str(base)).control_tokens


def test_the_clip_tower_of_the_original_layout_is_looked_for_beside_the_base(goldens, tmp_path):
    base = goldens / "llava/instruct"
    adapter = adapters.write(tmp_path / "adapter", base, adapters.stored(adapters.matrices({Q: weights(base)[Q]})))
    found = Checkpoint.find(str(adapter))
    assert found.folders[1:] == (goldens / "llava/openai/clip-vit-large-patch14-336",)
    assert load_model(None, str(adapter), device="cpu").family == "llava"


def test_the_revision_of_the_base_is_taken(adapter, base, monkeypatch):
    asked = []

    def resolve(path, revision=None):
        asked.append((path, revision))
        return base if path == "org/base" else Path(path)

    monkeypatch.setattr(adapter_folder, "resolve", resolve)
    monkeypatch.setattr(adapter_folder, "fetch", resolve)
    edit(adapter / "adapter_config.json", base_model_name_or_path="org/base", revision="v2")
    model_folder(str(adapter), "main")
    model_folder(str(adapter), None, "org/base")
    # A revision of one repository means nothing in another place.
    model_folder(str(adapter), None, str(base))
    assert asked == [
        (str(adapter), "main"), ("org/base", "v2"), (str(adapter), None), ("org/base", "v2"),
        (str(adapter), None), (str(base), None),
    ]  # fmt: skip


def test_a_base_that_is_named_by_a_hub_id_is_fetched_whatever_folders_are_here(adapter, base, monkeypatch):
    monkeypatch.setattr(adapter_folder, "fetch", lambda *asked: {("org/base", None): base}[asked])
    edit(adapter / "adapter_config.json", base_model_name_or_path="org/base")
    monkeypatch.chdir(adapter)
    (adapter / "org").mkdir()
    assert parts(model_folder(str(adapter))) == (adapter, base)
    # A folder of the whole name is meant where it is there.
    other = Path(shutil.copytree(base, adapter / "org/base"))
    assert parts(model_folder(str(adapter))) == (adapter, other)


@pytest.mark.parametrize("role", ["instruct", "reward"])
def test_a_base_that_lies_elsewhere_is_named_by_its_flag(adapter, base, role):
    edit(adapter / "adapter_config.json", base_model_name_or_path="/data/of/another/machine")
    config = RunConfig(
        instruct_model_path=str(adapter),
        reward_model_path=str(adapter),
        dataset_path="q",
        work_dir="w",
        **{f"{role}_base_model_path": str(base)},
    )
    assert parts(roles.folder_of(config, role)) == (adapter, base)
    assert load_model(None, str(adapter), device="cpu", base_path=str(base)).family == "llava"
    other = "reward" if role == "instruct" else "instruct"
    assert f"by --{other}_base_model_path" in told(lambda: roles.folder_of(config, other))


def read_header_of(folder: Path) -> bytes:
    content = (folder / "adapter_model.safetensors").read_bytes()
    return content[: 8 + int.from_bytes(content[:8], "little")]


def fingerprint(adapter: Path) -> str:
    return Checkpoint.find(str(adapter)).fingerprint(hash_files)


def test_base_and_adapter_are_both_in_the_fingerprint(adapter, base, tmp_path):
    whole = fingerprint(adapter)
    assert whole != fingerprint(base)
    moved = shutil.copytree(adapter, tmp_path / "moved")
    assert fingerprint(moved) == whole
    # Other numbers in the same names and shapes.
    pair = adapters.matrices({Q: weights(base)[Q]}, seed=1)
    other = adapters.write(tmp_path / "other", base, adapters.stored(pair))
    assert read_header_of(other) == read_header_of(adapter)
    assert fingerprint(other) != whole
    edit(moved / "adapter_config.json", lora_alpha=6)
    assert fingerprint(moved) != whole
    adapter_folder.laid_together.cache_clear()
    torch.save({"base_model.model.model.norm.weight": torch.ones(64)}, adapter / "non_lora_trainables.bin")
    assert fingerprint(adapter) != whole
    (adapter / "non_lora_trainables.bin").unlink()
    assert fingerprint(adapter) == whole
    (base / "generation_config.json").write_text("{}")
    assert fingerprint(adapter) != whole


def test_run_json_has_the_folders_that_a_person_knows(adapter, base):
    told = Checkpoint.find(str(adapter)).as_json()
    assert told["folders"] == [str(base)]
    assert told["adapter"] == str(adapter)
    assert parts(adapter_folder.reopened(told)) == (adapter, base)
    assert "adapter" not in Checkpoint.find(str(base)).as_json()
