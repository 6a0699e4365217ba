"""What several test files need: the tiny golden checkpoints, loaded once, and one thread, so that runs compare."""

import gc
import io
import json
import logging
import os
import shutil
import signal
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
GOLDENS = Path(__file__).parent / "goldens"

# Without the library, which a machine that runs the GPU's tests alone need not have, no test makes data up.
if find_spec("hypothesis"):
    import fuzzing

    fuzzing.load_from_environment()

# Where one of these asks for it, Python colours its tracebacks from 3.13 on and its helps from 3.14 on.
for name in ("FORCE_COLOR", "PYTHON_COLORS"):
    os.environ.pop(name, None)

# A shell starts what runs in its background with SIGINT ignored, nohup with SIGHUP, and all below would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes that are no text give a test no name.

    Packed ones hold the second in which they were packed, and all processes that share the tests must name them alike.
    """
    return argname if isinstance(val, bytes) and not val.isascii() else None


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Tests are collected without looking for garbage, which took a quarter of the time: all that is made then stays.

    Nor is it looked through once more behind that.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


# Before any test, and any fixture of a module, ran an engine.
HANDLERS = {
    number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)
}


@pytest.fixture(scope="session", autouse=True)
def unheard_signals():
    """A run in this process leaves its signals to pytest: Ctrl-C ends the tests. Runs in processes listen to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_engine.processes.signals.Stop.listen", lambda stop: stop)
        yield


@pytest.fixture(autouse=True)
def signals_as_before():
    """A test may listen to signals; no other meets its handlers, nor its alarm."""
    _set_handlers()
    yield
    _set_handlers()


def _set_handlers() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in HANDLERS.items():
        # None: it was not set by Python, and is not changed by it.
        if handler is not None:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def log_as_before():
    """A run in this process writes its log lines to stderr alone, where no test behind it would find them in caplog."""
    _reset_log()
    yield
    _reset_log()


def _reset_log() -> None:
    logger = logging.getLogger("data_engine")
    logger.handlers, logger.propagate = [], True
    # Setting it clears what all loggers of all libraries remember.
    if logger.level != logging.NOTSET:
        logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def one_thread_as_before():
    """A run in this process takes all cores unless --threads says less, and all tests behind it would go on so.

    Test processes beside each other then wait for cores by spinning, and take several times their time.
    """
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def unsynced():
    """In this process files are not forced to the disk: only a loss of power would tell. Processes do force them."""
    with pytest.MonkeyPatch.context() as patch:
        # As os.fsync, it refuses a descriptor that is closed.
        patch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)
        yield


@pytest.fixture(scope="session", autouse=True)
def undrawn_plots():
    """The report's figures are made but not drawn, which would be most of a tiny run's time. Processes draw them."""
    if find_spec("matplotlib"):
        from data_engine.reporting import plots

        plots._png, drawn = _undrawn, plots._png
        yield drawn
        plots._png = drawn
    else:
        yield None


def _undrawn(figure, dpi: int = 0) -> bytes:
    """A PNG of one pixel."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def drawn_plots(undrawn_plots):
    """For the tests that are about the plots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_engine.reporting.plots._png", undrawn_plots)
        yield


@pytest.fixture(scope="session")
def goldens() -> Path:
    return GOLDENS


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder that holds what README's commands ask for, with tiny models in the place of the real ones."""
    _lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def lay_out():
    """Makes a folder like `place`."""
    return _lay_out


def _lay_out(folder: Path) -> None:
    for name in ("configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "models").mkdir()
    (folder / "models" / "llava-v1.5-7b").symlink_to(GOLDENS / "llava" / "instruct")
    (folder / "models" / "RLAIF-V-7B").symlink_to(GOLDENS / "llava" / "reward")
    (folder / "models" / "OmniLMM-12B").symlink_to(GOLDENS / "omnilmm" / "instruct")
    (folder / "models" / "RLAIF-V-12B").symlink_to(GOLDENS / "omnilmm" / "reward")
    (folder / "data").mkdir()
    questions = pq.read_table(GOLDENS / "llava" / "dataset" / "questions.parquet")
    pq.write_table(questions, folder / "data" / "questions.parquet")
    (folder / "picture.jpg").write_bytes(questions["image"][0].as_py()["bytes"])
    words = ("red", "blue", "small", "large", "a cat", "a dog", "a bus", "a house")
    lines = [{"idx": idx, "answer": f"It is {word}."} for idx in questions["idx"].to_pylist() for word in words]
    (folder / "answers.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture
def without_runs(tmp_path, monkeypatch) -> Path:
    """A folder with configs/ and launch/ and nothing else, and a program called sbatch."""
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def planted(goldens, tmp_path) -> Path:
    """The YAML of `validated`, with a mistake in each setting."""
    from validated import plant

    return plant(goldens, tmp_path)


@pytest.fixture
def job(goldens, tmp_path) -> dict[str, str]:
    """The flags of `validated`, without a mistake."""
    from validated import flags_of

    return flags_of(goldens, tmp_path)


@pytest.fixture
def config(tmp_path, one_thread):
    """Settings of a quick run."""
    return partial(_settings, tmp_path / "work")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory, one_thread):
    """Makes a finished run, in a folder of its own, that all tests of a module read: its work_dir."""
    from data_engine.job import worker

    def make(dataset: Path, **changes: object) -> Path:
        work = tmp_path_factory.mktemp("made") / "work"
        assert worker.run(_settings(work, dataset, **changes)) == 0
        return work

    return make


def _settings(work: Path, dataset: Path, **changes: object):
    from data_engine.config import RunConfig

    paths = {"instruct_model_path": GOLDENS / "llava/instruct", "reward_model_path": GOLDENS / "llava/reward"}
    paths |= {"dataset_path": dataset, "work_dir": work}
    settings = {"sample_k": 4, "rank": 2, "distance": 1000, "max_new_tokens": 8, "unit_size": 4, "threads": 1}
    return RunConfig(**{name: str(path) for name, path in paths.items()} | settings | changes)


@pytest.fixture(scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def instruct(one_thread):
    return _load("llava/instruct")


@pytest.fixture(scope="session")
def reward(one_thread):
    return _load("llava/reward")


@pytest.fixture(scope="session")
def omni_instruct(one_thread):
    return _load("omnilmm/instruct")


@pytest.fixture(scope="session")
def omni_reward(one_thread):
    return _load("omnilmm/reward")


def _load(name: str):
    from data_engine import load_model

    return load_model(None, str(GOLDENS / name), device="cpu", dtype="float32")


@pytest.fixture
def narrow_bench(monkeypatch) -> None:
    """The bench's built-in model has few, narrow layers: for tests of which calls it makes, not of what they compute.

    Its prompts are as long as ever.
    """
    from data_engine.bench import shapes

    monkeypatch.setitem(shapes._LLAVA, "small", ((64, 172, 2, 2), (32, 64, 2, 2)))


@pytest.fixture(scope="session")
def golden_rows() -> list[dict]:
    """The 32 fixed answers, 4 a question: question, chosen, image (bytes)."""
    return pq.read_table(next((GOLDENS / "llava/sampled_answer").glob("*.parquet"))).to_pylist()


@pytest.fixture(scope="session")
def golden_images(golden_rows) -> list[Image.Image]:
    """The 8 questions' images, RGB."""
    return [Image.open(io.BytesIO(row["image"])).convert("RGB") for row in golden_rows[::4]]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, one_thread):
    """A bound_run.Run of which every stage is done; a test works on a copy."""
    from bound_run import Run

    made = Run(tmp_path_factory.mktemp("bound") / "run").make()
    assert made.start() == 0
    return made


@pytest.fixture
def run(finished, tmp_path):
    """A finished run of its own."""
    return finished.copy(tmp_path / "run")


@pytest.fixture
def sampled(run):
    """A run of which stage 0 alone is done."""
    for stage in ("instruct_logps", "reward_logps"):
        shutil.rmtree(run.work / stage)
    return run
