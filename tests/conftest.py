"""What several test files need: the tiny golden checkpoints, loaded once, and one thread, so that runs compare."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def goldens() -> Path:
    return GOLDENS


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


@pytest.fixture(scope="session")
def golden_rows() -> list[dict]:
    """The 32 fixed answers, 4 a question: question, chosen, image (bytes)."""
    return pq.read_table(next((GOLDENS / "llava/sampled_answer").glob("*.parquet"))).to_pylist()


@pytest.fixture(scope="session")
def golden_images(golden_rows) -> list[Image.Image]:
    """The 8 questions' images, RGB."""
    return [Image.open(io.BytesIO(row["image"])).convert("RGB") for row in golden_rows[::4]]
