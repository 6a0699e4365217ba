"""Every test here runs for each family that its `name` is asked for; those of `make test` need no torchvision."""

import pytest
import torchvision_names  # noqa: F401, before any test imports transformers
from families import FAMILIES, named


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, one_thread):
    """Name -> checkpoints.Checkpoint, made when it is first asked for."""
    from checkpoints import Checkpoint

    parent, made = tmp_path_factory.mktemp("families"), {}

    def get(name: str) -> Checkpoint:
        if missing := FAMILIES[name].missing():
            pytest.skip(f"the processor of {name} needs {missing}")
        if name not in made:
            made[name] = Checkpoint(name, parent)
        return made[name]

    return get


@pytest.fixture(params=named(FAMILIES))
def checkpoint(request, checkpoints):
    """Each family's checkpoint in turn."""
    return checkpoints(request.param)
