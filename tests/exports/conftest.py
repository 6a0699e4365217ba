"""A finished run for the tests of the command; other tests have a world of their own."""

from pathlib import Path

import pytest
from hostile_world import publish_run
from stage2_world import World, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """30 questions with a picture each."""
    return make_world(tmp_path_factory.mktemp("export") / "world")


@pytest.fixture(scope="module")
def work_dir(world, tmp_path_factory) -> Path:
    """A finished run on them, which no test changes."""
    work_dir = tmp_path_factory.mktemp("export") / "work"
    publish_run(world, work_dir)
    return work_dir
