"""Runs with --sampler vllm over a stand-in for vLLM, on tiny checkpoints."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import vllm_stand_in
from vllm_stand_in import LENGTH, NUM_QUESTIONS, K

from data_engine import load_model
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job import worker


def tiny():
    """The checkpoints that the tests of the real vLLM use."""
    path = Path(__file__).parents[1] / "by_vllm" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny_for_vllm", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory, one_thread):
    parent = tmp_path_factory.mktemp("models")
    made = tiny()
    return {"instruct": made.llava(parent / "instruct", 0), "reward": made.llava(parent / "reward", 1),
            "qwen": made.qwen(parent / "qwen")}  # fmt: skip


@pytest.fixture(scope="module")
def model(folders):
    return load_model(None, str(folders["instruct"]), device="cpu", dtype="float32")


@pytest.fixture
def vllm(monkeypatch, model):
    state = vllm_stand_in.install(monkeypatch)
    state.model = model
    return state


@pytest.fixture
def settings(folders, goldens, tmp_path):
    """Settings of a run by vLLM."""

    def make(**changes: object) -> RunConfig:
        paths = {f"{role}_model_path": folders[role] for role in ("instruct", "reward")}
        paths |= {"dataset_path": goldens / "llava/dataset/questions.parquet", "work_dir": tmp_path / "work"}
        common = {"sampler": "vllm", "sample_k": K, "rank": 2, "distance": 1000, "max_new_tokens": LENGTH, "threads": 1,
                  "unit_size": 2, "limit": NUM_QUESTIONS, "dtype": "float32"}  # fmt: skip
        return RunConfig(**{name: str(path) for name, path in paths.items()} | common | changes)

    return make


@pytest.fixture
def refusal() -> Callable[..., str]:
    """What a run, given as its settings or as what makes them, is refused with."""

    def get(config) -> str:
        with pytest.raises(UserError) as caught:
            worker.run(config() if callable(config) else config)
        return str(caught.value)

    return get
