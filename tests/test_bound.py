"""What a run is bound to, and what a change of it does: the lines of docs/bound.md."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from run_files import png, read
from safetensors.torch import load_file, save_file

from data_engine import stages
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job import model_holder, run_file, worker
from data_engine.store import units

GOLDENS = Path(__file__).parent / "goldens/llava"
STAGES = ("sampled_answer", "instruct_logps", "reward_logps")
# The first questions of a unit of two, and one alone.
NUM_QUESTIONS = 5


class Run:
    """A dataset of pictures under an image root, two models, and a work_dir."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work = folder, folder / "work"

    def make(self) -> "Run":
        pictures = self.folder / "pictures"
        pictures.mkdir(parents=True)
        for number in range(NUM_QUESTIONS):
            (pictures / f"{number}.png").write_bytes(picture(number))
        write_questions(self.folder / "questions.parquet")
        for name in ("instruct", "reward", "openai"):
            shutil.copytree(GOLDENS / name, self.folder / name)
        return self

    def copy(self, folder: Path) -> "Run":
        shutil.copytree(self.folder, folder)
        return Run(folder)

    def start(self, **changes: object) -> int:
        paths = {f"{role}_model_path": self.folder / role for role in ("instruct", "reward")}
        paths |= {"dataset_path": self.folder / "questions.parquet", "image_root": self.folder / "pictures"}
        settings = {"sample_k": 3, "rank": 2, "distance": 1000, "max_new_tokens": 6, "unit_size": 2, "threads": 1}
        settings |= {name: str(path) for name, path in (paths | {"work_dir": self.work}).items()} | {"dtype": "float32"}
        return worker.run(RunConfig(**settings | changes))

    def refusal(self, **changes: object) -> str:
        with pytest.raises(UserError) as caught:
            self.start(**changes)
        return str(caught.value)

    def times(self) -> dict[str, int]:
        return {f"{stage}/{unit}": units.unit_path(self.work, stage, unit).stat().st_mtime_ns
                for stage in STAGES for unit in units.published(self.work, stage)}  # fmt: skip

    def answers(self) -> list[dict]:
        return read(self.work / "sampled_answer")

    def computed_again(self, **changes: object) -> set[str]:
        """The units that another start computes."""
        before = self.times()
        assert self.start(**changes) == 0
        return {name for name, time in self.times().items() if before.get(name) != time}


def picture(number: int) -> bytes:
    return png(Image.effect_noise((60, 40 + number), 30 + 20 * number).convert("RGB"))


def write_questions(path: Path, question: str = "What is it?") -> None:
    rows = [{"idx": f"q{n}", "question": question, "image": {"bytes": None, "path": f"{n}.png"}}
            for n in range(NUM_QUESTIONS)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_thread):
    made = Run(tmp_path_factory.mktemp("bound") / "run").make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.Stop, "listen", lambda stop: stop)
        assert made.start() == 0
    return made


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Run:
    """A finished run of its own."""
    monkeypatch.setattr(worker.Stop, "listen", lambda stop: stop)
    return finished.copy(tmp_path / "run")


@pytest.fixture
def sampled(run) -> Run:
    """A run of which stage 0 alone is done."""
    for stage in STAGES[1:]:
        shutil.rmtree(run.work / stage)
    return run


# Settings: a written list, since the table that the engine reads may lack one.
SAMPLING = {
    "sample_k": 4, "temperature": 0.9, "top_k": 7, "top_p": 0.5, "repetition_penalty": 1.5, "max_new_tokens": 7,
    "seed": 1, "same_pixels": True,
}  # fmt: skip
EVERYTHING = {"limit": 3, "unit_size": 3, "dtype": "bfloat16", "max_megapixels": 32.0, "exif": "ignore"}


@pytest.mark.parametrize("name", [*SAMPLING, *EVERYTHING])
def test_another_setting_is_refused_by_name(run, name):
    value = (SAMPLING | EVERYTHING)[name]
    assert f"{name} was " in run.refusal(**{name: value})
    assert f", now {value!r}" in run.refusal(**{name: value})


def test_another_kind_of_device_is_refused_by_name(run, monkeypatch):
    """There is no GPU here: the start believes that the CPU is called another name."""
    found = run_file.bound_settings
    monkeypatch.setattr(run_file, "bound_settings", lambda *a: found(*a) | {"device": "cuda"})
    assert "device was 'cpu', now 'cuda'" in run.refusal()


def test_every_field_of_the_configuration_is_bound_or_known_not_to_be():
    """A new field must be put on one of these lists."""
    free = {
        "work_dir", "dataset_path", "image_root", "dataset_split", "dataset_revision", "continue_from_stage",
        "stop_after_stage", "num_shards", "shard_index", "rank", "distance", "beta", "threads", "memory_fraction",
        "zero3", "zero3_config", "lookahead", "grace_s", "on_bad_row", "debug", "device",
        *(f"{role}_model_{what}" for role in ("instruct", "reward") for what in ("path", "name", "revision")),
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(RunConfig)} == free | SAMPLING.keys() | EVERYTHING.keys()


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
    assert run.start(**changes) in (0, 4)
    assert run.times() == before


@pytest.mark.parametrize(
    "changes", [{"threads": 2}, {"num_shards": 2}, {"memory_fraction": 0.5}, {"grace_s": 3.0}, {"on_bad_row": "error"}]
)
def test_how_the_work_is_divided_is_not_bound(run, changes):
    assert run.computed_again(**changes) == set()
    torch.set_num_threads(1)


# Models.


def change_a_weight(folder: Path) -> None:
    """Change one number of one tensor by its last bit or two: same names, same shapes, same size."""
    file = max(folder.glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] *= 1.01
    save_file(tensors, file, metadata={"format": "pt"})


def append_space(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" ")


@pytest.mark.parametrize("role", ["instruct", "reward"])
def test_one_number_of_one_tensor_is_another_model(run, role):
    size = sum(file.stat().st_size for file in (run.folder / role).iterdir())
    change_a_weight(run.folder / role)
    assert abs(sum(file.stat().st_size for file in (run.folder / role).iterdir()) - size) < 100
    assert f"{role}_model was " in run.refusal()


@pytest.mark.parametrize("file", ["config.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"])
def test_tokenizer_configuration_and_chat_template_are_content(run, file):
    path = run.folder / "reward" / file
    if not path.exists():
        path.write_text("{}")
        assert "reward_model was " in run.refusal()
        return
    content = path.read_bytes()
    path.write_bytes(content + b" " if file.endswith("json") else content)
    if file.endswith("json"):
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


# The dataset.


def test_another_dataset_is_refused_by_name(run):
    write_questions(run.folder / "questions.parquet", "What is ot?")
    assert "dataset was " in run.refusal()


def test_the_same_dataset_elsewhere_changes_nothing(run):
    moved = {"dataset_path": str(shutil.move(run.folder / "questions.parquet", run.folder / "q.parquet"))}
    moved["image_root"] = str(shutil.move(run.folder / "pictures", run.folder / "images"))
    assert run.computed_again(**moved) == set()


@pytest.mark.parametrize("stage", ["reward_logps", None])
def test_a_picture_that_was_exchanged_is_refused_by_its_row(run, stage):
    """Where it is scored, and where it would be written beside answers that never saw it."""
    if stage:
        shutil.rmtree(run.work / stage)
    (run.folder / "pictures/3.png").write_bytes(picture(1))
    written = pq.read_table(run.work / "dataset").to_pylist()
    assert "q3" in {row["idx"] for row in written}
    assert "row 'q3': its question or picture is not the one that its answers were sampled from" in run.refusal()
    assert pq.read_table(run.work / "dataset").to_pylist() == written


# Units.


def exchange_answers(run: Run, unit: int) -> None:
    """Replace a sampled unit by one with other answers, of the same run."""
    path = units.unit_path(run.work, "sampled_answer", unit)
    whole = units.read_sealed(path)
    rows = whole.table.to_pylist()
    for row in rows:
        row["token_ids"] = row["token_ids"][:2]
    units.write_sealed(pa.Table.from_pylist(rows, whole.table.schema), path, whole.facts)


def test_log_probs_of_answers_that_were_exchanged_are_computed_again(run):
    exchange_answers(run, 1)
    assert run.computed_again() == {"instruct_logps/1", "reward_logps/1"}
    lengths = {(row["idx"], row["sample_index"]): len(row["token_ids"]) for row in run.answers()}
    for stage in STAGES[1:]:
        rows = read(run.work / stage)
        assert {(row["idx"], row["sample_index"]): len(row["token_logps"]) for row in rows} == lengths
    assert len(list((run.work / "replaced").iterdir())) == 2


def test_answers_that_are_exchanged_while_others_pair_are_scored_again(run, monkeypatch):
    """After the look at the start, as a rank that was slow to publish would do it."""
    looked = worker.published.check

    def look(*arguments):
        monkeypatch.setattr(worker.published, "check", looked)
        looked(*arguments)
        exchange_answers(run, 2)

    monkeypatch.setattr(worker.published, "check", look)
    assert run.computed_again() == {"instruct_logps/2", "reward_logps/2", "sampled_answer/2"}


def test_answers_that_were_exchanged_are_refused_where_only_pairs_are_asked_for(run):
    exchange_answers(run, 1)
    with pytest.raises(worker.IncompleteError, match="instruct_logps, missing 1 of 3: 1"):
        run.start(continue_from_stage=2)


def test_a_unit_that_was_damaged_and_comes_out_the_same_keeps_its_log_probs(run):
    path = units.unit_path(run.work, "sampled_answer", 0)
    path.write_bytes(path.read_bytes()[:-9])
    assert run.computed_again() == {"sampled_answer/0"}


def test_rows_that_could_not_be_read_are_asked_when_they_can_be(run, monkeypatch):
    """Two pictures are on a disk that is mounted late; a third row is bad for good."""
    shutil.rmtree(run.work)
    away = [run.folder / f"pictures/{number}.png" for number in (1, 4)]
    contents = [file.read_bytes() for file in away]
    for file in away:
        file.unlink()
    (run.folder / "pictures/2.png").write_bytes(b"no picture")
    assert run.start() == 0
    told = {row["idx"]: row["missing"] for row in units.left_out(run.work)}
    assert told == {"q1": True, "q4": True, "q2": False}
    assert {row["idx"] for row in run.answers()} == {"q0", "q3"}
    # Still away: nothing is computed.
    assert run.computed_again() == set()
    away[0].write_bytes(contents[0])
    # Not by a start that leaves sampling out.
    assert run.computed_again(continue_from_stage=1) == set()
    assert run.computed_again() == {f"{stage}/0" for stage in STAGES}
    away[1].write_bytes(contents[1])
    assert run.computed_again() == {f"{stage}/2" for stage in STAGES}
    (run.folder / "pictures/2.png").write_bytes(picture(2))
    assert run.computed_again() == set()
    assert {row["idx"]: row["missing"] for row in units.left_out(run.work)} == {"q2": False}
    fresh = run.copy(run.folder.parent / "fresh")
    (fresh.folder / "pictures/2.png").write_bytes(b"no picture")
    shutil.rmtree(fresh.work)
    assert fresh.start() == 0
    for stage in STAGES:
        for unit in range(3):
            paths = (units.unit_path(one.work, stage, unit) for one in (run, fresh))
            assert len({path.read_bytes() for path in paths}) == 1


def test_a_picture_that_is_away_while_it_is_scored_is_scored_when_it_is_back(sampled):
    file = sampled.folder / "pictures/0.png"
    content = file.read_bytes()
    file.unlink()
    assert sampled.start() == 0
    assert {row["idx"] for row in read(sampled.work / "reward_logps")} == {"q1", "q2", "q3", "q4"}
    file.write_bytes(content)
    assert sampled.computed_again(continue_from_stage=1) == {"instruct_logps/0", "reward_logps/0"}


def test_a_pair_whose_picture_has_gone_has_no_source(run):
    before = read(run.work / "pairs")
    (run.folder / "pictures/3.png").unlink()
    assert run.start() == 0
    pairs = read(run.work / "pairs")
    gone = {row["status"] for row in pairs if row["idx"] == "q3"}
    kept = sum(row["status"] == "kept" for row in before if row["idx"] == "q3")
    assert kept > 0
    assert "kept" not in gone
    funnel = json.loads(pq.read_schema(run.work / "pairs/pairs.parquet").metadata[b"funnel"])
    assert funnel["dropped"]["no_source"] == kept == sum(row["status"] == "no_source" for row in pairs)
    assert "q3" not in {row["idx"] for row in read(run.work / "dataset")}


# run.json.


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
    path.write_text(json.dumps(content))
    assert run.computed_again() == set()
    assert "this run was started with other versions (numpy 0.1 -> " in capsys.readouterr().err


def test_every_stage_names_what_it_is_bound_to():
    """The values that shape a unit of each stage, written out."""
    common = {"dataset", "limit", "unit_size", "device", "dtype", "max_megapixels", "exif"}
    assert set(stages.SAMPLING.bound) == common | SAMPLING.keys() | {"instruct_model"}
    for role in ("instruct", "reward"):
        assert set(stages.known()[f"{role}_logps"].bound) == common | {f"{role}_model"}


def test_turned_pictures_are_counted(run):
    """Two of five stand on their side; a broken row's picture is not counted."""
    shutil.rmtree(run.work)
    for number in (0, 3):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.effect_noise((60, 40), 60).convert("RGB").save(file, "JPEG", exif=exif)
        (run.folder / f"pictures/{number}.png").write_bytes(file.getvalue())
    assert run.start() == 0
    funnel = json.loads(pq.read_schema(run.work / "pairs/pairs.parquet").metadata[b"funnel"])
    assert funnel["turned"] == 2
    assert "with a picture turned upright" in (run.work / "report/index.html").read_text()
