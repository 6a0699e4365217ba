"""What a run is bound to, and what a change of it does: lines of docs/bound.md."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from bound_run import STAGES, change_a_weight, write_questions

from data_engine import stages
from data_engine.config import RunConfig
from data_engine.job import model_holder, run_file
from data_engine.models.native.llava import Llava
from data_engine.store import units

# Settings: a written list, since the table that the engine reads may lack one.
SAMPLING = {
    "sample_k": 4, "temperature": 0.9, "top_k": 7, "top_p": 0.5, "repetition_penalty": 1.5, "max_new_tokens": 7,
    "seed": 1, "same_pixels": True,
}  # fmt: skip
PROMPTS = {"chat_template_kwargs": '{"a": 1}'}
EVERYTHING = {
    "columns": "ds_name=", "question": "What?", "system": "Be brief.", "unit_size": 3, "dtype": "bfloat16",
    "max_megapixels": 32.0, "exif": "ignore", "compile_layers": True,
}  # fmt: skip


@pytest.fixture
def takes_templates(monkeypatch):
    """The models here are of a family with a prompt of its own, which would refuse what is said of templates."""
    monkeypatch.setattr(Llava, "takes_chat_settings", True)


@pytest.mark.parametrize("name", [*SAMPLING, *PROMPTS, *EVERYTHING])
def test_another_setting_is_refused_by_name(run, name, takes_templates):
    value = (SAMPLING | PROMPTS | EVERYTHING)[name]
    # The dataset has questions of its own.
    unread = {"columns": "question="} if name == "question" else {}
    refusal = run.refusal(**{name: value} | unread)
    assert f"{name} was " in refusal
    assert f", now {value!r}" in refusal


def test_a_chat_template_is_bound_by_what_is_in_the_file(run, takes_templates):
    file = run.folder / "template.jinja"
    file.write_text("{{ messages }}")
    assert "chat_template was not set, now " in run.refusal(chat_template=str(file))
    with_template = run.copy(run.folder.parent / "with_template")
    shutil.rmtree(with_template.work)
    assert with_template.start(chat_template=str(file), stop_after_stage=0) == 0
    moved = shutil.move(file, run.folder / "moved.jinja")
    assert with_template.start(chat_template=str(moved), stop_after_stage=0) == 0
    moved.write_text("{{ messages }}\n")
    then, now = (hashlib.sha256(text).hexdigest()[:12] for text in (b"{{ messages }}", b"{{ messages }}\n"))
    assert f"chat_template was {then}, now {now}; " in with_template.refusal(chat_template=str(moved))


def test_other_ways_to_write_the_same_change_nothing(sampled, takes_templates):
    again = sampled.copy(sampled.folder.parent / "again")
    shutil.rmtree(again.work)
    one = {"chat_template_kwargs": '{"b": [1], "a": 2}', "columns": "ds_name=,image_path=", "stop_after_stage": 0}
    assert again.start(**one) == 0
    other = {"chat_template_kwargs": '{"a":2, "b":[1]}', "columns": " image_path=, ds_name=, question=question"}
    assert again.computed_again(**one | other) == set()
    # An empty object, and a column by its own name, say nothing.
    nothing = {"chat_template_kwargs": "{}", "columns": "question=question", "stop_after_stage": 0}
    assert sampled.computed_again(**nothing) == set()


def test_another_kind_of_device_is_refused_by_name(run, monkeypatch):
    """There is no GPU here: the start believes that the CPU is called another name."""
    found = run_file.bound_settings
    monkeypatch.setattr(run_file, "bound_settings", lambda *a: found(*a) | {"device": "cuda"})
    assert "device was 'cpu', now 'cuda'" in run.refusal()


def test_pairs_of_what_a_gpu_computed_are_made_without_one(run, monkeypatch):
    """As the pairing job of `submit` is started. The units say that they are a GPU's."""
    shutil.rmtree(run.work)
    found = run_file.bound_settings
    with monkeypatch.context() as there:
        there.setattr(run_file, "bound_settings", lambda *a: found(*a) | {"device": "cuda", "dtype": "bfloat16"})
        assert run.start(stop_after_stage=1) == 0
    alone = {"continue_from_stage": 2, "dtype": "auto"}
    assert run.computed_again(**alone) == set()
    assert run.computed_again(**alone, device="cuda") == set()
    assert json.loads((run.work / "run.json").read_text())["bound"].items() >= {("device", "cuda")}
    assert "device was 'cuda', now 'cpu'" in run.refusal(**alone, device="cpu")
    assert "device was 'cuda', now 'cpu'" in run.refusal(dtype="auto")


ROLES = ("instruct", "reward", "reference", "yesno", "scalar", "critic")


def test_every_field_of_the_configuration_is_bound_or_known_not_to_be():
    """A new field must be put on one of these lists."""
    free = {
        # Which may grow: see test_growing_limit.py.
        "limit",
        "work_dir", "dataset_path", "image_root", "dataset_split", "dataset_revision", "continue_from_stage",
        "stop_after_stage", "num_shards", "shard_index", "rank", "distance", "beta", "threads", "memory_fraction",
        "zero3", "zero3_config", "require_fast", "grace_s", "on_bad_row", "debug", "device", "export",
        "rewards", "rank_by", "strategy", "min_margin", "max_margin", "length_alpha", "near_duplicates", "max_pairs",
        "right", "length_balance",
        *(f"{role}_model_{what}" for role in ROLES for what in ("path", "name", "revision")),
        *(f"{role}_base_model_path" for role in ROLES),
    }  # fmt: skip
    # Bound where their judge is asked.
    judged = {f"{role}_chat_template_kwargs" for role in ROLES[3:]}
    named = {"chat_template", "answers", "sampler", "vllm_args", "yesno_template", "critic_template", "rule"}
    bound = SAMPLING.keys() | PROMPTS.keys() | EVERYTHING.keys() | named | judged
    assert {field.name for field in dataclasses.fields(RunConfig)} == free | bound


def test_settings_may_change_until_a_unit_depends_on_them(sampled):
    for unit in units.published(sampled.work, "sampled_answer"):
        units.unit_path(sampled.work, "sampled_answer", unit).unlink()
    assert sampled.start(temperature=0.9, limit=3) == 0
    assert {row["idx"] for row in sampled.answers()} == {"q0", "q1", "q2"}
    assert json.loads((sampled.work / "run.json").read_text())["bound"]["temperature"] == 0.9
    assert "temperature was 0.9, now 0.7" in sampled.refusal(limit=3)


@pytest.mark.parametrize("changes", [{"rank": 1}, {"distance": 3}, {"beta": 0.5}, {"debug": True}])
def test_pairing_settings_pair_again_and_compute_nothing(run, monkeypatch, changes):
    monkeypatch.setattr(model_holder, "load_model", lambda *a, **b: pytest.fail("no model is needed"))
    before = run.times()
    assert run.start(**changes) == 0
    assert run.times() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 2},
        {"num_shards": 2},
        {"memory_fraction": 0.5},
        {"grace_s": 3.0},
        {"on_bad_row": "error"},
        {"require_fast": True},
    ],
)
def test_how_the_work_is_divided_is_not_bound(run, changes):
    assert run.computed_again(**changes) == set()
    torch.set_num_threads(1)


@pytest.mark.parametrize("role", ["instruct", "reward"])
def test_one_number_of_one_tensor_is_another_model(run, role):
    size = sum(file.stat().st_size for file in (run.folder / role).iterdir())
    change_a_weight(run.folder / role)
    assert abs(sum(file.stat().st_size for file in (run.folder / role).iterdir()) - size) < 100
    assert f"{role}_model was " in run.refusal()


# To the file's reader the same: JSON with a space more, an unknown and empty field of SentencePiece's protocol buffer.
@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("config.json", b" "), ("tokenizer_config.json", b" "), ("tokenizer.model", b"\xfa\x3f\x00"),
        ("chat_template.jinja", b"{{ messages }}"), ("processor_config.json", b"{}"),
    ],
)  # fmt: skip
def test_tokenizer_configuration_and_chat_template_are_content(run, file, more):
    path = run.folder / "reward" / file
    path.write_bytes((path.read_bytes() if path.exists() else b"{}"[: 2 * (more == b" ")]) + more)
    assert "reward_model was " in run.refusal()


def test_the_clip_tower_beside_a_model_is_content(run):
    change_a_weight(next(path.parent for path in (run.folder / "openai").rglob("*.safetensors")))
    assert "instruct_model was " in run.refusal()


def test_the_same_model_elsewhere_and_other_files_beside_it_change_nothing(run):
    shutil.move(run.folder / "reward", run.folder / "renamed")
    (run.folder / "renamed/README.md").write_text("About the model.")
    (run.folder / "renamed/trainer_state.json").write_text("{}")
    moved = {"reward_model_path": str(run.folder / "renamed")}
    assert run.computed_again(**moved) == set()


def test_a_model_that_no_published_unit_depends_on_may_change(sampled):
    change_a_weight(sampled.folder / "reward")
    assert sampled.computed_again() == {f"{stage}/{unit}" for stage in STAGES[1:] for unit in range(3)}
    change_a_weight(sampled.folder / "reward")
    assert "reward_model was " in sampled.refusal()


def test_a_unit_of_another_model_among_the_others_is_refused_by_name(run):
    """As two starts that began at the same moment would leave it."""
    other = run.copy(run.folder.parent / "other")
    shutil.rmtree(other.work / "reward_logps")
    change_a_weight(other.folder / "reward")
    assert other.start() == 0
    for name in ("instruct_logps", "sampled_answer"):
        assert (other.work / name / "unit-00001.parquet").read_bytes() == (
            run.work / name / "unit-00001.parquet"
        ).read_bytes()
    shutil.copy(other.work / "reward_logps/unit-00001.parquet", run.work / "reward_logps")
    assert "unit-00001.parquet belongs to another run: reward_model was " in run.refusal()
    assert "unit-00001.parquet belongs to another run: reward_model was " in run.refusal(continue_from_stage=2)


def test_a_unit_in_hand_is_dropped_where_another_start_changed_the_run(sampled, monkeypatch):
    """The other start comes while the first unit of the reward model is computed, and nothing depends on it yet."""
    other = sampled.copy(sampled.folder.parent / "other")
    change_a_weight(other.folder / "reward")
    load = model_holder.load_model

    def meanwhile(name, path, **options):
        if Path(path).name == "reward":
            monkeypatch.setattr(model_holder, "load_model", load)
            assert other.start(work_dir=str(sampled.work), limit=None, stop_after_stage=0) == 0
        return load(name, path, **options)

    monkeypatch.setattr(model_holder, "load_model", meanwhile)
    assert "has changed the run meanwhile: reward_model was " in sampled.refusal()
    assert units.published(sampled.work, "reward_logps") == set()


def test_another_dataset_is_refused_by_name(run):
    write_questions(run.folder / "questions.parquet", "What is ot?")
    assert "dataset was " in run.refusal()


def test_the_same_dataset_elsewhere_changes_nothing(run):
    moved = {"dataset_path": str(shutil.move(run.folder / "questions.parquet", run.folder / "q.parquet"))}
    moved["image_root"] = str(shutil.move(run.folder / "pictures", run.folder / "images"))
    assert run.computed_again(**moved) == set()
    # Other commands look for it there from then on.
    assert json.loads((run.work / "run.json").read_text())["places"] == moved


def test_a_run_json_of_another_layout_is_refused_by_name(run):
    path = run.work / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"layout": 99}))
    assert "is of layout 99, written by another version" in run.refusal()
    del content["layout"]
    path.write_text(json.dumps(content))
    assert "is of layout 1, written by another version" in run.refusal()


def test_other_versions_of_libraries_go_on_with_a_warning(run, capsys):
    path = run.work / "run.json"
    content = json.loads(path.read_text())
    content["versions"]["numpy"] = "0.1"
    path.write_text(json.dumps(content | {"threads": 2}))
    assert run.computed_again() == set()
    told = capsys.readouterr().err
    assert "this run was started with other versions (numpy 0.1 -> " in told
    # Beside it, other threads are told, too.
    assert "began with 2 CPU threads a rank, and this start has 1" in told


def test_another_number_of_threads_goes_on_with_a_warning(run, capsys):
    before = json.loads((run.work / "run.json").read_text())["threads"]
    assert run.computed_again(threads=before) == set()
    assert "CPU threads" not in capsys.readouterr().err
    assert run.computed_again(threads=before + 1) == set()
    torch.set_num_threads(1)
    told = f"began with {before} CPU threads a rank, and this start has {before + 1}"
    assert told in capsys.readouterr().err
    # Pairing alone computes no log-probs.
    assert run.computed_again(threads=before + 1, continue_from_stage=2) == set()
    torch.set_num_threads(1)
    assert "CPU threads" not in capsys.readouterr().err


def test_threads_with_which_nothing_was_computed_are_not_held_against_a_start(run, capsys):
    told = json.loads((run.work / "run.json").read_text())
    (run.work / "run.json").write_text(json.dumps(told | {"threads": told["threads"] + 1}))
    for folder in ("sampled_answer", "instruct_logps", "reward_logps"):
        shutil.rmtree(run.work / folder)
    # With fewer, since threads that wait for cores of other tests spin.
    assert run.start(threads=told["threads"]) == 0
    assert "CPU threads" not in capsys.readouterr().err
    assert json.loads((run.work / "run.json").read_text())["threads"] == told["threads"]


def test_every_stage_names_what_it_is_bound_to():
    """The values that shape a unit of each stage, written out."""
    common = {"dataset", "columns", "question", "system", "unit_size", "device", "dtype", "max_megapixels", "exif",
              "chat_template", "chat_template_kwargs"}  # fmt: skip
    sampling = common | SAMPLING.keys() | {"answers", "sampler", "instruct_model"}
    assert set(stages.SAMPLING.bound) == sampling | {"compile_layers"}
    assert set(stages.SAMPLING_BY_VLLM.bound) == sampling | {"vllm_args"}
    assert set(stages.GIVEN.bound) == common | {"answers", "answers_vocabulary"}
    for role in ("instruct", "reward"):
        assert set(stages.known()[f"{role}_logps"].bound) == common | {f"{role}_model", "compile_layers"}
