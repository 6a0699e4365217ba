"""Several ranks of a model of transformers: one dataset with one process, whole models or split ones."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
from runs import SETTINGS, Pair, few

sys.path.append(str(Path(__file__).parents[1] / "distributed"))

from jobs import Job, Result, forked_world, ranks_that_worked, split_settings, stray_files

pytestmark = pytest.mark.families

# Units of two questions and one of a single one.
FLAGS = {"unit_size": 2, "max_new_tokens": 24}
QUESTIONS = 5
# So many of the 400 ids end an answer, so that answers are of 1 to 24 tokens: work that is uneven between the ranks.
ENDS = 40


def job_of(pair: Pair, folder: Path, **more: object) -> Job:
    flags = {name: value for name, value in (SETTINGS | FLAGS | more).items() if name != "threads"}
    words = tuple(word for name, value in flags.items() for word in (f"--{name}", str(value)))
    return Job(folder / "questions.parquet", folder / "work", words, pair.instruct, pair.reward)


@pytest.fixture(scope="module")
def alone(checkpoints, tmp_path_factory):
    """One process: the job, and what it left."""
    folder = tmp_path_factory.mktemp("alone")
    few(folder, QUESTIONS)
    pair = Pair(checkpoints("qwen2_5_vl"), folder)
    for model in (pair.instruct, pair.reward):
        settings = json.loads((model / "generation_config.json").read_text())
        settings["eos_token_id"] = [settings["eos_token_id"], *range(ENDS)]
        (model / "generation_config.json").write_text(json.dumps(settings))
    job = job_of(pair, folder)
    job.run()
    return job, Result.of(job.work_dir)


def again(job: Job, folder: Path, *flags: str) -> Job:
    return dataclasses.replace(job, work_dir=folder / "work", flags=(*job.flags, *flags))


def test_the_work_is_uneven_and_answers_differ(alone):
    _, result = alone
    rows = [row["token_ids"] for rows in result.units.values() for row in rows if "token_ids" in row]
    assert len(rows) == QUESTIONS * SETTINGS["sample_k"]
    assert len(set(map(tuple, rows))) > len(rows) / 2
    assert max(map(len, rows)) - min(map(len, rows)) > 15
    assert list(result.dataset) == ["dpo_dataset.parquet"]


def test_two_ranks_with_whole_models_make_the_same_dataset(alone, tmp_path):
    job, expected = alone
    shared = again(job, tmp_path)
    shared.world(2, program="together")
    assert Result.of(shared.work_dir) == expected
    assert ranks_that_worked(shared) == 2
    assert not stray_files(shared.work_dir)
    # One decision a model, whichever rank was first.
    assert len(list((shared.work_dir / "paths").iterdir())) == 2


def test_two_ranks_that_split_the_models_make_the_same_dataset(alone, tmp_path):
    job, expected = alone
    divided = again(job, tmp_path, "--zero3", "on", "--zero3_config", str(split_settings(tmp_path)))
    output = divided.world(2)
    assert "zero3 on: split over 2 ranks" in output
    assert Result.of(divided.work_dir) == expected
    assert ranks_that_worked(divided) == 2
    assert not stray_files(divided.work_dir)


def test_a_rank_without_a_unit_helps_the_others(alone, tmp_path):
    job, expected = alone
    settings = ("--zero3", "on", "--zero3_config", str(split_settings(tmp_path)))
    divided = again(job, tmp_path, "--unit_size", "8", *settings)
    divided.world(2)
    assert Result.of(divided.work_dir).dataset == expected.dataset


def test_two_ranks_on_the_plain_path_make_the_dataset_of_one(checkpoints, tmp_path):
    """The first question is beyond what answers may share, so all ranks go plain, and make one decision a model."""
    pair = Pair(checkpoints("qwen3_5"), tmp_path)
    few(tmp_path, QUESTIONS)
    for folder in (pair.instruct, pair.reward):
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["attn_temperature_tuning"], config["text_config"]["floor_scale"] = True, 16
        (folder / "config.json").write_text(json.dumps(config))
    job = job_of(pair, tmp_path, max_new_tokens=6)
    told = job.run()
    assert told.count("runs on the plain path") == 2
    shared = again(job, tmp_path / "two")
    shared.world(2, program="together")
    assert Result.of(shared.work_dir) == Result.of(job.work_dir)
    assert ranks_that_worked(shared) == 2
    assert len(list((shared.work_dir / "paths").iterdir())) == 2


COUNTED = """
import sys
from data_engine import load_model, score_answers
from data_engine.models.sharding.lock_step import CallAgreement
from data_engine.models.sharding.settings import read_settings
from data_engine.models.sharding.zero3 import Zero3Split
from data_engine.processes.ranks import Ranks, join_process_group
from data_engine.processes.signals import Stopped

ranks = Ranks.from_environment()
store = join_process_group(ranks, "cpu")  # the ranks meet at it
split = Zero3Split(read_settings(sys.argv[2]), CallAgreement(lambda: False, Stopped), ranks.rank)
model = load_model(None, sys.argv[1], device="cpu", dtype="float32", split=split)
parts = [*model.decoder.named_parameters(), *model.vision.named_parameters()]
for name, weight in parts:
    whole = not hasattr(weight, "ds_tensor")
    here, size = weight.numel() if whole else weight.ds_tensor.numel(), weight.numel() if whole else weight.ds_numel
    print(f"rank {ranks.rank}: {name} {here} {size}", flush=True)
"""


def test_each_rank_holds_half_of_each_weight_of_decoder_and_tower(alone, tmp_path):
    job, _ = alone
    (tmp_path / "counted.py").write_text(COUNTED)
    flags = [str(job.instruct), str(split_settings(tmp_path))]
    ranks = forked_world(2, "counted", flags, folder=tmp_path)
    output, _ = ranks.communicate(timeout=300)
    assert ranks.returncode == 0, output
    found = re.findall(r"rank (\d): (\S+) (\d+) (\d+)", output)
    for rank in "01":
        held = {name: (int(here), int(size)) for who, name, here, size in found if who == rank}
        whole = {name for name, (here, size) in held.items() if here == size and size > 1}
        # Looked up between calls of the decoder.
        assert whole == {"embed_tokens.weight"}
        assert len(held) > 50
        # A share is rounded up to a whole number.
        assert all(here == -(-size // 2) for name, (here, size) in held.items() if name not in whole)
