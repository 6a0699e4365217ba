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


def run(goldens: Path, questions: Path, work_dir: Path, device: str) -> None:
    flags = {
        "instruct_model_path": goldens / "instruct", "reward_model_path": goldens / "reward",
        "dataset_path": questions, "work_dir": work_dir, "device": device, "dtype": "float32", "sample_k": K,
        "unit_size": 2, "max_new_tokens": 24,
    }  # fmt: skip
    assert main(["run", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]) == 0


@pytest.mark.parametrize("family", ["llava", "omnilmm"])
def test_a_run_writes_what_it_writes_on_the_cpu(goldens, tmp_path, family, monkeypatch):
    replay, replays = torch.cuda.CUDAGraph.replay, []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(graph) or replay(graph))
    questions = tmp_path / "questions.parquet"
    pq.write_table(pq.read_table(goldens / "llava/dataset/questions.parquet").slice(0, QUESTIONS), questions)
    ours, expected = tmp_path / "cuda", tmp_path / "cpu"
    for folder, device in ((ours, "cuda"), (expected, "cpu")):
        run(goldens / family, questions, folder, device)
    answers = rows(expected / "sampled_answer")
    assert len(answers) == QUESTIONS * K
    assert rows(ours / "sampled_answer") == answers
    for stage in ("instruct_logps", "reward_logps"):
        for one, other in zip(rows(ours / stage), rows(expected / stage), strict=True):
            assert one["token_logps"] == pytest.approx(other["token_logps"], abs=NAT)
    found, wanted = (
        [(one["idx"], one["chosen"], one["rejected"]) for one in rows(folder / "dataset")]
        for folder in (ours, expected)
    )
    assert found == wanted
    assert found
    # But for the first step of the queue, which is captured, all are replays of one graph.
    assert len(replays) >= max(len(one["token_ids"]) for one in answers) - 1
    assert len(set(replays)) == 1
