"""Runs of the engine with --sampler vllm, as real processes in vLLM's own environment: `make test-vllm` has it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
from waiting import told_of

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
QUESTIONS = ROOT / "tests/goldens/llava/dataset/questions.parquet"
K, LENGTH, UNIT = 4, 24, 4
ARGS = {"enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 16}
PATIENCE_S = 300
DIFFERENCE = re.compile(r"vllm's log-probs of drawn tokens differ by (\S+) nat a token")


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter of vLLM's environment."""
    found = os.environ.get("VLLM_PYTHON", "")
    if not os.access(found, os.X_OK):
        pytest.skip("no environment of vLLM: `make test-vllm` makes one (VLLM_PYTHON)")
    return found


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """One thread, a small cache, and the code of this checkout; nothing of this environment's own."""
    ours = {
        "PYTHONPATH": f"{ROOT / 'engine'}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1",
        # setproctitle, by which vLLM names its workers, else overwrites the environment that `children` reads.
        "SPT_NOENV": "1",
        # Every process imports thousands of files; compiled once, and kept, they take half the time.
        "PYTHONDONTWRITEBYTECODE": "",
    }  # fmt: skip
    return {**os.environ, **ours}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Kind of tiny model -> (instruct, reward): folders that both engines read."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            parent = tmp_path_factory.mktemp(kind)
            write = getattr(tiny, kind)
            made[kind] = write(parent / "instruct", 0), write(parent / "reward", 1)
        return made[kind]

    return get


@dataclass(frozen=True)
class Run:
    """A run over the golden questions, and what it left."""

    work: Path
    instruct: Path
    reward: Path
    python: str
    environment: dict[str, str]

    def start(self, *flags: str, launcher: tuple[str, ...] = (), **more: str) -> subprocess.Popen:
        """As one process, or by what stands in `launcher`."""
        command = [*launcher] or [self.python, "-m", "data_engine", "run"]
        settings = {
            "instruct_model_path": self.instruct, "reward_model_path": self.reward, "dataset_path": QUESTIONS,
            "work_dir": self.work, "sampler": "vllm", "vllm_args": json.dumps(ARGS), "sample_k": K, "rank": 2,
            "distance": 1000, "max_new_tokens": LENGTH, "unit_size": UNIT, "threads": 1,
        }  # fmt: skip
        asked = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        return subprocess.Popen(
            [*command, *asked, *flags], env=self.environment | more, cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen, code: int = 0) -> str:
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code, output
        return output

    def sampled(self) -> dict[int, bytes]:
        """The published units of answers."""
        folder = self.work / "sampled_answer"
        return {int(path.stem[5:]): path.read_bytes() for path in sorted(folder.glob("unit-*.parquet"))}

    def wait_for_units(self, least: int, process: subprocess.Popen) -> None:
        end = time.monotonic() + PATIENCE_S
        while len(self.sampled()) < least:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.01)

    def children(self) -> list[int]:
        """Processes that work on this run, whoever started them."""
        # What vLLM starts has a name of its own; the folder stands in its environment.
        mine = f"VLLM_TEST_RUN={self.work}\0".encode()
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if mine in told_of(path.name, "environ")]

    def workers(self) -> list[int]:
        """Those of them that are vLLM's workers."""
        return [pid for pid in self.children() if b"VLLM::Worker" in told_of(pid, "cmdline")]

    def answers(self) -> list[dict]:
        return pq.read_table(self.work / "sampled_answer").to_pylist()

    def require_complete(self) -> None:
        """Every answer of every question once, under each model; texts, ids and finish reasons belong together."""
        idx = pq.read_table(QUESTIONS)["idx"].to_pylist()
        wanted = Counter((one, index) for one in idx for index in range(K))
        for stage in ("sampled_answer", "instruct_logps", "reward_logps"):
            rows = pq.read_table(self.work / stage).to_pylist()
            assert Counter((row["idx"], row["sample_index"]) for row in rows) == wanted
        for row in self.answers():
            ended = row["token_ids"][-1] == self.end()
            assert row["finish_reason"] == ("stop" if ended else "length")
            assert len(row["token_ids"]) == LENGTH or ended
            assert self.end() not in row["token_ids"][:-1]
            assert row["answer"] == self.text(row["token_ids"])

    def end(self) -> int:
        config = json.loads((self.instruct / "config.json").read_text())
        return config["text_config"]["eos_token_id"]

    def text(self, ids: list[int]) -> str:
        """By the file of the tokenizer alone."""
        import tokenizers

        core = tokenizers.Tokenizer.from_file(str(self.instruct / "tokenizer.json"))
        return core.decode(ids, skip_special_tokens=True).strip()


@pytest.fixture
def run(tmp_path, checkpoints, python, environment):
    """Kind of model -> a Run in a folder of its own; none of its processes outlives the test."""
    made: list[Run] = []

    def make(kind: str) -> Run:
        work = tmp_path / "work"
        made.append(Run(work, *checkpoints(kind), python, environment | {"VLLM_TEST_RUN": str(work)}))
        return made[-1]

    yield make
    for one in made:
        for pid in one.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
