"""A run of five questions whose models, pictures and units a test may exchange."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_files import noise, png, read
from safetensors.torch import load_file, save_file

from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job import worker
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
    return png(noise((60, 40 + number), 30 + 20 * number))


def write_questions(path: Path, question: str = "What is it?") -> None:
    rows = [{"idx": f"q{n}", "question": question, "image": {"bytes": None, "path": f"{n}.png"}}
            for n in range(NUM_QUESTIONS)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)


def change_a_weight(folder: Path) -> None:
    """Change one number of one tensor by its last bit or two: same names, same shapes, same size."""
    file = max(folder.glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] *= 1.01
    save_file(tensors, file, metadata={"format": "pt"})
