"""Copies of golden checkpoints that a test may spoil."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(goldens, tmp_path) -> Path:
    """A copy of a LLaVA checkpoint in two shards, with CLIP beside it."""
    shutil.copytree(goldens / "llava/openai", tmp_path / "openai")
    return Path(shutil.copytree(goldens / "llava/instruct", tmp_path / "model"))


@pytest.fixture
def omni(goldens, tmp_path) -> Path:
    return Path(shutil.copytree(goldens / "omnilmm/instruct", tmp_path / "omni"))
