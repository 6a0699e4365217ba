"""Runs about a folder of pictures, held against a run of the same questions in a parquet file."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_engine.commands.main import main
from data_engine.errors import UserError
from data_engine.job import worker
from data_engine.schemas import IMAGE

QUESTION = "What is in the picture?"


@pytest.fixture
def pictures(goldens, tmp_path) -> Path:
    """Five pictures, two of them in a folder below."""
    rows = pq.read_table(goldens / "llava/dataset/questions.parquet")["image"].to_pylist()
    for number, row in enumerate(rows[:5]):
        path = tmp_path / "pictures" / ("more" if number > 2 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["bytes"])
    return tmp_path / "pictures"


def peer(pictures: Path) -> Path:
    """The same questions as rows."""
    paths = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    images = [{"bytes": (pictures / path).read_bytes(), "path": path} for path in paths]
    columns = {"idx": paths, "question": [QUESTION] * 5, "image": pa.array(images, IMAGE)}
    pq.write_table(pa.table(columns), pictures.parent / "questions.parquet")
    return pictures.parent / "questions.parquet"


def test_a_folder_of_pictures_makes_the_dataset_of_the_same_rows(config, pictures, tmp_path):
    assert worker.run(config(pictures, question=QUESTION)) == 0
    assert worker.run(config(peer(pictures), work_dir=str(tmp_path / "rows"))) == 0
    found, expected = (pq.read_table(tmp_path / name / "dataset") for name in ("work", "rows"))
    assert found.equals(expected)
    assert set(found["idx"].to_pylist()) <= {"0.png", "1.png", "2.png", "more/3.png", "more/4.png"}
    assert len(found) > 3
    # The pictures may move, and a later command is told where they are.
    moved = shutil.move(pictures, tmp_path / "moved")
    flags = ["--format", "trl,scored", "--output", str(tmp_path / "out"), "--dataset_path", str(moved)]
    assert main(["export", str(tmp_path / "work"), *flags]) == 0
    [exported] = (tmp_path / "out/trl").rglob("*.parquet")
    assert len(pq.read_table(exported)) == len(found)
    assert f"| question | {QUESTION} |" in (tmp_path / "out/trl/README.md").read_text()
    assert main(["report", str(tmp_path / "work"), "--dataset_path", str(moved)]) == 0
    # The same command goes on, there too; another question or picture is another run.
    assert worker.run(config(moved, question=QUESTION)) == 0
    with pytest.raises(UserError, match=rf"question was '{QUESTION[:-1]}\?', now 'Why\?'"):
        worker.run(config(moved, question="Why?"))
    shutil.copy(tmp_path / "moved/0.png", tmp_path / "moved/5.png")
    with pytest.raises(UserError, match="dataset"):
        worker.run(config(moved, question=QUESTION))
