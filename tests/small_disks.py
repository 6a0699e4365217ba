"""Real file systems that fill up: of memory, mounted for a test, and mounted anew with other room within it."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own in `folder`/disk, of "size=400k", say. Where none can be mounted, a test is skipped."""
    target = folder / "disk"
    target.mkdir()
    if _mount("-t", "tmpfs", "-o", options, "tmpfs", str(target)):
        pytest.skip("no file system can be mounted here")
    try:
        yield target
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


def with_room(disk: Path, size: str) -> None:
    """Give it another size."""
    assert _mount("-o", f"remount,size={size}", str(disk)) == 0


def _mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode
