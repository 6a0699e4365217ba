"""Copies of golden checkpoints that a test may spoil, and the text side of models without weights, made once."""

import shutil
from functools import cache
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


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The folder of each family, made when it is asked for."""
    import chat_folders

    made = chat_folders.FAMILIES
    return cache(lambda name: chat_folders.saved(made[name](), tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def chats(folders):
    """The text side of each family."""
    from data_engine.models.auto.chat import Chat

    return cache(lambda name: Chat.load(folders(name)))
