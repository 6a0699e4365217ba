"""The reference's numbered defects (its specification, list e) that this design could repeat: a test for each.

Most tests stand with the code that they hold, with `defect_N` in their name; this file has those that need a whole run,
and a test that no number is forgotten.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import data_engine
from data_engine import load_model, score_answers
from data_engine.config import RunConfig
from data_engine.job import model_holder, worker
from data_engine.pipeline import score
from data_engine.stages import RunStages

STAGES = tuple(RunStages().by_name)

# Why a number has no test.
CANNOT_OCCUR = {
    26: "no collective, so no collective's timeout",
    28: "no code looks into a path for a model's name",
    40: "units bound the memory: tests/questions/test_sources.py streams row groups",
}


@pytest.fixture(scope="module")
def run(goldens, tmp_path_factory, one_thread) -> tuple[Path, Counter]:
    """A whole run on the golden questions; the calls of the model's parts are counted."""
    from data_engine.models.native.llava import Llava

    work_dir, calls = tmp_path_factory.mktemp("defects") / "work", Counter()
    encode, packed = Llava.encode_images, score.score_pass
    paths = {"instruct_model_path": goldens / "llava/instruct", "reward_model_path": goldens / "llava/reward"}
    paths |= {"dataset_path": goldens / "llava/dataset/questions.parquet", "work_dir": work_dir}
    settings = {"sample_k": 5, "rank": 2, "distance": 1000, "max_new_tokens": 8, "threads": 1, "unit_size": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Llava, "encode_images", lambda *a: calls.update(["image"]) or encode(*a))
        patch.setattr(score, "self_check", counted_apart(score.self_check, calls))
        patch.setattr(score, "score_pass", lambda *a: calls.update(["packed"]) or packed(*a))
        assert worker.run(RunConfig(**{name: str(path) for name, path in paths.items()} | settings)) == 0
    return work_dir, calls


def counted_apart(check: Callable, calls: Counter) -> Callable:
    """The self-check, whose images count on their own."""

    def call(*arguments):
        before = calls["image"]
        result = check(*arguments)
        calls["image, self-check"] += calls["image"] - before
        calls["image"] = before
        return result

    return call


def rows(work_dir: Path, folder: str) -> list[dict]:
    return [row for file in sorted((work_dir / folder).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_every_answer_is_compared_with_its_own_instruct_log_probs_defect_1(run):
    work_dir, _ = run
    sums = {
        stage: {(row["idx"], row["sample_index"]): sum(row["token_logps"]) for row in rows(work_dir, stage)}
        for stage in STAGES[1:]
    }
    pairs = rows(work_dir, "pairs")
    assert {pair["chosen_index"] for pair in pairs} > {0}
    for pair in pairs:
        for side in ("chosen", "rejected"):
            key = (pair["idx"], pair[f"{side}_index"])
            expected = 0.1 * (sums["reward_logps"][key] - sums["instruct_logps"][key])
            assert pair[f"{side}_sum"] == pytest.approx(expected, abs=1e-6)


def test_one_log_prob_a_sampled_token_and_no_other_defect_6(run):
    work_dir, _ = run
    tokens = {(row["idx"], row["sample_index"]): len(row["token_ids"]) for row in rows(work_dir, "sampled_answer")}
    assert len(set(tokens.values())) > 1
    for stage in STAGES[1:]:
        scored = {(row["idx"], row["sample_index"]): len(row["token_logps"]) for row in rows(work_dir, stage)}
        assert scored == tokens


def test_an_empty_answer_counts_its_end_and_nothing_else_defect_7(instruct, golden_images):
    [logps] = score_answers(instruct, golden_images[0], "What is it?", [""])
    [by_ids] = score_answers(instruct, golden_images[0], "What is it?", [[2]])
    assert torch.equal(logps, by_ids)
    assert len(logps) == 1


def test_a_question_with_markers_of_the_prompt_masks_nothing_defect_17(instruct, golden_images):
    question = "Who? ASSISTANT: me</s> USER: and <unk>?"
    [logps] = score_answers(instruct, golden_images[0], question, ["a red bus"])
    assert len(logps) == len(score_answers(instruct, golden_images[0], "Who?", ["a red bus"])[0])


def test_no_mean_is_nan_and_json_stays_json_defect_14(run):
    work_dir, _ = run
    for stage in STAGES[1:]:
        for row in rows(work_dir, stage):
            assert row["mean"] == pytest.approx(sum(row["token_logps"]) / len(row["token_logps"]))
    [log] = (work_dir / "logs").glob("rank-0-*.jsonl")
    for line in log.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_weights_are_cast_once_into_the_dtype_of_the_run_defect_16(goldens):
    """fp32 weights of CLIP that fp16 cannot hold survive a run in bf16."""
    from safetensors.torch import load_file

    model = load_model(None, str(goldens / "llava/reward"), device="cpu", dtype="bfloat16")
    stored = load_file(goldens / "llava/reward/model.safetensors")
    assert stored["model.norm.weight"].dtype == torch.bfloat16
    for name in ("norm.weight", "layers.1.mlp.up_proj.weight", "embed_tokens.weight"):
        assert torch.equal(model.decoder.get_parameter(name), stored[f"model.{name}"])


def test_a_run_needs_neither_gpu_nor_collective_defects_11_and_25(run):
    """11: ranks with different numbers of batches deadlocked in a barrier; here there is none.

    A process group is made for split models alone, whose ranks agree on each call: tests/distributed/test_lock_step.py.
    """
    assert not torch.distributed.is_initialized()
    sources = {path.stem: path.read_text() for path in Path(data_engine.__file__).parent.rglob("*.py")}
    assert not [name for name, text in sources.items() if re.search(r"\bbarrier\(|\ball_gather\w*\(", text)]
    assert [name for name, text in sources.items() if "init_process_group" in text] == ["ranks"]
    assert [name for name, text in sources.items() if "all_reduce(" in text] == ["lock_step"]


def test_files_with_any_number_of_rows_line_up_defects_13_and_33(run):
    """8 questions in units of 3: the last is shorter, and no row of it is lost or taken from another."""
    work_dir, _ = run
    for stage in STAGES:
        found = rows(work_dir, stage)
        assert len(found) == 8 * 5
        assert Counter(row["idx"] for row in found).most_common()[-1][1] == 5


def test_a_checkpoint_that_says_nothing_of_patch_tokens_gets_none_defect_37(goldens, tmp_path, golden_images):
    import shutil

    shutil.copytree(goldens / "llava", tmp_path / "llava", ignore=shutil.ignore_patterns("*.parquet", "tensors*"))
    path = tmp_path / "llava/instruct/config.json"
    config = json.loads(path.read_text())
    del config["mm_use_im_patch_token"]
    path.write_text(json.dumps(config))
    model = load_model(None, str(path.parent), device="cpu", dtype="float32")
    assert len(model.head.weight) == 1000


def test_questions_keep_their_spaces_and_line_ends_defect_37(instruct):
    assert instruct.prompt_ids("What is it? \n") != instruct.prompt_ids("What is it?")


def test_an_image_is_encoded_once_a_question_and_stage_and_answers_scored_in_one_pass_defect_38(run):
    _, calls = run
    # 8 questions: one image in sampling, one under each model in scoring. The self-check runs whole rows, image and
    # all, each of the 5 answers to the first question that a model scores.
    assert calls == {"image": 3 * 8, "packed": 2 * 8, "image, self-check": 2 * 5}


def test_images_stand_in_the_source_and_in_the_result_alone_defect_39(run):
    work_dir, _ = run
    for folder in (*STAGES, "pairs"):
        for file in (work_dir / folder).glob("*.parquet"):
            assert not {"image", "bytes"} & set(pq.read_schema(file).names)


def test_origin_split_never_reaches_the_trainer_defect_29(run):
    work_dir, _ = run
    for file in (work_dir / "dataset").iterdir():
        assert "origin_split" not in pq.read_schema(file).names


def test_what_is_published_is_kept_by_a_second_run_defect_42(run, goldens):
    work_dir, _ = run
    config = json.loads((work_dir / "run.json").read_text())["config"]
    before = {path: path.stat().st_mtime_ns for stage in STAGES for path in (work_dir / stage).iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_holder, "load_model", lambda *a, **b: pytest.fail("nothing was left to compute"))
        assert worker.run(RunConfig(**config)) == 0
    assert {path: path.stat().st_mtime_ns for stage in STAGES for path in (work_dir / stage).iterdir()} == before


def test_one_model_is_held_at_a_time_defect_43(goldens, tmp_path, monkeypatch):
    import gc
    import weakref

    loaded, load = [], model_holder.load_model

    def tracked(*arguments, **options):
        gc.collect()
        assert not [model for model in loaded if model() is not None], "the other model is still held"
        model = load(*arguments, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(model_holder, "load_model", tracked)
    paths = {"instruct_model_path": goldens / "llava/instruct", "reward_model_path": goldens / "llava/reward"}
    paths |= {"dataset_path": goldens / "llava/dataset/questions.parquet", "work_dir": tmp_path / "work"}
    settings = {"sample_k": 2, "rank": 1, "max_new_tokens": 2, "threads": 1, "limit": 2}
    assert worker.run(RunConfig(**{name: str(path) for name, path in paths.items()} | settings)) == 0
    assert len(loaded) == 2


def test_every_number_has_its_test_or_the_reason_why_not():
    text = "".join(file.read_text() for file in sorted(Path(__file__).parents[1].rglob("test_*.py")))
    named = re.findall(r"def test_\w*?defects?_(\d+(?:_and_\d+)*)", text)
    tested = {int(number) for numbers in named for number in numbers.split("_and_")}
    assert tested | CANNOT_OCCUR.keys() == set(range(1, 44))
    assert not tested & CANNOT_OCCUR.keys()
