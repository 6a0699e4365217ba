"""Whole runs on adapters: the bytes of a run on the same models merged by hand, what binds them, who tells of them."""

import json
import re
import shutil
from pathlib import Path

import adapters
import pytest
from bound_run import Run
from run_files import read
from safetensors.torch import load_file, save_file

from data_engine.commands.main import main
from data_engine.job import model_holder
from data_engine.models.checkpoints.json_files import ModelError

KINDS = {"instruct": "v_proj", "reward": "q_proj"}


def merged(base: Path, folder: Path, pairs: dict) -> Path:
    """A copy of a checkpoint of one file, in fp32, with matrices added."""
    shutil.copytree(base, folder)
    tensors = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    tensors |= {name: adapters.added(tensors[name], *pair) for name, pair in pairs.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def of_kind(base: Path, kind: str, seed: int = 0) -> dict:
    """Matrices for each weight of a kind, the tower's too."""
    found = load_file(base / "model.safetensors")
    return adapters.matrices({name: value for name, value in found.items() if f"{kind}.weight" in name}, seed=seed)


@pytest.fixture(scope="module")
def places(tmp_path_factory, one_thread):
    """A run's questions, a base, an adapter of it for each role, and each of the two merged by hand."""
    run = Run(tmp_path_factory.mktemp("adapters") / "run").make()
    base = Path(shutil.move(run.folder / "reward", run.folder / "base"))
    shutil.rmtree(run.folder / "instruct")
    for role, kind in KINDS.items():
        pairs = of_kind(base, kind)
        adapters.write(run.folder / role, base, adapters.stored(pairs))
        merged(base, run.folder / f"{role}-merged", pairs)
    return run


@pytest.fixture(scope="module")
def finished(places):
    assert places.start() == 0
    return places


def flags(run: Run, **more: object) -> list[str]:
    named = {f"{role}_model_path": run.folder / role for role in KINDS}
    named |= {"dataset_path": run.folder / "questions.parquet", "image_root": run.folder / "pictures"}
    named |= {"work_dir": run.work, "device": "cpu"} | more
    return [f"--{name}={value}" for name, value in named.items()]


def test_the_dataset_is_that_of_the_models_merged_by_hand(finished, tmp_path):
    whole = finished.copy(tmp_path / "whole")
    shutil.rmtree(whole.work)
    merged = {f"{role}_model_path": str(whole.folder / f"{role}-merged") for role in KINDS}
    assert whole.start(**merged) == 0
    for stage in ("sampled_answer", "instruct_logps", "reward_logps", "pairs"):
        assert read(whole.work / stage) == read(finished.work / stage), stage
    [ours], [theirs] = (list((one.work / "dataset").iterdir()) for one in (finished, whole))
    assert ours.read_bytes() == theirs.read_bytes()
    # The two adapters make two models of one base.
    rewards = [abs(row["chosen_sum"] - row["rejected_sum"]) for row in read(finished.work / "pairs")]
    assert max(rewards) > 1e-3


@pytest.mark.parametrize("role", KINDS)
def test_another_adapter_with_the_same_header_is_another_run(run, role):
    folder = run.folder / role
    base = Path(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    adapters.write(folder, base, adapters.stored(of_kind(base, KINDS[role], seed=1)))
    assert re.search(rf"{role}_model was \w{{12}}, now \w{{12}}", run.refusal())


def test_another_base_beneath_the_same_adapter_is_another_run(run):
    other = run.folder / "other"
    shutil.copytree(run.folder / "base", other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.01
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    refusal = run.refusal(reward_base_model_path=str(other))
    assert re.search(r"reward_model was \w{12}, now \w{12}; units of reward_logps", refusal)


def test_base_and_adapter_may_lie_elsewhere_by_now(run):
    """The base's path, in the adapter's file, is one of another place then; the flag says where it is."""
    moved = shutil.copytree(run.folder / "base", run.folder / "moved-base")
    shutil.move(run.folder / "reward", run.folder / "moved")
    named = {"reward_model_path": str(run.folder / "moved"), "reward_base_model_path": str(moved)}
    assert not run.computed_again(**named)
    told = json.loads((run.work / "run.json").read_text())
    assert told["config"]["reward_base_model_path"] == str(moved)
    assert told["models"]["reward"]["folders"] == [str(moved)]
    assert told["models"]["reward"]["adapter"] == str(run.folder / "moved")


def test_validate_status_and_report_tell_of_both(finished, capsys):
    base = finished.folder / "base"
    assert main(["validate", *flags(finished, work_dir=finished.folder / "another")]) == 0
    _, instruct, reward = capsys.readouterr().out.partition("\n\nplan ")[0].splitlines()
    for role, line in (("instruct", instruct), ("reward", reward)):
        assert line.startswith(f"  {role} model: llava (")
        assert f"; the adapter {finished.folder / role}, merged into its base {base}; answers share" in line
    assert main(["status", str(finished.work)]) == 0
    told = capsys.readouterr().out
    page = (finished.work / "report/index.html").read_text()
    for role in KINDS:
        sentence = f"{role} model: the adapter {finished.folder / role}, merged into {base}"
        assert f"\n{sentence}\n" in told
        assert f"<p>{sentence}</p>" in page


def test_the_card_has_both_and_no_folder_of_this_machine(finished, tmp_path, capsys):
    assert main(["export", str(finished.work), "--format", "trl", "--output", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out/trl/README.md").read_text()
    rows = re.findall(r"^\| (.*) \|$", card.partition("## Models")[2].partition("\n## ")[0], re.MULTILINE)
    cells = [row.split(" | ") for row in rows[2:]]
    hashes = json.loads((finished.work / "run.json").read_text())["bound"]
    assert cells == [
        ["instruct, an adapter", "instruct", "local folder", "llava", hashes["instruct_model"]],
        ["base of instruct", "base", "local folder", "llava", ""],
        ["reward, an adapter", "reward", "local folder", "llava", hashes["reward_model"]],
        ["base of reward", "base", "local folder", "llava", ""],
    ]
    assert str(finished.folder) not in card


def test_the_card_names_an_adapter_and_a_base_of_the_hub_whole(finished, tmp_path):
    from data_engine.exports import card

    found = json.loads((finished.work / "run.json").read_text())
    cached = "/c/hub/models--{}--{}/snapshots/" + "0123456789" * 4
    found["models"]["reward"] |= {"folders": [cached.format("org", "base")], "adapter": cached.format("me", "lora")}
    found["config"] |= {"reward_model_path": "me/lora", "reward_base_model_path": "/data/base"}
    models, command = card._models(found), card.command_line(found, {})
    assert "| reward, an adapter | [me/lora](https://huggingface.co/me/lora) | " in models
    assert "| base of reward | [org/base](https://huggingface.co/org/base) | " in models
    assert "--reward_model_path me/lora" in command
    assert "--reward_base_model_path org/base" in command


def test_an_export_with_reference_log_probs_reads_the_tokenizer_of_both(finished, tmp_path, capsys):
    command = ["export", str(finished.work), "--format", "rlaif-v-logps", "--output", str(tmp_path / "out")]
    assert main(command) == 2
    # The tokenizer is there; answers this short are cut off, which the trainer cannot take.
    assert "the format rlaif-v-logps has no row (5 rows: an answer ended at max_new_tokens" in capsys.readouterr().err
    # As if the base had moved since.
    gone = finished.copy(tmp_path / "gone")
    told = json.loads((gone.work / "run.json").read_text())
    told["models"]["instruct"]["folders"] = ["/data/gone"]
    (gone.work / "run.json").write_text(json.dumps(told))
    assert main(["export", str(gone.work), *command[2:-1], str(tmp_path / "other")]) == 2
    assert "the tokenizer of the instruct model: /data/gone is no folder any more" in capsys.readouterr().err


@pytest.mark.parametrize("role", KINDS)
def test_what_fails_while_a_model_is_loaded_names_its_flag(run, monkeypatch, role):
    """For instance a file that another process writes anew after the checks."""
    shutil.rmtree(run.work)
    real, spoilt = model_holder.load_model, run.folder / role

    def load_model(name, path, **options):
        if (Path(path) / ".adapter").resolve() == spoilt.resolve():
            raise ModelError(f"{path}/model.safetensors changed while it was read")
        return real(name, path, **options)

    monkeypatch.setattr(model_holder, "load_model", load_model)
    refusal = run.refusal()
    assert refusal.startswith(f'--{role}_model_path "{spoilt}": ')
    assert refusal.endswith("/base/model.safetensors changed while it was read")
