"""Claims: which rank computes which unit. Advisory: a wrong claim costs a unit's work twice, never a wrong result.

Without them, idle ranks would all compute the same units. A claim is a file, created exclusively, that its owner
touches while it works; it lapses when its owner has died. Its owner removes it, or who takes it over once it has
lapsed, and nobody else.
"""

import contextlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_engine.store.absent import is_absent
from data_engine.store.atomic import link
from data_engine.store.process_identity import ProcessIdentity

# The owner of a claim that was not touched for so long counts as dead. Measured by this process's monotonic clock,
# since the clocks of hosts and file servers disagree, and jump.
LAPSE_S = 60.0
HEARTBEAT_S = 5.0
# Instead of a stage, in the one claim of whoever makes the pairs.
PAIRING = "pairing"
CLAIM_FILE = re.compile(r"([^.].*)-(\d{5,})\.json")


@dataclass(frozen=True)
class _Found:
    """A claim as it was read. Two of one unit differ in their text, which holds a random number."""

    text: str
    touched_ns: int


@dataclass(frozen=True)
class Held:
    """A unit that a rank has claimed, and when it was last touched, by the clock of the file server (unix time)."""

    stage: str
    unit: int
    rank: int
    owner: ProcessIdentity
    touched: float


def held(work_dir: Path) -> list[Held]:
    """The claims that are there now, also those of owners that died; half a claim is left out."""
    with contextlib.suppress(FileNotFoundError):
        return [claim for path in (work_dir / "claims").iterdir() if (claim := _held(path))]
    return []


def _held(path: Path) -> Held | None:
    named = CLAIM_FILE.fullmatch(path.name)
    found = _read(path) if named else None
    if found is None:
        return None
    try:
        fields = json.loads(found.text)
        owner, rank = ProcessIdentity.from_json(fields), int(fields["rank"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return Held(named[1], int(named[2]), rank, owner, found.touched_ns / 1e9)


class Claims:
    """The claims of one process; `claims/` in the work directory is shared by all."""

    def __init__(self, work_dir: Path, rank: int) -> None:
        self.folder = work_dir / "claims"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rank, self._me = rank, ProcessIdentity.of_this_process()
        # The text of each claim that this process holds, as far as it knows.
        self._mine: dict[Path, str] = {}
        # Of each claim of others: what was found, and when that was first seen.
        self._seen: dict[Path, tuple[_Found, float]] = {}

    @contextlib.contextmanager
    def hold(self, stage: str, unit: int) -> Iterator[bool]:
        """True inside if this process has the claim now; it is touched while the body runs, and removed at the end."""
        path = self._path(stage, unit)
        mine = json.dumps({**vars(self._me), "rank": self._rank, "claim": secrets.token_hex(8)})
        if not (self._create(path, mine) or (self._remove_lapsed(path) and self._create(path, mine))):
            yield False
            return
        self._mine[path] = mine
        done = threading.Event()
        heart = threading.Thread(target=self._beat, args=(path, mine, done), daemon=True)
        heart.start()
        try:
            yield True
        finally:
            done.set()
            heart.join()
            del self._mine[path]
            # Advisory: a claim that a failing disk keeps lapses, and must not hide what the body raised.
            with contextlib.suppress(OSError):
                self._give_back(path, mine)

    def still_holds(self, stage: str, unit: int) -> bool:
        """Inside of `hold`: whether the claim is there yet. Another process takes it over from one that was stopped."""
        path = self._path(stage, unit)
        found = _read(path)
        return found is not None and found.text == self._mine[path]

    def _path(self, stage: str, unit: int) -> Path:
        return self.folder / f"{stage}-{unit:05d}.json"

    def sweep(self) -> None:
        """Remove the claims of owners that died and what they left beside them; for when every unit is published."""
        probe = self.folder / f".{secrets.token_hex(8)}"
        try:
            # The time of the file server, which also dates the touches. Of the open file: another process that sweeps
            # at the same time takes this one for half a claim, and removes it.
            with open(probe, "xb") as file:
                now_ns = os.fstat(file.fileno()).st_mtime_ns
        finally:
            probe.unlink(missing_ok=True)
        for path in self.folder.iterdir():
            found = _read(path)
            if found and (self._owner_has_died(found) or now_ns - found.touched_ns > LAPSE_S * 1e9):
                # Another rank may have taken the unit over since.
                self._remove(path, lambda now, swept=found: now == swept)

    def _create(self, path: Path, mine: str) -> bool:
        # Linked into place whole, so that no reader finds a claim without its owner.
        temporary = self.folder / f".{secrets.token_hex(8)}"
        try:
            temporary.write_text(mine)
            link(temporary, path)
        except OSError as error:
            # Another rank has it, or has swept the folder because all units are published.
            if not (isinstance(error, FileExistsError) or is_absent(error)):
                raise
            # Where somebody has removed the folder; without a work_dir this fails.
            self.folder.mkdir(exist_ok=True)
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _give_back(self, path: Path, mine: str) -> None:
        found = _read(path)
        if found and found.text == mine:
            self._remove(path, lambda now: now.text == mine)

    def _remove_lapsed(self, path: Path) -> bool:
        """Remove the claim if its owner has died; True if the place is free."""
        lapsed = _read(path)
        if lapsed is None:
            return True
        if not self._has_lapsed(path, lapsed):
            return False
        # Another rank may have seen the same lapse, and have claimed the unit since; or the owner lives after all.
        return _read(path) == lapsed and self._remove(path, lambda now: now == lapsed)

    def _remove(self, path: Path, is_meant: Callable[[_Found], bool]) -> bool:
        """Remove the claim that `is_meant`, and no other one that may have come into its place; True if it was."""
        tombstone = self.folder / f".{path.name}.{secrets.token_hex(8)}"
        try:
            os.rename(path, tombstone)
        except OSError as error:
            if is_absent(error):
                return False
            raise
        try:
            removed = _read(tombstone)
            if removed is None or is_meant(removed):
                return True
            # Not over a claim that was made in between. Another rank may have swept this one, which has lapsed since.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                link(tombstone, path)
            return False
        finally:
            tombstone.unlink(missing_ok=True)

    def _has_lapsed(self, path: Path, found: _Found) -> bool:
        if self._owner_has_died(found):
            return True
        now = time.monotonic()
        if path not in self._seen or self._seen[path][0] != found:
            self._seen[path] = found, now
        return now - self._seen[path][1] > LAPSE_S

    def _owner_has_died(self, found: _Found) -> bool:
        """Certain death only. Of a process of another host, boot or container, only time tells."""
        try:
            owner = ProcessIdentity.from_json(json.loads(found.text))
        except ValueError:
            # Half a claim, which a crash of the machine has left.
            return True
        return self._me.sees(owner) and owner.has_ended()

    @staticmethod
    def _beat(path: Path, mine: str, done: threading.Event) -> None:
        while not done.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                found = _read(path)
                # Whoever took the claim over touches it, and lets it lapse, without this process's help.
                if found and found.text == mine:
                    os.utime(path)


def _read(path: Path) -> _Found | None:
    """What stands in a claim, and when it was touched; None where there is none."""
    try:
        with open(path, "rb") as file:
            # Of one open file, and opened anew: NFS asks the server then, and may answer a plain stat from memory.
            return _Found(file.read().decode(errors="replace"), os.fstat(file.fileno()).st_mtime_ns)
    except OSError as error:
        if is_absent(error):
            return None
        raise
