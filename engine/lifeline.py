"""Which of the ranks that work in lock-step is lost: each counts in a shared store, and misses one that stops counting.

A collective that waits for a dead rank hangs, or fails with the address of whoever noticed; this names the rank, within
LOST_S, whatever the ranks are in the middle of. Only ranks that share a split model have one.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from torch.distributed import Store

from data_engine.ranks import Ranks
from data_engine.records import LostRankError

BEAT_S = 1.0
# A rank that has not counted for this long is dead, or its machine is out of reach.
LOST_S = 15.0
# The main thread has this long to end by itself, which it cannot where a collective never returns.
LAST_WORDS_S = 10.0
# A count that says that the rank has ended by itself.
ENDED = 1 << 40


class Lifeline:
    """This rank's count, and its eyes on the others'. `store` is a connection of its own: the thread blocks on it."""

    def __init__(self, store: Store, ranks: Ranks, end: Callable[[str], None]) -> None:
        """`end` is called with the finding, from a thread, where the main thread does not end by itself."""
        self._store, self._ranks, self._end = store, ranks, end
        self._finding: str | None = None
        self._found, self._closed = threading.Event(), threading.Event()
        store.set(f"host-{ranks.rank}", socket.gethostname())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Inside, a call that fails because a rank is lost raises LostRankError, which names the rank."""
        try:
            yield
        except RuntimeError as error:
            # The failure comes at once, the finding takes a while.
            if self._found.wait(LOST_S + 3 * BEAT_S):
                raise LostRankError(self._finding) from error
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Look no more, and tell the others that this rank has ended by itself, unless it ends for another's sake."""
        self._closed.set()
        self._thread.join()
        if not self._finding:
            with contextlib.suppress(RuntimeError):
                self._store.add(self._key(self._ranks.rank), ENDED)

    @staticmethod
    def _key(rank: int) -> str:
        return f"beat-{rank}"

    def _watch(self) -> None:
        seen: dict[int, tuple[int, float]] = {}
        others = [rank for rank in range(self._ranks.world_size) if rank != self._ranks.rank]
        while not self._closed.wait(BEAT_S):
            try:
                self._store.add(self._key(self._ranks.rank), 1)
                self._finding = next(filter(None, (self._look(rank, seen) for rank in others)), None)
            except RuntimeError as error:
                self._finding = f"the launcher that the ranks meet at is gone ({error})"
            if self._finding:
                break
        else:
            return
        self._found.set()
        if not self._closed.wait(LAST_WORDS_S):
            self._end(self._finding)

    def _look(self, rank: int, seen: dict[int, tuple[int, float]]) -> str | None:
        count, now = self._store.add(self._key(rank), 0), time.monotonic()
        if count != seen.get(rank, (-1, 0.0))[0]:
            seen[rank] = count, now
        if count >= ENDED:
            return f"{self._name(rank)} has ended: its own message says why"
        if now - seen[rank][1] > LOST_S:
            return f"{self._name(rank)} died, or has not been heard of for {LOST_S:.0f} s"
        return None

    def _name(self, rank: int) -> str:
        host = f"host-{rank}"
        known = self._store.check([host])
        return f"rank {rank}" + (f" on {self._store.get(host).decode()}" if known else "")
