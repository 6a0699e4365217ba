"""A path that is not there is refused with the name of what is there and is written most like it."""

import json

import pyarrow as pa
import pytest
from run_files import write

from data_engine.commands.arguments import parse
from data_engine.errors import UserError
from data_engine.flag_files import nearest_path, read_text
from data_engine.models.checkpoints import places
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.checkpoints.places import resolve
from data_engine.models.sharding.settings import read_settings
from data_engine.questions import sources
from data_engine.questions.dataset import load_questions
from data_engine.questions.given_rows import GivenFile


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data/questions").mkdir(parents=True)
    (tmp_path / "data/questions/train.jsonl").write_text(json.dumps({"idx": 0, "question": "Why?"}))
    (tmp_path / "data/questions.parquet").touch()
    (tmp_path / "other").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("data/qestions.parquet", "data/questions.parquet"),
        ("data/questions/trian.jsonl", "data/questions/train.jsonl"),
        ("dta/questions/train.jsonl", "data/questions/train.jsonl"),
        # Nothing of that name is in the folder that its first part may mean.
        ("dta/nothing.csv", None),
        ("entirely/else", None),
        # Alike by its ending alone.
        ("data/no.parquet", None),
        # It is there: something else is wrong with it.
        ("data/questions", None),
        ("data/\0", None),
    ],
)
def test_what_is_there_and_written_most_like_it_is_named(folder, given, meant):
    expected = f'; did you mean "{folder / meant}"?' if meant else ""
    assert nearest_path(f"{folder}/{given}") == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct", 'give the id of the hub: "Qwen/Qwen2.5-VL-3B-Instruct"'),
        ("https://huggingface.co/datasets/openbmb/RLAIF-V-Dataset/tree/main", 'hub: "openbmb/RLAIF-V-Dataset"'),
        ("https://huggingface.co/datasets/a/b/resolve/main/x.jsonl", "addresses such as https://... are not read"),
        ("s3://bucket/x.parquet", "addresses such as s3://... are not read: copy it to this machine"),
        ("hf://datasets/a/b/x.parquet", "addresses such as hf://... are not read"),
        ("data/*.parquet", "a pattern is not read: name the folder of the files"),
        ("data/part-?.jsonl", "a pattern is not read"),
        ("$DATA/q.jsonl", "; $DATA is filled in by a shell alone, not in a configuration and not in single quotes"),
        ("data/${DAY}.jsonl", "; ${DAY} is filled in by a shell alone"),
        ("~no-such-user/q.jsonl", "; there is no home of that name: ~no-such-user"),
    ],
)
def test_of_an_address_and_a_pattern_what_to_give_instead_is_said(given, says):
    for flag in (nearest_path(given), refusal_of_dataset(given)):
        assert says in flag


def refusal_of_dataset(path: str) -> str:
    with pytest.raises(UserError) as refused:
        sources.open_source(path)
    return str(refused.value)


def test_each_flag_that_names_a_path_says_so(folder, monkeypatch):
    monkeypatch.chdir(folder)
    write("questions.parquet", [{"idx": 0, "question": "Why?", "image": b""}])
    (folder / "run.yaml").touch()
    says = 'did you mean "{}"\\?'.format
    with pytest.raises(UserError, match=says("questions.parquet")):
        load_questions("qestions.parquet")
    with pytest.raises(UserError, match=says("data")):
        load_questions("questions.parquet", image_root="dta")
    with pytest.raises(ModelError, match=says("data/questions")):
        resolve("./data/qestions")
    with pytest.raises(UserError, match=says("questions.parquet")):
        GivenFile("qestions.parquet", pa.int64())
    with pytest.raises(UserError, match="; name a file with rules; " + says("run.yaml")):
        read_text("rule", "runn.yaml", "rules")
    with pytest.raises(UserError, match=says("run.yaml")):
        parse(["--config", "runn.yaml"])
    with pytest.raises(UserError, match=says("run.yaml")):
        read_settings("runn.yaml")


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    """It would begin the prompt of a chat template, and Python takes it for a character of a rule."""
    (tmp_path / "template.txt").write_bytes(b"\xef\xbb\xbf{question}\r\n{answer}")
    assert read_text("yesno_template", str(tmp_path / "template.txt"), "a text") == "{question}\n{answer}"


@pytest.fixture
def asked_hub(monkeypatch) -> list[str]:
    """What the hub is asked for, which it does not give."""
    asked = []

    def ask(path, *further):
        asked.append(path)
        raise ModelError("the hub does not have it")

    monkeypatch.setattr(places, "fetch", ask)
    monkeypatch.setattr(sources, "load_hub", ask)
    return asked


ANYTHING = ("./questons", "../nowhere", "/no/where", "data/qestions", "data/questions/trian", "org/name/more", "name")


@pytest.mark.parametrize(
    ("look", "says", "paths"),
    [
        (resolve, "neither a folder nor a hub id|the folder 'data' here has no", (*ANYTHING, "org/model.safetensors")),
        (load_questions, "no file or folder at dataset_path", (*ANYTHING, "oter/my_data.jsonl", "oter/Q.CSV")),
    ],
)
def test_what_cannot_be_a_hub_id_is_refused_without_asking_the_hub(folder, asked_hub, monkeypatch, look, says, paths):
    monkeypatch.chdir(folder)
    for path in paths:
        with pytest.raises(UserError, match=says):
            look(path)
    assert asked_hub == []


def test_what_can_be_one_is_asked_for(folder, asked_hub, monkeypatch):
    monkeypatch.chdir(folder)
    for ask in (resolve, load_questions):
        with pytest.raises(ModelError, match="the hub does not have it"):
            ask("org/name-1.5_b")
    assert asked_hub == ["org/name-1.5_b"] * 2


def test_a_hub_id_whose_organisation_is_a_folder_here_is_taken_from_the_cache(folder, asked_hub, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
    kept = folder / "cache/models--other--model"
    (kept / "snapshots/1234").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("1234")
    assert resolve("other/model") == kept / "snapshots/1234"
    with pytest.raises(ModelError, match="the folder 'data' here has no 'qestions'; did you mean \"data/questions\""):
        resolve("data/qestions")
    assert asked_hub == []
