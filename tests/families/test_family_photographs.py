"""The whole engine on models of transformers: real photographs, from the question to dataset and report."""

import io
import json
from pathlib import Path

import pytest
import torch
from asked import Asked
from comparisons import TOLERANCE
from PIL import Image
from reference import Stock
from runs import Pair, read

from data_engine import load_model, sample_answers, score_answers
from data_engine.commands.main import main
from data_engine.config import RunConfig
from data_engine.job import worker
from data_engine.store import units

PHOTOS = Path(__file__).parents[3] / "shared/photos/questions.parquet"
# Qwen3-VL's kind looks at the picture from several layers of its tower; most layers of Qwen3.5's keep a state.
KINDS = ["qwen3_vl", "qwen3_5"]


class Photograph(Asked):
    """A row of the photographs' dataset, as the stock model is asked."""

    def __init__(self, row: dict) -> None:
        super().__init__((), row["question"])
        object.__setattr__(self, "row", row)

    def images(self) -> list[Image.Image]:
        return [Image.open(io.BytesIO(self.row["image"]["bytes"])).convert("RGB")]


@pytest.fixture(scope="module")
def made(checkpoints, tmp_path_factory):
    """Of each kind, a finished run on the photographs: the models, and the work_dir. Made when it is asked for."""
    found = {}

    def make(name: str) -> tuple[Pair, Path]:
        if not PHOTOS.exists():
            pytest.skip("../shared/photos is not here: no photographs")
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            pair, work = Pair(checkpoints(name), folder), folder / "work"
            flags = pair.flags(dataset_path=str(PHOTOS), work_dir=str(work), unit_size=8)
            assert worker.run(RunConfig(**flags)) == 0
            found[name] = pair, work
        return found[name]

    return make


@pytest.mark.families
@pytest.mark.parametrize("name", KINDS)
def test_every_photograph_is_answered_scored_and_written(made, name):
    _, work = made(name)
    photographs = {row["idx"]: row for row in read(PHOTOS.parent)}
    sampled = read(work / "sampled_answer")
    assert {(row["idx"], row["sample_index"]) for row in sampled} == {(idx, n) for idx in photographs for n in range(4)}
    assert not list(units.left_out(work))
    dataset = read(work / "dataset")
    assert len(dataset) > 10
    texts = {(row["idx"], row["answer"].strip()) for row in sampled}
    for row in dataset:
        assert row["question"] == photographs[row["idx"]]["question"]
        assert row["image"]["bytes"] == photographs[row["idx"]]["image"]["bytes"]
        assert {(row["idx"], row[answer]) for answer in ("chosen", "rejected")} <= texts
    [file] = (work / "paths").glob("instruct-*.json")
    assert json.loads(file.read_text())["why_plain"] is None


@pytest.mark.families
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("role", ["instruct", "reward"])
def test_log_probs_of_a_run_are_those_of_the_stock_model(made, name, role):
    """Of the first, a middle and the last photograph; the two models do not say the same."""
    pair, work = made(name)
    stock = Stock(getattr(pair, role), pair.checkpoint.processor)
    sampled = {(row["idx"], row["sample_index"]): row["token_ids"] for row in read(work / "sampled_answer")}
    scored = {(row["idx"], row["sample_index"]): row for row in read(work / f"{role}_logps")}
    assert sampled.keys() == scored.keys()
    rows = read(PHOTOS.parent)
    for row in (rows[0], rows[13], rows[-1]):
        for number in (0, 3):
            found, ids = scored[row["idx"], number], sampled[row["idx"], number]
            expected = stock.score(Photograph(row), ids)
            torch.testing.assert_close(torch.tensor(found["token_logps"]), expected, atol=TOLERANCE, rtol=0)
            assert found["sum"] == pytest.approx(expected.double().sum().item(), abs=1e-3)
    other = {(row["idx"], row["sample_index"]): row for row in read(work / "instruct_logps")}
    assert role == "instruct" or max(abs(other[key]["mean"] - scored[key]["mean"]) for key in scored) > 0.05


@pytest.mark.families
@pytest.mark.parametrize("name", KINDS)
def test_report_and_status_tell_of_such_a_run(made, name, capsys):
    _, work = made(name)
    assert main(["status", str(work)]) == 0
    told = capsys.readouterr().out
    assert "sampled_answer" in told
    assert "32" in told
    page = (work / "report/index.html").read_text()
    assert "photo-" in page
    assert "instruct" in page


@pytest.mark.families
@pytest.mark.parametrize("name", KINDS)
def test_python_gives_the_answers_of_the_run(made, name):
    """load_model without a name: the family comes from config.json."""
    pair, work = made(name)
    model = load_model(None, str(pair.instruct), device="cpu", dtype="float32")
    assert model.family == "auto"
    sampled = read(work / "sampled_answer")
    row = read(PHOTOS.parent)[5]
    image, question = row["image"]["bytes"], row["question"]
    found = sample_answers(model, image, question, k=4, idx=row["idx"], temperature=1.0, max_new_tokens=8)
    assert [one.token_ids for one in found] == [one["token_ids"] for one in sampled if one["idx"] == row["idx"]]
    scored = [one["token_logps"] for one in read(work / "instruct_logps") if one["idx"] == row["idx"]]
    for mine, theirs in zip(
        score_answers(model, image, question, [one.token_ids for one in found]), scored, strict=True
    ):
        torch.testing.assert_close(mine, torch.tensor(theirs), atol=1e-5, rtol=0)
