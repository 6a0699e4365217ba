"""Kept pairs that the columns of dataset/ cannot hold: where they stay, and what a person is told."""

import json
import logging
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_page import Page
from stage2_world import dataset_rows, make_world, pairs_rows, picture
from turned_pictures import exif_of, stored, with_exif
from watched_run import described

from data_engine.config import RunConfig
from data_engine.exports.base import ExportSource
from data_engine.job import last_step
from data_engine.preferences.funnel import Funnel
from data_engine.questions.dataset import load_questions
from data_engine.questions.images import as_seen
from data_engine.reporting import page
from data_engine.schemas import IMAGE
from data_engine.stages import RunStages
from data_engine.store import units
from data_engine.store.folders import scratch_folder

NUMBER = 30
LINE = "kept, but not in dataset/"


def image(number: int) -> dict:
    return {"bytes": picture(number), "path": f"{number}.png"}


def world_of(folder, kinds: str, **columns):
    """Questions of these kinds in turn: 1 one image, 2 two, 0 none, s a system text, t an earlier turn."""
    kinds = [kinds[number % len(kinds)] for number in range(NUMBER)]
    lists = [{"2": [image(number), image(number + 1)], "0": []}.get(kind, [image(number)])
             for number, kind in enumerate(kinds)]  # fmt: skip
    hello = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
    asked = [f"What is in picture {number}?" for number in range(NUMBER)]
    messages = [[*hello, {"role": "user", "content": asked[number]}] if kind == "t" else None
                for number, kind in enumerate(kinds)]  # fmt: skip
    columns = {
        "image": pa.nulls(NUMBER, IMAGE),
        "images": pa.array(lists, pa.list_(IMAGE)),
        "system": ["Be brief." if kind == "s" else None for kind in kinds],
        "messages": messages,
    } | columns
    if not any(messages):
        del columns["messages"]
    return make_world(folder, num_questions=NUMBER, **columns)


def run_file_of(work_dir, world) -> None:
    """What status reads."""
    total = len(world.units())
    planned = {"num_questions": NUMBER, "unit_size": world.unit_size, "num_units": total}
    (work_dir / "run.json").write_text(json.dumps({"units": planned, "bound": {}, "frozen": {}, "versions": {}}))


@pytest.mark.parametrize("kind", "20st")
def test_a_pair_that_does_not_fit_stays_among_the_pairs_and_is_counted(tmp_path, kind, caplog):
    plain, mixed = world_of(tmp_path / "plain", "1"), world_of(tmp_path / "mixed", f"11{kind}")
    for name, world in {"a": plain, "b": mixed}.items():
        world.publish(tmp_path / name)
        world.pair(tmp_path / name)
    # The answers are the same, and so are the pairs: what a row can hold plays no part in them.
    pairs = pairs_rows(tmp_path / "b")
    assert pairs == pairs_rows(tmp_path / "a")
    kept = [pair for pair in pairs if pair["status"] == "kept"]
    beyond = [pair for pair in kept if int(pair["idx"][1:]) % 3 == 2]
    funnel = Funnel.from_json(pq_funnel(tmp_path / "b"))
    assert len(beyond) > 5
    assert (funnel.not_fitting, funnel.written) == (len(beyond), len(kept) - len(beyond))
    rows = dataset_rows(tmp_path / "b")
    # Those that fit, in the order in which they stand among all.
    assert rows == [row for row in dataset_rows(tmp_path / "a") if int(row["idx"][1:]) % 3 != 2]
    assert f"  {LINE}: several images or none, system text, turns  {len(beyond):>3}\n" in funnel.table()
    assert not caplog.records


def pq_funnel(work_dir) -> str:
    return pq.read_schema(work_dir / "pairs/pairs.parquet").metadata[b"funnel"].decode()


def test_without_such_pairs_nothing_is_said_of_them(tmp_path):
    world = world_of(tmp_path / "world", "1")
    world.publish(tmp_path)
    funnel = world.pair(tmp_path)
    assert funnel.not_fitting == 0
    assert LINE not in funnel.table()


def test_where_no_pair_fits_there_is_no_dataset_and_a_warning_says_why(tmp_path, caplog):
    work_dir = tmp_path / "work"
    before, world = world_of(tmp_path / "before", "1"), world_of(tmp_path / "world", "20st")
    before.publish(work_dir)
    before.pair(work_dir)
    assert dataset_rows(work_dir)
    for stage in ("sampled_answer", "instruct_logps", "reward_logps"):
        for unit in units.published(work_dir, stage):
            units.unit_path(work_dir, stage, unit).unlink()
    world.publish(work_dir)
    funnel = world.pair(work_dir)
    # What an earlier pairing wrote is not left beside the pairs of this one.
    assert not (work_dir / "dataset").exists()
    kept = [pair for pair in pairs_rows(work_dir) if pair["status"] == "kept"]
    assert funnel.not_fitting == len(kept) > 0
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    why = f"({len(kept)} rows: the format has no place for the question's images, system text or earlier turns)"
    assert f"dataset is not written: the format rlaif-v has no row {why}; pairs.parquet has all pairs" in caplog.text
    run_file_of(work_dir, world)
    assert described(work_dir, 0.0).endswith("pairs                   written")


def plan_of(world, work_dir) -> SimpleNamespace:
    config = RunConfig(
        instruct_model_path="a",
        reward_model_path="b",
        dataset_path=str(world.dataset_path),
        work_dir=str(work_dir),
        sample_k=6,
        rank=2,
    )
    return SimpleNamespace(
        config=config, work_dir=work_dir, questions=world.questions(), unit_rows=world.units(), bound={},
        ranks=SimpleNamespace(rank=0), same_tokenizer=True, stages=RunStages(),
        trained=SimpleNamespace(markers=("</s>",), control_tokens=()),
    )  # fmt: skip


def test_pairs_that_do_not_fit_count_as_written_for_the_exit_code(tmp_path, capsys):
    world = world_of(tmp_path / "world", "2")
    world.publish(tmp_path / "work")
    with scratch_folder(tmp_path / "work", "pairing") as scratch:
        assert last_step.pair_all(plan_of(world, tmp_path / "work"), scratch)
    assert LINE in capsys.readouterr().out
    empty = make_world(tmp_path / "empty", num_questions=NUMBER, num_answers=1)
    empty.publish(tmp_path / "other")
    with scratch_folder(tmp_path / "other", "pairing") as scratch:
        assert not last_step.pair_all(plan_of(empty, tmp_path / "other"), scratch)


def test_the_report_shows_each_picture_or_that_there_is_none(tmp_path):
    shown = {}
    for kind in "120":
        world = world_of(tmp_path / kind, kind)
        world.publish(tmp_path / "work" / kind)
        funnel = world.pair(tmp_path / "work" / kind)
        shown[kind] = page.report_text(tmp_path / "work" / kind, world.questions(), funnel)
    pairs = {kind: Page(text).pairs for kind, text in shown.items()}
    assert {kind: {len(pair["pictures"]) for pair in own} for kind, own in pairs.items()} == {
        "1": {1}, "2": {2}, "0": {0}
    }  # fmt: skip
    assert {pair["problem"] for pair in pairs["0"]} == {"no picture"}
    assert LINE in shown["2"]
    assert f"<p>{funnel.not_fitting} pairs from" in shown["0"]


def test_an_export_is_given_every_picture_as_the_models_saw_it(tmp_path):
    turned = with_exif(stored(6), "JPEG", exif_of(6))
    images = [[image(number), {"bytes": turned, "path": None}] for number in range(NUMBER)]
    world = world_of(tmp_path / "world", "2", images=pa.array(images, pa.list_(IMAGE)))
    world.publish(tmp_path / "work")
    world.pair(tmp_path / "work")
    kept = [pair for pair in pairs_rows(tmp_path / "work") if pair["status"] == "kept"]
    source = ExportSource(kept, world.questions(), world.units(), tmp_path / "work", 0)
    groups = list(source.with_questions(kept))
    assert len(groups) > 10
    for group in groups:
        number = int(group.question.idx[1:])
        assert group.has_source
        assert group.question.images == (picture(number), as_seen(turned, "apply"))
        assert group.question.images[1] != turned
        assert group.question.image is None
        assert group.question.conversation.num_images == 2


def test_pairs_whose_pictures_are_gone_are_told_from_pairs_that_do_not_fit(tmp_path):
    """Two images under the image root, of which one goes away after the answers are scored."""
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(NUMBER + 1):
        (root / f"{number}.png").write_bytes(picture(number))
    paths = [[{"bytes": None, "path": f"{number}.png"}, {"bytes": None, "path": f"{number + 1}.png"}]
             for number in range(NUMBER)]  # fmt: skip
    world = world_of(tmp_path / "world", "2", images=pa.array(paths, pa.list_(IMAGE)))
    world.questions = lambda: load_questions(str(world.dataset_path), image_root=str(root))
    world.publish(tmp_path / "work")
    before = world.pair(tmp_path / "work")
    (root / "7.png").unlink()
    (tmp_path / "work/pairs/pairs.parquet").unlink()
    funnel = world.pair(tmp_path / "work")
    gone = [pair for pair in pairs_rows(tmp_path / "work") if pair["status"] == "no_source"]
    assert {pair["idx"] for pair in gone} == {"q006", "q007"}
    assert funnel.not_fitting == before.not_fitting - len(gone)
