"""Claims: which unit is in whose hands. Advisory: a wrong claim costs a unit's work twice, never a wrong result.

A claim is a file, made exclusively, that its owner touches while it works; it lapses when its owner is gone.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

# A claim that nobody has touched for this long has lost its owner.
LAPSE_S = 60.0
HEARTBEAT_S = 5.0


class Claims:
    """The claims of one process; `claims/` in the work directory is shared by all."""

    def __init__(self, work_dir: Path, rank: int) -> None:
        self.folder = work_dir / "claims"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._host = socket.gethostname()
        self._owner = {"host": self._host, "pid": os.getpid(), "born": _born(os.getpid()), "rank": rank}

    @contextlib.contextmanager
    def hold(self, stage: str, unit: int) -> Iterator[bool]:
        """True inside if the unit is ours now; given back at the end, kept fresh in between."""
        path = self.folder / f"{stage}-{unit:05d}.json"
        taken = self._create(path) or (self._lapsed(path) and self._take_over(path))
        if not taken:
            yield False
            return
        done = threading.Event()
        heart = threading.Thread(target=self._beat, args=(path, done), daemon=True)
        heart.start()
        try:
            yield True
        finally:
            done.set()
            heart.join()
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove the claims of owners that died; for when every unit is published."""
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)

    def _create(self, path: Path) -> bool:
        # Linked into place, so that nobody reads a claim without an owner in it.
        temporary = self.folder / f".{secrets.token_hex(8)}"
        temporary.write_text(json.dumps(self._owner))
        try:
            os.link(temporary, path)
        except (FileExistsError, FileNotFoundError):
            # Somebody's, or swept away since all is published.
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _take_over(self, path: Path) -> bool:
        path.unlink(missing_ok=True)
        return self._create(path)

    def _lapsed(self, path: Path) -> bool:
        try:
            owner, touched = json.loads(path.read_text()), path.stat().st_mtime
        except (FileNotFoundError, ValueError):
            return True
        if owner.get("host") == self._host and _born(owner.get("pid", -1)) != owner.get("born"):
            return True
        return self._now() - touched > LAPSE_S

    def _now(self) -> float:
        """The file system's clock, not this host's: hosts disagree."""
        probe = self.folder / f".{secrets.token_hex(8)}"
        with open(probe, "w") as file:
            now = os.fstat(file.fileno()).st_mtime
        probe.unlink(missing_ok=True)
        return now

    @staticmethod
    def _beat(path: Path, done: threading.Event) -> None:
        while not done.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(path)


def _born(pid: int) -> str | None:
    """When a process of this host started, in clock ticks since boot; None without one. Process ids repeat."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
