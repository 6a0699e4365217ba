"""Copies of golden checkpoints that a test may spoil, the text side of models without weights, and kernels counted."""

import shutil
from collections import Counter
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
    from data_engine.models.auto.text.chat import Chat

    return cache(lambda name: Chat.load(folders(name)))


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """How often each kernel was called that stands for operations of a layer."""
    from fused_layers import OPERATIONS

    from data_engine.models.layers import fused

    counted: Counter = Counter()
    for name in OPERATIONS:
        plain = getattr(fused, name)

        def counting(*given, name=name, plain=plain, **options):
            counted[name] += 1
            return plain(*given, **options)

        monkeypatch.setattr(fused, name, counting)
    return counted


@pytest.fixture
def known_anew():
    """Code that is known is found in the test, and again behind it."""
    from data_engine.models.layers import fused

    for found in (fused._known_modules, fused._known_rotary, fused._attention):
        found.cache_clear()
    yield
    for found in (fused._known_modules, fused._known_rotary, fused._attention):
        found.cache_clear()
