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

from data_engine.errors import LostRankError
from data_engine.processes.ranks import Ranks

BEAT_S = 1.0
# A rank that has not counted for this long is dead, or its machine is out of reach.
LOST_S = 20.0
# The main thread has this long to end by itself, which it cannot where a collective never returns.
LAST_WORDS_S = 10.0
# A count that says that the rank has ended by itself.
ENDED = 1 << 40


class Lifeline:
    """This rank's count, and its eyes on the others'.

    One thread talks to the store, which may never answer; another one looks at what was heard.
    """

    def __init__(self, store: Store, ranks: Ranks, end: Callable[[str], None]) -> None:
        """`store` is served by rank 0. `end` is called, from a thread, where the main thread does not end by itself."""
        self._store, self._rank, self._end = store, ranks.rank, end
        self._heard = {rank: (-1, time.monotonic()) for rank in range(ranks.world_size) if rank != ranks.rank}
        self._hosts: dict[int, str] = {}
        self._finding: str | None = None
        self._found, self._closed = threading.Event(), threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        threading.Thread(target=self._watch, daemon=True).start()

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Inside, a call that fails because a rank is lost raises LostRankError, which names the rank."""
        stay_s = 0.0
        try:
            yield
        except Exception as error:
            # Who is lost, or has ended, the others learn from the store that rank 0 serves.
            stay_s = 3 * BEAT_S if self._rank == 0 and self._heard else 0.0
            # The failure comes at once, the finding takes a while.
            if isinstance(error, RuntimeError) and self._found.wait(LOST_S + 3 * BEAT_S):
                raise LostRankError(self._finding) from error
            raise
        finally:
            self._closed.set()
            # Not for long: the store may be gone.
            self._beating.join(2 * BEAT_S)
            time.sleep(stay_s)

    def _beat(self) -> None:
        try:
            self._store.set(f"host-{self._rank}", socket.gethostname())
            self._hosts = {rank: self._store.get(f"host-{rank}").decode() for rank in self._heard}
            while not self._closed.wait(BEAT_S):
                self._store.add(_key(self._rank), 1)
                for rank, (before, _) in self._heard.items():
                    count = self._store.add(_key(rank), 0)
                    if count != before:
                        self._heard[rank] = count, time.monotonic()
            # A rank that ends for another's sake is not the one to be named.
            if not self._finding:
                self._store.add(_key(self._rank), ENDED)
        except RuntimeError:
            # Whoever served the store is gone.
            if 0 in self._heard:
                self._heard[0] = -1, -LOST_S

    def _watch(self) -> None:
        while not self._closed.wait(BEAT_S):
            # Rank 0 last: when it leaves for another's sake, the store goes with it.
            self._finding = next(filter(None, map(self._look, reversed(self._heard))), None)
            if self._finding:
                self._found.set()
                if not self._closed.wait(LAST_WORDS_S):
                    self._end(self._finding)
                return

    def _look(self, rank: int) -> str | None:
        count, when = self._heard[rank]
        name = f"rank {rank}" + (f" on {self._hosts[rank]}" if rank in self._hosts else "")
        if count >= ENDED:
            return f"{name} has ended: its own message says why"
        if time.monotonic() - when > LOST_S:
            return f"{name} died, or has not been heard of for {LOST_S:.0f} s"
        return None


def _key(rank: int) -> str:
    return f"beat-{rank}"
