"""Whole runs of a pair in InternVL's own layout: real photographs, validate, two ranks that share it, other files."""

import io
import itertools
import json
import shutil
from types import SimpleNamespace

import internvl_folders
import pytest
import torch
from comparisons import TOLERANCE
from internvl_forward import Reference
from PIL import Image
from runs import SETTINGS, few, read
from safetensors.torch import load_file, save_file
from test_family_photographs import PHOTOS

from data_engine import load_model
from data_engine.commands.main import main
from data_engine.job.checkpoints import Checkpoint, kinship_warnings
from data_engine.models.auto.sizes import are_known, cache_sizes
from data_engine.models.auto.weights.loading import load_weights
from data_engine.models.checkpoints.checkpoint import content_files
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.questions.conversation import Conversation
from data_engine.sampling import vllm_engine
from data_engine.store import units

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """An InternLM2 of InternVL 2's kind, and the same a little off, as after preference training."""
    folder = tmp_path_factory.mktemp("pair")
    instruct = internvl_folders.write(folder / "instruct", "internlm2")
    reward = shutil.copytree(instruct, folder / "reward")
    generator = torch.Generator().manual_seed(5)
    weights = load_file(reward / "model.safetensors")
    moved = {name: value + 0.02 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    save_file(moved, reward / "model.safetensors", {"format": "pt"})
    return instruct, reward


def words(command: str, pair, **more: object) -> list[str]:
    flags = SETTINGS | {"instruct_model_path": pair[0], "reward_model_path": pair[1]} | more
    given = ((f"--{name}",) if value is True else (f"--{name}", str(value)) for name, value in flags.items())
    return [command, *itertools.chain.from_iterable(given)]


def test_validate_tells_what_the_pair_is(pair, tmp_path, capsys):
    assert main(words("validate", pair, dataset_path=few(tmp_path), work_dir=tmp_path / "work")) == 0
    first, *models = capsys.readouterr().out.partition("\n\nplan ")[0].splitlines()
    assert first.startswith("valid: 3 questions, 4 answers each; instruct and reward model: auto and auto;")
    # 2 layers x 2 heads of keys and of values x 16 x 4 bytes.
    told = (
        f": auto (internvl, attention alone), 0.0 GB of weights and {2 * 2 * 2 * 16 * 4 / 1e3:.1f} kB of cache a token"
    )
    assert [line.startswith(f"  {role} model{told}") for role, line in zip(("instruct", "reward"), models, strict=True)]
    assert all(line.endswith("; answers share their prompt") for line in models)


def test_what_layers_keep_is_seen_though_the_rotary_table_grows_with_the_prompt(pair, tmp_path):
    """Such a table, InternVL 2's to 3's, asks for the largest position, which no device without numbers has."""
    for folder in (pair[0], internvl_folders.write(tmp_path / "phi3", "phi3")):
        assert are_known(folder)
        assert cache_sizes(folder) == (2 * 2 * 2 * 16, 0, 0)


@pytest.fixture(scope="module")
def finished(pair, tmp_path_factory):
    if not PHOTOS.exists():
        pytest.skip("../shared/photos is not here: no photographs")
    work = tmp_path_factory.mktemp("run") / "work"
    assert main(words("run", pair, dataset_path=PHOTOS, work_dir=work, unit_size=8, require_fast=True)) == 0
    return work


@pytest.mark.families
def test_photographs_become_a_dataset_on_the_fast_path(finished):
    photographs = {row["idx"]: row for row in read(PHOTOS.parent)}
    sampled = read(finished / "sampled_answer")
    assert {(row["idx"], row["sample_index"]) for row in sampled} == {(idx, n) for idx in photographs for n in range(4)}
    assert not list(units.left_out(finished))
    dataset = read(finished / "dataset")
    assert len(dataset) > 10
    for row in dataset:
        assert row["image"]["bytes"] == photographs[row["idx"]]["image"]["bytes"]
    for role in ("instruct", "reward"):
        [file] = (finished / "paths").glob(f"{role}-*.json")
        assert json.loads(file.read_text())["why_plain"] is None


@pytest.mark.families
@pytest.mark.parametrize("role", ["instruct", "reward"])
def test_log_probs_of_the_run_are_those_of_the_plain_formulas(finished, pair, role):
    """Of the first, a middle and the last photograph."""
    folder = pair[role == "reward"]
    model = load_model(None, str(folder), device="cpu", dtype="float32")
    reference = Reference(json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"))
    image_id = json.loads((folder / "added_tokens.json").read_text())["<IMG_CONTEXT>"]
    answers = {(row["idx"], row["sample_index"]): row["token_ids"] for row in read(finished / "sampled_answer")}
    scored = {(row["idx"], row["sample_index"]): row["token_logps"] for row in read(finished / f"{role}_logps")}
    rows = read(PHOTOS.parent)
    for row in (rows[0], rows[13], rows[-1]):
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        inputs = model.prompt(Conversation.of(row["question"]), [image], crop=False, max_megapixels=64).inputs
        prompt, answer = inputs["input_ids"][0], torch.tensor(answers[row["idx"], 2])
        logits = reference.logits(torch.cat([prompt, answer]), inputs["pixel_values"], image_id)[len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, answer[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(scored[row["idx"], 2]).double(), expected, atol=TOLERANCE, rtol=0)


def test_shards_and_a_bin_give_the_same_weights(pair, tmp_path):
    expected = load_weights(pair[0], CPU, torch.float32).state_dict()
    stored = load_file(pair[0] / "model.safetensors")
    names = sorted(stored)
    for kind in ("safetensors", "bin"):
        folder = shutil.copytree(pair[0], tmp_path / kind)
        (folder / "model.safetensors").unlink()
        if kind == "bin":
            torch.save(stored, folder / "pytorch_model.bin")
        else:
            shards = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
            for file, held in shards.items():
                save_file({name: stored[name] for name in held}, folder / file)
            index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        found = load_weights(folder, CPU, torch.float32).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_are_held_once_in_the_dtype_of_the_run(pair):
    models = [load_weights(pair[0], CPU, dtype) for dtype in (torch.bfloat16, torch.float32)]
    for model, dtype in zip(models, (torch.bfloat16, torch.float32), strict=True):
        parameters = list(model.parameters())
        assert {one.dtype for one in parameters} == {dtype}
        # Parts of a packed weight do not keep the whole of it.
        held = sum(one.untyped_storage().nbytes() for one in parameters)
        assert held == dtype.itemsize * sum(one.numel() for one in parameters)
        assert not model.training
    tables = [dict(one.named_buffers()) for one in models]
    assert tables[0].keys() == tables[1].keys()
    assert all(torch.equal(tables[0][name], tables[1][name]) for name in tables[0])


def test_a_run_is_bound_to_the_folders_chat_format(pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "model")
    (folder / "conversation.py").unlink()
    before = content_files(folder)
    (folder / "conversation.py").write_text("")
    (folder / "modeling_internvl_chat.py").write_text("")
    assert set(content_files(folder)) - set(before) == {folder / "conversation.py"}


def test_sizes_and_chat_formats_of_two_checkpoints_are_compared(pair, tmp_path):
    instruct = Checkpoint.find(str(pair[0]))
    assert instruct.sizes == {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": instruct.sizes["vocab_size"]}
    assert not kinship_warnings(instruct, Checkpoint.find(str(pair[1])))
    assert instruct.encodes_as(Checkpoint.find(str(pair[1])))
    other = shutil.copytree(pair[0], tmp_path / "other")
    internvl_folders.change(other, template="internvl2_5", llm_config__hidden_size=128)
    changed = Checkpoint.find(str(other))
    assert not instruct.encodes_as(changed)
    assert "hidden_size 64 against 128" in kinship_warnings(instruct, changed)[0]


def test_vllm_which_would_run_remote_code_is_refused(pair, monkeypatch):
    monkeypatch.setattr(vllm_engine, "load_vllm", lambda: SimpleNamespace(__version__="0.32.0"))
    with pytest.raises(ModelError, match=r"InternVL's own layout \(internvl_chat\), which vLLM reads by the code that"):
        vllm_engine.require_usable(pair[0], {}, "cpu")
