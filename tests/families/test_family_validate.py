"""What `validate` tells of models of transformers, and that a run is bound to what their folders hold."""

import json
import re
import shutil

import pytest
from families import named
from runs import Pair, few

from data_engine.commands.main import main

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

# Weights of fp32 in a tiny model round to nothing; numbers kept of a token, all layers, by hand: layers that keep keys
# and values x (key heads x (key width + value width)) x 4 bytes.
KINDS = {
    "qwen2_5_vl": ("qwen2_5_vl, attention alone", 3 * 2 * (16 + 16) * 4),
    "qwen3_5": ("qwen3_5, attention and recurrent states", 1 * 2 * (16 + 16) * 4),
    "gemma3": ("gemma3, attention alone, windows", 3 * 2 * (16 + 16) * 4),
    "internvl": ("internvl, attention alone", 3 * 2 * (16 + 16) * 4),
    "mllama": ("mllama, attention alone, layers for image states", 3 * 2 * (16 + 16) * 4),
}


@pytest.fixture
def pair(checkpoints, tmp_path):
    return lambda name: Pair(checkpoints(name), tmp_path)


def told(capsys) -> list[str]:
    """The command's lines before the plan; deepspeed writes one of its own, "[date] [WARNING] ...", where it is first
    imported.
    """
    out = capsys.readouterr().out.partition("\n\nplan ")[0]
    return [line for line in out.splitlines() if not line.startswith("[")]


@pytest.mark.parametrize("name", named(KINDS))
def test_validate_tells_kind_memory_and_path(pair, tmp_path, capsys, name):
    kind, cached = KINDS[name]
    assert main(pair(name).words("validate", dataset_path=few(tmp_path), work_dir=tmp_path / "work")) == 0
    first, *models = told(capsys)
    assert first.startswith("valid: 3 questions, 4 answers each; instruct and reward model: auto and auto;")
    about = f": auto ({kind}), 0.0 GB of weights and {cached / 1e3:.1f} kB of cache a token"
    for role, line in zip(("instruct", "reward"), models, strict=True):
        assert line.startswith(f"  {role} model{about}")
        assert line.endswith("; answers share their prompt")
        assert ("kB an answer," in line) == (name == "qwen3_5")


@pytest.mark.families
def test_validate_tells_why_a_model_takes_the_plain_path(pair, tmp_path, capsys):
    assert main(pair("qwen4_exp").words("validate", dataset_path=few(tmp_path), work_dir=tmp_path / "work")) == 0
    for line in told(capsys)[1:]:
        # Its states are not seen.
        assert " model: auto (qwen4_exp), 0.0 GB of weights" in line
        assert line.endswith("plain path, each answer with a prompt of its own: its layers choose keys by an index of "
                             "their own")  # fmt: skip


def test_validate_tells_up_to_where_prompts_are_shared(pair, tmp_path, capsys):
    models = pair("internvl")
    config = json.loads((models.instruct / "config.json").read_text())
    config["text_config"]["rope_parameters"] = {
        "rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 200,
    }  # fmt: skip
    (models.instruct / "config.json").write_text(json.dumps(config))
    assert main(models.words("validate", dataset_path=few(tmp_path), work_dir=tmp_path / "work")) == 0
    _, instruct, reward = told(capsys)
    assert instruct.endswith("; answers share their prompt, up to 200 tokens")
    assert reward.endswith("; answers share their prompt")


@pytest.mark.parametrize("name", named(KINDS))
def test_validate_and_run_refuse_what_leaves_no_room_for_answers_alike(pair, tmp_path, capsys, name):
    models, dataset = pair(name), few(tmp_path, 1)
    raw = json.loads((models.instruct / "config.json").read_text())
    new = raw.get("text_config", raw)["max_position_embeddings"] - 4
    flags = {"dataset_path": dataset, "work_dir": tmp_path / "work", "max_new_tokens": new}
    assert main(models.words("validate", **flags)) == 2
    said = capsys.readouterr().err
    told = re.search(r"all of the first 1 questions .* have (\d+) tokens, .* room for (\d+) with", said)
    assert main(models.words("run", **flags)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"question too long: prompt of {told[1]} tokens, {new} to generate, room for {told[2]}" in said


def spoil_template(folder) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "helper"))


def spoil_pixels(folder) -> None:
    path = folder / "processor_config.json"
    told = json.loads(path.read_text())
    told["image_processor"]["image_mean"] = [0.4, 0.4, 0.4]
    path.write_text(json.dumps(told))


def spoil_end(folder) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [257, 65]}))


def older_layout(folder) -> None:
    """Pixels in a file of their own, as published checkpoints have them."""
    path = folder / "processor_config.json"
    told = json.loads(path.read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(told.pop("image_processor")))
    path.write_text(json.dumps(told))


def spoil_older(folder) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.4, 0.4, 0.4]}))


@pytest.mark.parametrize("older", [False, True])
def test_a_run_is_bound_to_template_and_processor_of_its_models(pair, tmp_path, capsys, older):
    models = pair("internvl")
    if older:
        older_layout(models.instruct)
    words = models.words("run", dataset_path=few(tmp_path, 2), work_dir=tmp_path / "work", stop_after_stage=0)
    assert main(words) == 0
    kept = shutil.copytree(models.instruct, tmp_path / "kept")
    for spoil in [spoil_older] if older else [spoil_template, spoil_pixels, spoil_end]:
        capsys.readouterr()
        spoil(models.instruct)
        assert main(words) == 2, spoil
        said = capsys.readouterr().err
        assert re.search(r"holds another run: instruct_model was \S+, now \S+; units of sampled_answer were co", said)
        assert "Traceback" not in said
        # As it was, and the same run again.
        shutil.rmtree(models.instruct)
        shutil.copytree(kept, models.instruct)
        assert main(words) == 0, spoil
