"""The export with reference log-probs: against those that RLAIF-V's own code computed, and what is left out."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from export_readers import rlaif_v_logps
from export_run import build, finish
from safetensors.numpy import load_file
from stage2_world import World, make_world, pairs_rows

from data_engine import exports, schemas
from data_engine.commands.export import main
from data_engine.errors import UserError
from data_engine.exports import parquet_files
from data_engine.exports.base import NOT_FITTING, ExportSource
from data_engine.exports.formats import rlaif_v_logps as export
from data_engine.models.native import llava
from data_engine.models.tokenizer import load_tokenizer
from data_engine.pipeline.score import ScoreSettings, score_unit
from data_engine.store import units

EOS = 2


@pytest.fixture(scope="module")
def processor(goldens):
    return sentencepiece.SentencePieceProcessor(model_file=str(goldens / "llava/instruct/tokenizer.model"))


@pytest.fixture(scope="module")
def model(goldens) -> dict:
    """The golden instruct model, as run.json has it."""
    folder = goldens / "llava/instruct"
    return {"folders": [str(folder)], "vocabulary": load_tokenizer(folder).vocabulary, "family": "llava",
            "control_tokens": ["</s>", "<unk>", "<s>"], "model_type": "llava"}  # fmt: skip


def ids_of(processor, question: str, answer: str) -> list[int]:
    """As the trainer's tokenizer has them behind the prompt, with the end token."""
    prompt = f"\n{question} ASSISTANT:"
    whole = processor.encode(f"{prompt} {answer}")
    assert whole[: len(processor.encode(prompt))] == processor.encode(prompt)
    return [*whole[len(processor.encode(prompt)) :], EOS]


@pytest.fixture(scope="module")
def golden_run(goldens, golden_rows, instruct, processor, model, tmp_path_factory):
    """The golden answers, scored by the engine, in pairs by made-up rewards."""
    folder = tmp_path_factory.mktemp("golden")
    shutil.copy(goldens / "llava/dataset/questions.parquet", folder)
    rows = [
        {"idx": row["idx"], "sample_index": at % 4, "answer": row["chosen"], "finish_reason": "stop",
         "token_ids": ids_of(processor, row["question"], row["chosen"])}
        for at, row in enumerate(golden_rows)
    ]  # fmt: skip
    world = World(folder, rows, unit_size=3)
    sampled = pa.Table.from_pylist(rows, schemas.sampled_answer(pa.string()))
    scored = score_unit(instruct, list(world.questions().rows(range(8))), sampled, ScoreSettings(False, 64))
    for row, found in zip(rows, scored.table.to_pylist(), strict=True):
        assert (row["idx"], row["sample_index"]) == (found["idx"], found["sample_index"])
        row["instruct"] = found["token_logps"]
        # The higher the number the better, by the sum and by the mean.
        row["reward"] = [*found["token_logps"][:-1], found["token_logps"][-1] + 1000.0 ** row["sample_index"] / 1e6]
    finish(world, folder / "work", model, distance=1000)
    return world


@pytest.fixture(scope="module")
def golden_export(golden_run, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "out"
    assert main([str(golden_run.folder / "work"), "--format", "rlaif-v-logps", "--output", str(output)]) == 0
    return output / "rlaif-v-logps"


def test_the_log_probs_are_those_that_rlaif_vs_own_code_computed(golden_export, golden_rows, goldens):
    """Its get_batch_logps over its preprocess_v1, for the same answers under the same model."""
    tensors = load_file(goldens / "llava/tensors_instruct.safetensors")
    by_text = {(row["idx"], row["chosen"]): f"row_{at:03d}" for at, row in enumerate(golden_rows)}
    rows = rlaif_v_logps.read(golden_export)
    assert len({row["idx"] for row in rows}) == 8
    for row in rows:
        for side in ("chosen", "rejected"):
            name = by_text[row["idx"], row[side]]
            # Its own sum is one of 32 bits, in which -2343.2199 is -2343.2197.
            total = tensors[f"{name}.answer_token_logp"].astype(float).sum()
            assert np.float32(total) == pytest.approx(tensors[f"{name}.logp"][0], rel=1e-6)
            assert row[f"{side}_logps"]["sum"] == pytest.approx(total, abs=1e-4)
            assert row[f"{side}_logps"]["mean"] == pytest.approx(tensors[f"{name}.avg_logp"][0], abs=1e-4)
            # The trainer's own list, in which the picture of the golden model is 16 tokens in the place of one id.
            assert len(row[f"{side}_logps"]["tokens"]) >= len(tensors[f"{name}.per_token_logp"]) - 15


def test_all_pairs_of_such_answers_are_in_it(golden_run, golden_export):
    pairs = [row for row in pairs_rows(golden_run.folder / "work") if row["status"] == "kept"]
    rows = rlaif_v_logps.read(golden_export)
    assert sorted((row["idx"], row["chosen"], row["rejected"]) for row in rows) == sorted(
        (pair["idx"], pair["chosen"], pair["rejected"]) for pair in pairs
    )
    questions = {question.idx: question for question in golden_run.questions().rows(range(8))}
    for row in rows:
        assert row["messages"] == [("user", (0, questions[row["idx"]].question))]
        assert row["images"] == [questions[row["idx"]].image]


def test_files_are_named_as_the_trainer_names_them(golden_run, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "ROW_GROUP_ROWS", 5)
    monkeypatch.setattr(parquet_files, "FILE_BYTES", 100_000)
    assert main([str(golden_run.folder / "work"), "--format", "rlaif-v-logps", "--output", str(tmp_path)]) == 0
    names = sorted(path.name for path in (tmp_path / "rlaif-v-logps").glob("*.parquet"))
    assert len(names) > 1
    for number, name in enumerate(names):
        size = pq.read_metadata(tmp_path / "rlaif-v-logps" / name).num_rows
        assert name == f"RLAIF-V-Dataset-withlogp_{number:03d}-{size}.parquet"


def test_datasets_loads_it_as_the_trainer_does(golden_export, tmp_path):
    import datasets

    rows = datasets.load_dataset(str(golden_export), cache_dir=str(tmp_path))["train"]
    rows = rows.cast_column("image", datasets.Image(decode=False))
    read = rlaif_v_logps.read(golden_export)
    assert [row["chosen"] for row in rows] == [row["chosen"] for row in read]
    assert {type(json.loads(row["logps"])["logps"][0]) for row in rows} == {float}
    assert set(rows.column_names) == set(rlaif_v_logps.COLUMNS)
    assert [row["image"]["bytes"] for row in rows] == [row["images"][0] for row in read]


def test_columns_of_the_input_are_kept_and_none_is_missing_without_them(model, processor, tmp_path):
    columns = {name: [f"{name} {number}" for number in range(4)] for name in ("ds_name", "origin_dataset")}
    for name, extra in (("with", columns), ("without", {})):
        world = text_world(tmp_path / name, processor, **extra)
        build("rlaif-v-logps", finish(world, tmp_path / name / "work", model), tmp_path / name / "out")
        rows = [row for path in (tmp_path / name / "out").iterdir() for row in pq.read_table(path).to_pylist()]
        assert rows
        for row in rows:
            number = int(row["idx"][1:])
            wanted = (f"ds_name {number}", f"origin_dataset {number}") if extra else (None, None)
            assert (row["ds_name"], row["origin_dataset"]) == wanted
            assert row["image_path"] == f"{number}.png"


def text_world(folder, processor, num_questions=4, **columns) -> World:
    """Answers as a model would have written them, the higher the number the better."""
    world = make_world(folder / "world", num_questions=num_questions, num_answers=4, **columns)
    texts = {question.idx: question.question for question in world.questions().rows(range(num_questions))}
    for row in world.rows:
        row["answer"] = f"a small dog {row['sample_index']}"
        row["token_ids"] = ids_of(processor, texts[row["idx"]], row["answer"])
        row["instruct"] = [-1.0] * len(row["token_ids"])
        row["reward"] = [row["sample_index"] / 8 - 1] * len(row["token_ids"])
    return world


def spoil(world: World, **values) -> None:
    """Values of the best answer to the first question."""
    [row] = [row for row in world.rows if (row["idx"], row["sample_index"]) == ("q000", 3)]
    row |= values
    # The best by the sum and by the mean.
    row["reward"] = [0.0] * len(row["instruct"])


def written(world: World, folder, model) -> tuple[exports.Written, list[dict], list[dict]]:
    """What came of it, the rows, and the kept pairs."""
    source = finish(world, folder / "work", model, markers=(), rank=2)
    found = build("rlaif-v-logps", source, folder / "out")
    return found, rlaif_v_logps.read(folder / "out"), list(source.pairs)


CHARACTERS = "a small dog 3"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut", export.CUT_OFF),
        ("no end", export.OTHER_TOKENS),
        ("characters", export.OTHER_TOKENS),
        ("stripped", export.OTHER_TOKENS),
        ("other count", export.OTHER_TOKENS),
        ("control token", export.REWRITTEN),
        ("marker", export.MASKED),
        ("long", export.TOO_LONG),
    ],
)
def test_pairs_whose_log_probs_would_be_others_are_left_out(name, reason, processor, model, tmp_path):
    world = text_world(tmp_path, processor)
    question = "What is in picture 0?"
    ids = ids_of(processor, question, CHARACTERS)
    pieces = [piece for letter in CHARACTERS for piece in processor.encode(letter) if piece != 917]
    spaced = [*ids[:-1], processor.encode("a ")[-1], EOS]
    # One word, so that it is paired with short ones.
    long = "dog" * 1600
    long_ids = ids_of(processor, question, long)
    values = {
        "cut": {"finish_reason": "length", "token_ids": ids[:-1], "instruct": [-1.0] * (len(ids) - 1)},
        "no end": {"token_ids": ids[:-1], "instruct": [-1.0] * (len(ids) - 1)},
        "characters": {"token_ids": [*pieces, EOS], "instruct": [-1.0] * (len(pieces) + 1)},
        "stripped": {"token_ids": spaced, "instruct": [-1.0] * len(spaced)},
        "other count": {"instruct": [-1.0] * (len(ids) + 1)},
        "control token": {"answer": "a </s>"},
        "marker": {"answer": "a ASSISTANT: b"},
        "long": {"answer": long, "token_ids": long_ids, "instruct": [-1.0] * len(long_ids)},
    }[name]
    spoil(world, **values)
    source = finish(world, tmp_path / "work", model, markers=(), distance=5000)
    pairs = list(source.pairs)
    spoilt = [pair for pair in pairs if (pair["idx"], pair["chosen_index"]) == ("q000", 3)]
    assert spoilt
    found = build("rlaif-v-logps", source, tmp_path / "out")
    rows = rlaif_v_logps.read(tmp_path / "out")
    assert found.left_out == {reason: len(spoilt)}
    # None of those that are written.
    assert found.rewritten == 0
    wanted = sorted((pair["idx"], pair["chosen"], pair["rejected"]) for pair in pairs if pair not in spoilt)
    assert sorted((row["idx"], row["chosen"], row["rejected"]) for row in rows) == wanted


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("What</s> is it?", export.REWRITTEN),
        ("Who? ASSISTANT: me", export.MASKED),
        ("Who? ASSISTANT:", export.MASKED),
        ("<image>\nWho?", None),
        ("Wo ist der Hund? 🐕", None),
    ],
)
def test_questions_count_too(question, reason, processor, model, tmp_path):
    asked = [question, "And?", "Or?", "So?"]
    world = text_world(tmp_path, processor, question=asked)
    for row in world.rows:
        if row["idx"] == "q000":
            row["token_ids"] = ids_of(processor, schemas.without_image_marker(question), row["answer"])
    found, rows, pairs = written(world, tmp_path, model)
    of_it = [pair for pair in pairs if pair["idx"] == "q000"]
    assert of_it
    assert found.left_out == ({reason: len(of_it)} if reason else {})
    assert len([row for row in rows if row["idx"] == "q000"]) == (0 if reason else len(of_it))


def test_pairs_of_an_answer_without_log_probs_are_left_out(processor, model, tmp_path):
    """As where another reward ranks, and the instruct model left the question out."""
    source = finish(text_world(tmp_path, processor), tmp_path / "work", model, markers=(), rank=2)

    def without(stage: str, unit: int) -> pa.Table:
        rows = units.read_unit(tmp_path / "work", stage, unit).table.to_pylist()
        kept = [row for row in rows if stage != export.STAGE or (row["idx"], row["sample_index"]) != ("q000", 3)]
        return pa.Table.from_pylist(kept)

    found = build("rlaif-v-logps", dataclasses.replace(source, read_table=without), tmp_path / "out")
    pairs = list(source.pairs)
    spoilt = [pair for pair in pairs if pair["idx"] == "q000" and 3 in (pair["chosen_index"], pair["rejected_index"])]
    assert spoilt
    assert found.left_out == {export.UNSCORED: len(spoilt)}
    assert len(rlaif_v_logps.read(tmp_path / "out")) == len(pairs) - len(spoilt)


def test_answers_given_as_text_are_taken(processor, model, tmp_path):
    """Their log-probs count the end token."""
    world = text_world(tmp_path, processor)
    for row in world.rows:
        row |= {"token_ids": None, "finish_reason": "given"}
    found, rows, pairs = written(world, tmp_path, model)
    assert (found.left_out, len(rows)) == ({}, len(pairs))
    num_tokens = len(ids_of(processor, "What is in picture 0?", CHARACTERS))
    assert {row["chosen_logps"]["sum"] for row in rows if row["chosen"] == CHARACTERS and row["idx"] == "q000"} == {
        float(-num_tokens)
    }


def test_only_one_picture_and_one_text_fit(processor, model, tmp_path):
    world = text_world(tmp_path, processor)
    table = pq.read_table(world.dataset_path)
    system = pa.array(["Be brief.", None, None, None])
    pq.write_table(table.append_column("system", system), world.dataset_path)
    found, rows, pairs = written(world, tmp_path, model)
    assert found.left_out == {NOT_FITTING: len([pair for pair in pairs if pair["idx"] == "q000"])}
    assert {row["idx"] for row in rows} == {"q001", "q002", "q003"}


class Characters:
    """A tokenizer without a token for what it does not know."""

    eos = EOS

    def encode(self, text: str) -> list[int]:
        return [ord(letter) if ord(letter) < 128 else 0 for letter in text]


def test_a_text_with_an_unknown_token_is_masked_by_the_trainer_and_left_out():
    trainer = export._Trainer(Characters())
    assert trainer.why_other("What?", "a dog", None, 7) is None
    assert trainer.why_other("What?", "a d\u00f6g", None, 7) == export.OTHER_TOKENS
    assert trainer.why_other("W\u00e4s?", "a dog", None, 7) == export.OTHER_TOKENS


def test_an_input_that_the_trainer_just_does_not_cut_is_taken():
    """The begin token, the system text, the picture, question and answer, and the end token: 1,473 ids, of which one is
    576 tokens."""
    trainer = export._Trainer(Characters())
    around = 1 + len(export.BEFORE_PICTURE) + 1 + len("\nQ ASSISTANT: ") + 1
    for length, wanted in ((1473 - around, None), (1474 - around, export.TOO_LONG)):
        assert trainer.why_other("Q", "a" * length, None, length + 2) == wanted
    told = json.loads(export.logps_text({"token_logps": [-1.0, -2.0]}, {"token_logps": [-0.5]}))["logps"]
    assert [told[at] for at in (0, 1, 3, 4)] == [-3.0, -1.5, -0.5, -0.5]
    assert [len(told[at]) for at in (2, 5)] == [1472, 1472]


def test_the_template_is_the_engines():
    assert f"{llava.SYSTEM} USER: " == export.BEFORE_PICTURE


def test_what_it_needs_is_asked_for_before_anything_is_written(processor, model, goldens, tmp_path):
    world = text_world(tmp_path, processor)
    source = finish(world, tmp_path / "work", model)
    elsewhere = shutil.copytree(goldens / "llava/instruct", tmp_path / "model")
    shutil.copy(goldens / "omnilmm/instruct/tokenizer.model", elsewhere)

    def refused(words: str, source: ExportSource = source, **changes) -> None:
        spoilt = dataclasses.replace(source, instruct=source.instruct | changes)
        with pytest.raises(UserError, match=words):
            build("rlaif-v-logps", spoilt, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused("family auto; use rlaif-v", family="auto")
    refused("family omnilmm", family="omnilmm")
    refused(re.escape("gone has neither tokenizer.model"), folders=["/gone"])
    refused("has another one by now", folders=[str(elsewhere)])
    shutil.rmtree(tmp_path / "work/instruct_logps")
    refused("needs log-probs of the instruct model, which")
    with pytest.raises(UserError):
        main([str(tmp_path / "work"), "--format", "trl,rlaif-v-logps", "--output", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_a_run_whose_answers_were_all_cut_off_has_no_row(finished, tmp_path):
    """By the run.json of a whole run, which knows where the tokenizer is."""
    with pytest.raises(UserError, match="the format rlaif-v-logps has no row") as caught:
        main([str(finished.work), "--format", "rlaif-v-logps", "--output", str(tmp_path / "out")])
    assert export.CUT_OFF in str(caught.value)
    assert not (tmp_path / "out").exists()
