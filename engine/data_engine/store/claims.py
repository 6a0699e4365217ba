"""Claims: which rank computes which unit. Advisory: a wrong claim costs a unit's work twice, never a wrong result.

Without them, idle ranks would all compute the same units. A claim is a file, created exclusively, that its owner
touches while it works; it lapses when its owner has died.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

# The owner of a claim that was not touched for so long counts as dead. Measured by this process's monotonic clock,
# since the clocks of hosts and file servers disagree, and jump.
LAPSE_S = 60.0
HEARTBEAT_S = 5.0


class Claims:
    """The claims of one process; `claims/` in the work directory is shared by all."""

    def __init__(self, work_dir: Path, rank: int) -> None:
        self.folder = work_dir / "claims"
        self.folder.mkdir(parents=True, exist_ok=True)
        # Of each claim of others: when it was last touched, and when that was first seen.
        self._seen: dict[Path, tuple[int, float]] = {}
        self._host = socket.gethostname()
        self._owner = {"host": self._host, "pid": os.getpid(), "born": _born(os.getpid()), "rank": rank}

    @contextlib.contextmanager
    def hold(self, stage: str, unit: int) -> Iterator[bool]:
        """True inside if this process has the claim now; it is touched while the body runs, and removed at the end."""
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
        # Linked into place whole, so that no reader finds a claim without its owner.
        temporary = self.folder / f".{secrets.token_hex(8)}"
        temporary.write_text(json.dumps(self._owner))
        try:
            os.link(temporary, path)
        except (FileExistsError, FileNotFoundError):
            # Another rank has it, or all units are published and the folder was swept.
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _take_over(self, path: Path) -> bool:
        path.unlink(missing_ok=True)
        return self._create(path)

    def _lapsed(self, path: Path) -> bool:
        try:
            owner, touched = json.loads(path.read_text()), path.stat().st_mtime_ns
        except (FileNotFoundError, ValueError):
            return True
        if owner.get("host") == self._host and _born(owner.get("pid", -1)) != owner.get("born"):
            return True
        now = time.monotonic()
        if self._seen.get(path, (None, 0))[0] != touched:
            self._seen[path] = touched, now
        return now - self._seen[path][1] > LAPSE_S

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
