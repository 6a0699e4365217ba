"""Heartbeats through a TCPStore: a rank that is silent for LOST_S is reported by name to those in lock-step with it.

A collective that waits for a dead rank hangs, or fails with the address of the rank that noticed. The heartbeats name
the dead rank, whatever the ranks are doing. Only ranks that share a split model send them.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from torch.distributed import Store

from data_engine.errors import LostRankError, first_line
from data_engine.processes.ranks import Ranks

BEAT_S = 1.0
# A rank that has sent no heartbeat for this long is dead, or its machine cannot be reached.
LOST_S = 20.0
# Rank 0 serves the store, and waits so long for the last calls of the others.
LAST_CALLS_S = 3.0
# The main thread has this long to exit by itself; it cannot while a collective never returns.
EXIT_GRACE_S = 10.0
# Added to a rank's count when it exits by itself.
ENDED = 1 << 40


class Heartbeats:
    """This rank's heartbeats, and a watch over those of the others.

    Each rank increments a count in the store. One thread talks to the store, whose calls may never return; another one
    watches the counts that it read.
    """

    def __init__(self, store: Store, ranks: Ranks, exit_process: Callable[[str], None]) -> None:
        """`store` is served by rank 0.

        `exit_process` is called from a thread, with a message, where a rank is lost and the main thread does not exit.
        """
        self._store, self._rank, self._exit_process = store, ranks.rank, exit_process
        # Of each other rank: its last count, and when it last changed.
        self._counts = {rank: (-1, time.monotonic()) for rank in range(ranks.world_size) if rank != ranks.rank}
        self._hosts: dict[int, str] = {}
        # Why this rank ends, and what others said of themselves.
        self._reason: str | None = None
        self._reasons: dict[int, str] = {}
        self._message: str | None = None
        self._lost, self._closed = threading.Event(), threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        threading.Thread(target=self._watch, daemon=True).start()

    @contextlib.contextmanager
    def naming_lost_ranks(self) -> Iterator[None]:
        """Inside, a call that fails because a rank is lost raises LostRankError, which names the rank."""
        try:
            yield
        except Exception as error:
            self._reason = first_line(error)
            if isinstance(error, LostRankError):
                raise LostRankError(f"{self._name(self._rank)}: {error}") from None
            # The call fails at once, while a rank counts as lost only after LOST_S.
            if isinstance(error, RuntimeError) and self._lost.wait(LOST_S + 3 * BEAT_S):
                raise LostRankError(self._message) from error
            raise
        finally:
            self._closed.set()
            # With a timeout: the store may be gone.
            self._beating.join(LAST_CALLS_S + BEAT_S)

    def _beat(self) -> None:
        try:
            self._hosts[self._rank] = socket.gethostname()
            self._store.set(f"host-{self._rank}", self._hosts[self._rank])
            self._hosts |= {rank: self._store.get(f"host-{rank}").decode() for rank in self._counts}
            while not self._closed.wait(BEAT_S):
                self._store.add(_key(self._rank), 1)
                for rank, (before, _) in self._counts.items():
                    count = self._store.add(_key(rank), 0)
                    if count >= ENDED and self._store.check([f"reason-{rank}"]):
                        self._reasons[rank] = self._store.get(f"reason-{rank}").decode()
                    if count != before:
                        self._counts[rank] = count, time.monotonic()
            # A rank that exits because another one is lost must not be named itself.
            if not self._message:
                if self._reason:
                    self._store.set(f"reason-{self._rank}", self._reason)
                self._store.add(_key(self._rank), ENDED)
            if self._rank == 0:
                self._serve_last_calls()
        except RuntimeError:
            # The store is gone, and with it rank 0.
            if 0 in self._counts:
                self._counts[0] = -1, -LOST_S

    def _serve_last_calls(self) -> None:
        """Return when the others have ended by themselves; where one is lost, they still learn here which."""
        end = time.monotonic() + LAST_CALLS_S
        while any(self._store.add(_key(rank), 0) < ENDED for rank in self._counts) and time.monotonic() < end:
            time.sleep(BEAT_S / 10)

    def _watch(self) -> None:
        while not self._closed.wait(BEAT_S):
            # Rank 0 last: when it exits because another rank is lost, the store is gone too.
            self._message = next(filter(None, map(self._fault_of, reversed(self._counts))), None)
            if self._message:
                self._lost.set()
                if not self._closed.wait(EXIT_GRACE_S):
                    self._exit_process(self._message)
                return

    def _fault_of(self, rank: int) -> str | None:
        """What is wrong with a rank, or None."""
        count, changed = self._counts[rank]
        name = self._name(rank)
        if count >= ENDED:
            return f"{name} has ended: {self._reasons.get(rank, 'its own message says why')}"
        if time.monotonic() - changed > LOST_S:
            return f"{name} died, or has not been heard of for {LOST_S:.0f} s"
        return None

    def _name(self, rank: int) -> str:
        return f"rank {rank}" + (f" on {self._hosts[rank]}" if rank in self._hosts else "")


def _key(rank: int) -> str:
    return f"beat-{rank}"
