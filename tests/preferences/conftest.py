"""A run whose units are published, to be paired."""

import pytest
from stage2_world import make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def work_dir(world, tmp_path):
    world.publish(tmp_path / "work")
    return tmp_path / "work"
