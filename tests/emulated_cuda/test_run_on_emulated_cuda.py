"""A whole run on the emulated GPU, captured steps and all, writes what the same run writes on the CPU."""

from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

from data_engine.commands.main import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on the machine"),
]
QUESTIONS, K = 6, 4
# One on the CPU may lie in another order of sums.
NAT = 1e-4


def rows(folder: Path) -> list[dict]:
    return ds.dataset(folder, format="parquet").to_table().sort_by([("idx", "ascending")]).to_pylist()


def run(models: Path, goldens: Path, work_dir: Path, device: str, **more: object) -> None:
    questions = work_dir.with_suffix(".parquet")
    pq.write_table(pq.read_table(goldens / "llava/dataset/questions.parquet").slice(0, QUESTIONS), questions)
    flags = {
        "instruct_model_path": models / "instruct", "reward_model_path": models / "reward", "dataset_path": questions,
        "work_dir": work_dir, "device": device, "dtype": "float32", "sample_k": K, "unit_size": 2, "max_new_tokens": 24,
    } | more  # fmt: skip
    assert main(["run", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]) == 0


@pytest.fixture
def replays(monkeypatch) -> list[torch.cuda.CUDAGraph]:
    """The graph of each replay."""
    replay, found = torch.cuda.CUDAGraph.replay, []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: found.append(graph) or replay(graph))
    return found


@pytest.mark.parametrize(
    ("family", "rewards"), [("llava", ["implicit", "contrast", "yesno"]), ("omnilmm", ["implicit"])]
)
def test_a_run_writes_what_it_writes_on_the_cpu(goldens, tmp_path, family, rewards, replays):
    asked = {"rewards": ",".join(rewards), "yesno_model_path": goldens / family / "reward"}
    asked = asked if "yesno" in rewards else {}
    ours, expected = tmp_path / "cuda", tmp_path / "cpu"
    for folder, device in ((ours, "cuda"), (expected, "cpu")):
        run(goldens / family, goldens, folder, device, **asked)
    answers = rows(expected / "sampled_answer")
    assert len(answers) == QUESTIONS * K
    assert rows(ours / "sampled_answer") == answers
    scored = {"instruct_logps", "reward_logps", *(("contrast_logps", "yesno") if asked else ())}
    for stage in scored:
        for one, other in zip(rows(ours / stage), rows(expected / stage), strict=True):
            numbers = [name for name, value in other.items() if isinstance(value, float | list)]
            assert numbers
            for name in numbers:
                assert one[name] == pytest.approx(other[name], abs=NAT), (stage, name)
    found, wanted = (
        [(one["idx"], one["chosen"], one["rejected"]) for one in rows(folder / "dataset")]
        for folder in (ours, expected)
    )
    assert found == wanted
    assert found
    # But for the first step of the queue, which is captured, all are replays of one graph.
    assert len(replays) >= max(len(one["token_ids"]) for one in answers) - 1
    assert len(set(replays)) == 1


def test_a_run_in_bf16_checks_itself_and_makes_the_same_again(goldens, tmp_path, replays):
    """As on a card by default; log-probs of one device and another differ by what bf16 rounds."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, unit_size in ((one, 2), (other, 3)):
        run(goldens / "llava", goldens, folder, "cuda", dtype="auto", unit_size=unit_size)
    answers = rows(one / "sampled_answer")
    assert len(answers) == QUESTIONS * K
    assert answers == rows(other / "sampled_answer")
    assert rows(one / "dataset") == rows(other / "dataset")
    assert replays
