"""Whole loops by real processes: rounds by run_engine.sh over ranks, a trainer that makes models, kills and signals."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bound_run import GOLDENS, Run
from run_files import read
from waiting import until

pytestmark = pytest.mark.slow
TRAINER = Path(__file__).with_name("loop_trainer.py")
PATIENCE_S = 180


class Loop:
    """A loop over five questions, and what is around it."""

    def __init__(self, run: Run, folder: Path, ranks: int = 1) -> None:
        self.run, self.folder, self.hook, self.ranks = run, folder / "loop", folder / "hook", ranks
        self.hook.mkdir(parents=True)

    def words(self, rounds: int, **more: object) -> list[str]:
        train = [sys.executable, str(TRAINER), "{model}", "{dataset}", "{output}", str(self.hook)]
        flags = {f"{role}_model_path": self.run.folder / role for role in ("instruct", "reward")}
        flags |= {"dataset_path": self.run.folder / "questions.parquet", "image_root": self.run.folder / "pictures"}
        flags |= {"sample_k": 4, "rank": 2, "distance": 1000, "max_new_tokens": 6, "unit_size": 2, "threads": 1}
        flags |= {
            "device": "cpu",
            "dtype": "float32",
            "work_dir": self.folder,
            "rounds": rounds,
            "train": shlex.join(train),
        }
        return [
            sys.executable,
            "-m",
            "data_engine",
            "loop",
            *(f"--{name}={value}" for name, value in (flags | more).items()),
        ]

    def start(self, rounds: int, **more: object) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "RANK")}
        return subprocess.Popen(
            self.words(rounds, **more), env=environment | {"NUM_PROCESSES": str(self.ranks)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def end(self, rounds: int, **more: object) -> tuple[int, str]:
        process = self.start(rounds, **more)
        told, _ = process.communicate(timeout=PATIENCE_S)
        print(told)
        return process.returncode, told

    def trained(self) -> list[str]:
        """The outputs of the trainers that were started."""
        file = self.hook / "starts"
        return [Path(line).parent.name for line in file.read_text().split()] if file.exists() else []

    def dataset(self, number: int) -> list[bytes]:
        return [file.read_bytes() for file in sorted((self.folder / f"round-{number}/run/dataset").glob("*.parquet"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("loops") / "run").make()


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory) -> Loop:
    """Two rounds over two ranks."""
    loop = Loop(made, tmp_path_factory.mktemp("whole"), ranks=2)
    code, told = loop.end(2)
    assert code == 0, told
    return loop


def test_a_round_is_the_run_by_hand_on_the_model_of_the_round_before(whole, made, tmp_path):
    assert whole.trained() == ["round-1", "round-2"]
    hand, more = Run(made.folder), {}
    for number in (1, 2):
        hand.work = tmp_path / f"work-{number}"
        assert hand.start(sample_k=4, device="cpu", **more) == 0
        [theirs] = sorted((hand.work / "dataset").glob("*.parquet"))
        assert whole.dataset(number) == [theirs.read_bytes()], number
        more = {"instruct_model_path": str(whole.folder / "round-1/model")}
    # The second model answers otherwise.
    answers = [[row["token_ids"] for row in read(whole.folder / f"round-{number}/run/sampled_answer")]
               for number in (1, 2)]  # fmt: skip
    assert answers[0] != answers[1]


def test_what_is_done_is_not_done_again_and_more_rounds_go_on(whole):
    times = {
        file: file.stat().st_mtime_ns for file in whole.folder.rglob("*") if file.is_file() and file.name[0] != "."
    }
    code, told = whole.end(2)
    assert code == 0
    assert "round 1 of 2: done" in told
    assert whole.trained() == ["round-1", "round-2"]
    assert {file: file.stat().st_mtime_ns for file in times} == times
    page = (whole.folder / "index.html").read_text()
    assert f"answers of {whole.folder}/round-1/model" in page
    # A start that has less to do writes a page that is lost, of all rounds that are there.
    (whole.folder / "index.html").unlink()
    assert whole.end(1)[0] == 0
    assert (whole.folder / "index.html").read_text() == page
    code, told = whole.end(2, beta=0.3)
    assert code == 2
    assert "round 1 of" in told
    assert "beta was not set, now 0.3" in told


def test_status_of_a_loop_names_its_rounds(whole):
    done = subprocess.run(
        [sys.executable, "-m", "data_engine", "status", str(whole.folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert (
        f'"{whole.folder}" is the folder of a loop: name one of its rounds, as "{whole.folder}/round-2/run"'
        in done.stderr
    )


def test_a_loop_whose_trainer_fails_and_that_is_stopped_and_killed_ends_as_one_that_was_left_alone(
    made, whole, tmp_path
):
    loop = Loop(made, tmp_path)

    first = loop.start(2)
    until(lambda: list((loop.folder / "round-1/run/sampled_answer").glob("unit-*")), "a unit")
    assert stopped(first, signal.SIGTERM) == 75
    assert loop.trained() == []

    (loop.hook / "fail").touch()
    code, told = loop.end(2)
    assert code == 1
    assert "the trainer of round 1 failed (exit code 5)" in told
    assert "  no room on the device" in told
    assert "Traceback" not in told
    (loop.hook / "fail").unlink()

    (loop.hook / "wait").touch()
    second = loop.start(2)
    until((loop.hook / "waits").exists, "the trainer")
    assert stopped(second, signal.SIGINT) == 75

    (loop.hook / "waits").unlink()
    third = loop.start(2)
    until((loop.hook / "waits").exists, "the trainer")
    assert stopped(third, signal.SIGKILL) == -9
    # Its trainer lives on, and no other one starts beside it.
    code, told = loop.end(2)
    assert code == 2
    assert "what it started still does (process " in told
    os.kill(int(told.partition("(process ")[2].partition(")")[0]), signal.SIGKILL)
    (loop.hook / "wait").unlink()

    assert loop.end(2)[0] == 0
    assert loop.trained() == ["round-1"] * 4 + ["round-2"]
    assert [loop.dataset(number) for number in (1, 2)] == [whole.dataset(number) for number in (1, 2)]


def stopped(process: subprocess.Popen, number: int) -> int:
    process.send_signal(number)
    told, _ = process.communicate(timeout=PATIENCE_S)
    assert ("run the same command again to go on" in told) == (number != signal.SIGKILL), told
    return process.returncode


def test_a_round_without_pairs_ends_the_loop_with_4(made, tmp_path):
    """Both models are one: every reward is 0."""
    loop = Loop(made, tmp_path)
    code, told = loop.end(2, reward_model_path=GOLDENS / "instruct", min_margin=0.001)
    assert code == 4
    assert "no model was trained" in told
    assert loop.trained() == []
