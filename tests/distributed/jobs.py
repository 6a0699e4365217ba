"""Runs of the engine as real processes, and what they left: used by the tests beside it."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import fork_server
import pyarrow as pa
import pyarrow.parquet as pq

from data_engine import stages
from data_engine.store.units import left_out

ROOT = Path(__file__).parents[2]
# In front of what is there, so that ranks run the code that the tests run; without the packages of the families' tests,
# since the torchvision there can only be imported behind a stand-in for its compiled part.
INHERITED = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
PYTHONPATH = os.pathsep.join(
    [str(Path(__file__).parent), *(part for part in INHERITED if not (Path(part) / "torchvision").is_dir())]
)
GOLDENS = ROOT / "tests/goldens/llava"
# Of any run; one that a run has not leaves no folder.
STAGES = tuple(stages.known())


def split_settings(folder: Path) -> Path:
    """Every weight divided, however small, and none kept: DeepSpeed would leave weights of this size whole."""
    settings = json.loads((ROOT / "launch/deepspeed/zero3.json").read_text())
    settings["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 1}
    path = folder / "zero3.json"
    path.write_text(json.dumps(settings))
    return path


def write_questions(path: Path, num: int) -> Path:
    """`num` questions on the goldens' images, each with a text of its own."""
    rows = pq.read_table(GOLDENS / "dataset/questions.parquet").to_pylist()
    questions = [
        {**rows[i % len(rows)], "idx": f"q{i:04d}", "question": f"{rows[i % len(rows)]['question']} Is it {i % 7}?"}
        for i in range(num)
    ]
    pq.write_table(pa.Table.from_pylist(questions), path)
    return path


def write_hard_questions(path: Path, num: int) -> tuple[str, ...]:
    """`num` questions whose pictures are files, and four rows among them that are left out, three for good.

    Returns the flag that says where the pictures are.
    """
    write_questions(path, num)
    rows, pictures = pq.read_table(path).to_pylist(), path.parent / "pictures"
    pictures.mkdir()
    for row in rows:
        (pictures / f"{row['idx']}.png").write_bytes(row["image"]["bytes"])
        row["image"] = {"bytes": None, "path": f"{row['idx']}.png"}
    bad = [
        {**rows[0], "idx": "broken", "image": {"bytes": b"no picture", "path": None}},
        {**rows[0], "idx": "silent", "question": None},
        {**rows[0], "idx": "long", "question": "why " * 5000},
        {**rows[0], "idx": "away", "image": {"bytes": None, "path": "away.png"}},
    ]
    for number, row in enumerate(bad):
        rows.insert(2 + 4 * number, row)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return ("--image_root", str(pictures))


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}


SERVER = fork_server.Server(_environment())


@dataclass(frozen=True)
class Job:
    """The flags of a run, and how to start it."""

    dataset: Path
    work_dir: Path
    flags: tuple[str, ...] = ()
    instruct: Path = GOLDENS / "instruct"
    reward: Path = GOLDENS / "reward"

    def arguments(self) -> list[str]:
        paths = ["--instruct_model_path", self.instruct, "--reward_model_path", self.reward]
        paths += ["--dataset_path", self.dataset, "--work_dir", self.work_dir]
        return [*map(str, paths), "--threads", "1", *self.flags]

    def start(
        self, *launcher: str, program: str = "data_engine", **environment: str
    ) -> subprocess.Popen | fork_server.Forked:
        """Without a launcher a single process, forked; otherwise what stands before `-m program run`."""
        environment = {**_environment(), **environment}
        if not launcher and SERVER.fits(environment):
            return SERVER.start(program, ["run", *self.arguments()], ROOT, [environment])
        command = [*launcher] if launcher else [sys.executable]
        command += [] if command[0].endswith(".sh") else ["-m", program, "run"]
        return subprocess.Popen(
            [*command, *self.arguments()],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *launcher: str, code: int | None = 0, **options: str) -> str:
        """Run to the end; the output, once the exit code was the expected one (None: any but 0)."""
        return self._finish(self.start(*launcher, **options), code)

    def world(self, num_processes: int, code: int | None = 0, program: str = "data_engine", **environment: str) -> str:
        """As `run`, by several ranks that no launcher starts: forked."""
        return self._finish(forked_world(num_processes, program, ["run", *self.arguments()], **environment), code)

    def _finish(self, process: subprocess.Popen | fork_server.Forked, code: int | None) -> str:
        output, _ = process.communicate(timeout=600)
        wrong = process.returncode == 0 if code is None else process.returncode != code
        assert not wrong, f"exit code {process.returncode}, expected {code}\n{output}"
        return output

    def engine_script(self, num_processes: int, code: int | None = 0, **options: str) -> str:
        """Through launch/run_engine.sh, on CPU."""
        return self.run(
            str(ROOT / "launch/run_engine.sh"),
            code=code,
            NUM_PROCESSES=str(num_processes),
            ACCELERATE_CONFIG=str(ROOT / "launch/accelerate/cpu.yaml"),
            PYTHON=sys.executable,
            **options,
        )


def forked_world(
    num_processes: int, program: str, flags: list[str], *, folder: Path = ROOT, server: fork_server.Server = SERVER,
    **environment: str,
) -> fork_server.Forked:  # fmt: skip
    """`python -m program flags` as each of several ranks, with the variables of torchrun, in a folder."""
    shared = {**_environment(), **environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    world = str(num_processes)
    ranks = [
        {**shared, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        for rank in map(str, range(num_processes))
    ]
    return server.start(program, flags, folder, ranks)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def torchrun(num_processes: int) -> tuple[str, ...]:
    # --standalone: a free port of its own, so that jobs may run beside each other
    return (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes))


@dataclass(frozen=True)
class Result:
    """What must not depend on how a job was run."""

    dataset: dict[str, str]
    units: dict[str, list[dict]]
    left_out: list[dict]

    @classmethod
    def of(cls, work_dir: Path) -> "Result":
        files = sorted((work_dir / "dataset").iterdir())
        return cls(
            {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
            {
                f"{stage}/{file.name}": pq.read_table(file).to_pylist()
                for stage in STAGES
                for file in sorted((work_dir / stage).glob("*"))
            },
            list(left_out(work_dir)),
        )


def ranks_that_worked(job: Job) -> int:
    """How many ranks published a unit."""
    return len([file for file in (job.work_dir / "logs").glob("rank-*.jsonl") if '"unit"' in file.read_text()])


def stray_files(work_dir: Path) -> list[Path]:
    """What no finished run leaves: temporary files, claims, scratch folders."""
    known = {
        "run.json",
        "hashes",
        *STAGES,
        "pairs",
        "dataset",
        "report",
        "logs",
        "claims",
        "debug",
        "damaged",
        "paths",
        "replaced",
    }
    stray = [path for path in work_dir.rglob("*") if path.name.startswith(".")]
    stray += [path for path in work_dir.iterdir() if path.name not in known]
    return stray + list((work_dir / "claims").glob("*"))
