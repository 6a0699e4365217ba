"""The stand-in for the hub, and a process that pushes to it, made once for all tests of it."""

import pytest
from hub_pusher import Pusher, write_export
from hub_stand_in import serve


@pytest.fixture(scope="session")
def server():
    with serve() as hub:
        yield hub


@pytest.fixture(scope="session")
def pusher(server, tmp_path_factory):
    made = Pusher(server, tmp_path_factory.mktemp("pusher") / "process")
    yield made
    made.end()


@pytest.fixture
def hub(server):
    """The stand-in, empty."""
    server.forget()
    return server


@pytest.fixture
def ask(hub, pusher):
    return pusher


@pytest.fixture
def export(tmp_path):
    return write_export(tmp_path / "export")
