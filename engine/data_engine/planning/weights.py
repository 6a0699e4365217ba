"""The checks that need torch, asked of a process of their own: names and shapes of weights, prompts, devices.

The process starts to import torch while this one looks at everything else; `validate` itself never imports it. Where
torch is here already, as in a run that was refused, no process is started. Where it is not installed, as on a login
node, these checks are left out, which is said. heavy.py has the checks.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from types import TracebackType

from data_engine.planning.found import Found
from data_engine.processes.counting import waiting
from data_engine.processes.ranks import Ranks, asked_ranks
from data_engine.tables import load

NOT_LOOKED_AT = (
    "torch is not installed here: names and shapes of weights, chat templates, lengths of prompts and the device were "
    "not looked at; `run` does so before it computes anything"
)
# What is told where nothing was looked at.
NOTHING = {"problems": [], "warnings": [NOT_LOOKED_AT], "models": {}, "prompts": {}}


@dataclass(frozen=True)
class Wanted:
    """What heavy.py is to look at. The rest was found wrong already."""

    found: Found
    roles: tuple[str, ...]
    dataset: bool
    """it can be opened, and has the columns that are read"""
    answers: bool
    """those of --answers can be used, as far as is known without torch"""
    bound: bool
    """the configuration can be held against that of the work_dir, and nothing differs that is known without torch"""
    ranks: Ranks
    """as those that are to be started"""

    @classmethod
    def of(cls, found: Found) -> "Wanted":
        failed = found.failed
        dataset = not {"dataset", "columns", "sources"} & failed
        answers = dataset and found.config.answers is not None and not {"answers", "answers_rows"} & failed
        bound = dataset and "same_run" not in failed
        return cls(found, tuple(found.folders), dataset, answers, bound, asked_ranks())

    @property
    def is_nothing(self) -> bool:
        """Whether torch has nothing to look at: no model, answers or work_dir is known yet, nor a device named."""
        named = self.found.config.device not in ("auto", "cpu") or self.found.config.dtype != "auto"
        return not (self.roles or self.answers or self.bound or named)

    def as_json(self) -> str:
        told = {"config": asdict(self.found.config), "wrong": sorted(self.found.wrong), "roles": self.roles}
        told |= {"dataset": self.dataset, "answers": self.answers, "bound": self.bound}
        return json.dumps(told | {"ranks": asdict(self.ranks)})


def is_installed() -> bool:
    """Whether torch is, without importing it."""
    return importlib.util.find_spec("torch") is not None


class Looking:
    """A process that imports torch meanwhile; none where torch is here, or is not installed."""

    def __init__(self) -> None:
        self._child: subprocess.Popen | None = None
        self._installed = is_installed()

    def __enter__(self) -> "Looking":
        if self._installed and "torch" not in sys.modules:
            # Raises here, where the mistake is told, what the process would.
            tempfile.gettempdir()
            command = [sys.executable, "-m", "data_engine.planning.heavy"]
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()

    @property
    def is_slow(self) -> bool:
        """Whether `at` waits for a process."""
        return self._child is not None

    def at(self, wanted: Wanted) -> dict:
        """What heavy.look found."""
        if not self._installed:
            return NOTHING
        if wanted.is_nothing:
            return NOTHING | {"warnings": []}
        if self._child is None:
            return load("data_engine.planning.heavy:look")(wanted)
        with waiting("looking at the models"):
            told, errors = self._child.communicate(wanted.as_json())
        if self._child.returncode:
            raise RuntimeError(f"the process that checks the weights ended with {self._child.returncode}:\n{errors}")
        return json.loads(told.splitlines()[-1])
