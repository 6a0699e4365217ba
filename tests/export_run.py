"""Finished runs without models: units, pairs and a run.json, for the tests of exports."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from stage2_world import MARKERS, World, make_world, picture, publish

from data_engine import exports, schemas
from data_engine.commands.main import main
from data_engine.commands.work_dir import open_finished
from data_engine.config import RunConfig
from data_engine.exports.base import ExportSource
from data_engine.store.claims import Claims
from data_engine.store.file_hashes import FileHashes
from data_engine.store.folders import scratch_folder
from data_engine.store.units import UnitResult

BEST = "sft, llama-factory-sft, ms-swift-sft"
"""The formats of best answers, as messages name them."""
MODEL = {"vocabulary": "v", "markers": MARKERS, "control_tokens": ["</s>", "<|im_end|>"], "family": "llava"}


def run(*arguments: object) -> int:
    """`data-engine export` in this process; its exit code."""
    return main(["export", *map(str, arguments)])


def with_entries(**entries: object) -> Callable[[Path], None]:
    """What puts entries into the run.json of a work_dir."""

    def change(work_dir: Path) -> None:
        found = json.loads((work_dir / "run.json").read_text())
        (work_dir / "run.json").write_text(json.dumps(found | entries))

    return change


def part(text: str | None = None) -> dict:
    """A part of a message: a text, or a picture."""
    return {"type": "image" if text is None else "text", "text": text}


def said(role: str, *parts: str | None) -> dict:
    return {"role": role, "content": [part(one) for one in parts]}


def mixed_world(folder: Path, **columns) -> World:
    """Questions without a picture (the first), with one, with two, with a system text and with an earlier turn."""
    asked = [
        ([said("user", "How are you, 0?")], []),
        ([said("user", None, "What is this, 1?")], [1]),
        ([said("user", "First", None, "then", None, "which is red, 2?")], [2, 3]),
        ([said("system", "Be brief."), said("user", None, "What is this, 3?")], [4]),
        ([said("user", None, "What is it?"), said("assistant", "A bus."), said("user", "And 4?")], [5]),
    ]
    world = make_world(folder, num_questions=5, unit_size=2)
    for row in world.rows:
        # As many words in each, and the higher the number the better, so that every question has pairs.
        number = row["sample_index"]
        row |= {"answer": f"answer {number} to {row['idx']}", "instruct": [-1.0] * 3, "reward": [number / 8 - 1] * 3}
    images = [[{"bytes": picture(number), "path": f"{number}.png"} for number in numbers] for _, numbers in asked]
    table = {"idx": [f"q{number:03d}" for number in range(5)], "messages": [messages for messages, _ in asked]}
    pq.write_table(
        pa.table(table | {"images": pa.array(images, pa.list_(schemas.IMAGE))} | columns), world.dataset_path
    )
    return world


def build(name: str, source: ExportSource, output: Path) -> exports.Written:
    """Write `source` in a format, as the folder `output`."""
    with scratch_folder(output.parent, "test") as scratch:
        return exports.export(name, source, output, scratch)


def finish(world: World, work_dir: Path, instruct: dict | None = None, **pairing) -> ExportSource:
    """Publish every unit and pair them; what the exports of the run are made from."""
    config = RunConfig(
        instruct_model_path="instruct",
        reward_model_path="reward",
        dataset_path=str(world.dataset_path),
        work_dir=str(work_dir),
    )
    questions = world.questions()
    bound = {"dataset": questions.fingerprint(FileHashes(work_dir, Claims(work_dir, 0)))}
    for unit, span in enumerate(world.units()):
        for stage in ("sampled_answer", "instruct_logps", "reward_logps"):
            publish(work_dir, stage, unit, _unit(world, questions, span, stage), bound)
    world.pair(work_dir, bound=bound, **pairing)
    models = {"instruct": MODEL | (instruct or {}), "reward": MODEL | (instruct or {})}
    units = {"unit_size": world.unit_size, "num_questions": len(questions), "num_units": len(world.units())}
    run_file = {"layout": 2, "bound": bound, "config": asdict(config), "models": models, "units": units}
    (work_dir / "run.json").write_text(json.dumps(run_file | {"places": {}, "frozen": {}, "versions": {}}))
    return open_finished(work_dir, {}).source()


def _unit(world: World, questions, span: range, stage: str) -> UnitResult:
    idxs = set(questions.idx[span.start : span.stop])
    rows = [_record(row, stage) for row in world.rows if row["idx"] in idxs]
    schema = schemas.sampled_answer if stage == "sampled_answer" else schemas.logps
    table = pa.Table.from_pylist(rows, schema(questions.idx_type))
    return UnitResult(table, [], rows=[question.digest for question in questions.rows(span)])


def _record(row: dict, stage: str) -> dict:
    key = {"idx": row["idx"], "sample_index": row["sample_index"]}
    if stage == "sampled_answer":
        given = {"token_ids": row.get("token_ids", [5, 6, 2]), "finish_reason": row.get("finish_reason", "stop")}
        return {**key, "answer": row["answer"], **given}
    logps = row[stage.removesuffix("_logps")]
    # Nothing may read these two: they are wrong on purpose.
    return {**key, "token_logps": logps, "sum": 123.0, "mean": 456.0}
