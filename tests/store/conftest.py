"""What tests of files that must outlive a power cut share."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def steps_to_disk(monkeypatch) -> list[str]:
    """Names in the order in which files and folders are synced and get their names: "sync NAME", and "NAME"."""
    done, replace, rename = [], os.replace, os.rename

    def synced(descriptor):
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda old, new: done.append(Path(new).name) or replace(old, new))
    monkeypatch.setattr(os, "rename", lambda old, new: done.append(Path(new).name) or rename(old, new))
    return done
