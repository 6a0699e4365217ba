"""The rank's end of a rule: it starts the process of worker.py, sends it questions, and replaces one that dies."""

import contextlib
import errno
import json
import pickle
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_engine.errors import UserError
from data_engine.processes import isolated
from data_engine.processes.isolated import Isolated
from data_engine.processes.ranks import unlaunched
from data_engine.rules.chosen import Rule
from data_engine.rules.worker import Limits, SetUp, receive, send
from data_engine.store import disk

# A question that ends a worker so many times is given up. What else the machine does may have ended the first one.
TRIES = 2
# Errors of the system in a rule that are none of the rule's: of a disk, or of a limit on memory or processes.
OF_THE_MACHINE = (*disk.TROUBLES, errno.ENOMEM, errno.EAGAIN)
# The worker ends itself; where it cannot, the rank ends it so many seconds later.
SPARE_S = 5
COMMAND = isolated.command("data_engine.rules.worker")


@dataclass(frozen=True)
class Judged:
    """What a rule made of the answers to a question: an entry an answer in both, or `problem`."""

    scores: tuple[float | None, ...] = ()
    reasons: tuple[str | None, ...] = ()
    """why an answer has no score; None where it has one, or where the rule gave None"""
    problem: str | None = None
    """why the question has no scores at all"""
    is_limit: bool = False
    """the problem is a limit or the end of the process, and may be another one's fault"""
    is_missing: bool = False
    """the problem is what the machine did, such as to kill the process, and may be gone at the next start"""


class RuleProcess:
    """The worker of a rule, started when it is first asked."""

    def __init__(self, rule: Rule, limits: Limits, collected: Sequence[object] = ()) -> None:
        self._set_up = SetUp(
            rule.shown.rpartition(":")[0],
            rule.source,
            rule.function or rule.shown,
            rule.module,
            list(collected),
            limits,
        )
        self._rule, self._limits = rule, limits
        self._worker: _Worker | None = None
        self.read: list[str] = []
        """files that the rule has read while it was imported"""

    def start(self) -> None:
        """Start the worker, if there is none. Raises UserError where the rule cannot be imported."""
        if (killed := self._started()) is not None:
            raise UserError(f'rule "{self._rule.shown}": {killed}')

    def _started(self) -> str | None:
        """Start the worker, if there is none, as `start` does. Returns what is said where the system has killed it."""
        if self._worker is not None:
            return None
        # Sets and hashes are in the same order in every worker. What a rule prints would go between the lines of the
        # progress bar.
        with unlaunched(PYTHONHASHSEED="0"):
            self._worker = _Worker(COMMAND, stderr=subprocess.DEVNULL)
        try:
            told = self._worker.asked(self._set_up, self._limits.import_s)
            problem, self.read = told["problem"], told["read"]
        except (EOFError, OSError):
            ended, is_missing = self._ended(self._limits.import_s, self._limits.import_s)
            problem = f"importing the file {ended}"
            if is_missing:
                return problem
        if problem is not None:
            self.close()
            raise UserError(f'rule "{self._rule.shown}": {problem}')
        return None

    def judge(self, row: Mapping, answers: Sequence[str]) -> Judged:
        """The numbers of the answers to a question."""
        for _ in range(TRIES):
            problem = self._started()
            is_missing = problem is not None
            if is_missing:
                continue
            try:
                found = self._worker.asked((dict(row), list(answers)), self._limits.clock_s)
            except (EOFError, OSError):
                ended, is_missing = self._ended(self._limits.processor_s, self._limits.clock_s)
                problem = f"the rule {ended}"
                continue
            except BaseException:
                self.close()
                raise
            is_missing = found.get("errno") in OF_THE_MACHINE
            if not found.get("memory") and not is_missing:
                return Judged(tuple(found.get("scores", ())), tuple(found.get("reasons", ())), found.get("problem"))
            # What earlier questions left in the process may be what filled it.
            problem = found["problem"]
            self.close()
        return Judged(problem=f"{problem}, {TRIES} times", is_limit=True, is_missing=is_missing)

    def close(self) -> int:
        """End the worker. Returns its exit code, negative for a signal."""
        worker, self._worker = self._worker, None
        return 0 if worker is None else worker.end()

    def _ended(self, processor_s: float, clock_s: float) -> tuple[str, bool]:
        """Clean up a worker that has ended. Returns why, with the time it had, and whether the machine ended it."""
        worker, self._worker = self._worker, None
        code = worker.end() if worker.late else worker.ended()
        if code == -signal.SIGPROF:
            return f"took more than {processor_s:g} s of processor time", False
        if worker.late or code == -signal.SIGALRM:
            return f"took more than {clock_s:g} s", False
        if code is None:
            return "closed or wrote into a file of its process that is not its own", False
        if code == -signal.SIGKILL:
            return isolated.KILLED, True
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"crashed its process ({signal.Signals(-code).name})", False
        return f"ended its process (exit code {code})", False


class _Worker(Isolated):
    """A worker's process, and whether it took longer than it may."""

    late = False

    def asked(self, request: object, clock_s: float) -> dict:
        """The response. Raises EOFError or OSError where the process ends, or takes longer than that."""
        self.socket.settimeout(clock_s + SPARE_S)
        try:
            send(self.stream, pickle.dumps(request))
            return json.loads(receive(self.stream))
        except TimeoutError:
            self.late = True
            raise
        # What a rule writes into file descriptors that are not its own.
        except (ValueError, RecursionError) as error:
            raise EOFError from error
