"""Starts ranks of the engine by forking a process that has torch, transformers and the engine imported.

A rank of its own takes 8 s of processor time to import them, and a launcher of several as much again, while a tiny run
takes 2. What is forked is a process like any other, with its own flags, environment and output, which may be killed.
That launchers start ranks rightly is for tests/distributed/test_launched_engine.py and test_run_engine.py.

Run as a program, this is the server: it reads one JSON request a line and answers with one, until its input ends.
"""

import atexit
import contextlib
import gc
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

# Read when torch or transformers is imported: a process that wants others cannot be forked.
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "TRITON_", "OMP_", "PYTHON", "LC_", "LANG", "CUDA_", "LD_")
IMPORTED = (
    "data_engine.commands.main", "data_engine.commands.run", "data_engine.job.worker", "data_engine.job.last_step",
    "data_engine.models.native.llava", "data_engine.models.native.omnilmm", "data_engine.models.auto.model",
    "data_engine.models.sharding.zero3", "data_engine.pipeline.sample", "data_engine.pipeline.score", "deepspeed",
    "deepspeed.module_inject.auto_ep_config", "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops", "nltk", "pandas", "pyarrow.dataset", "setuptools",
)  # fmt: skip
POLL_S = 0.01
# Launchers ask the others of a failed rank to stop, and kill those that have not after this time. Ranks themselves take
# up to 22 s to see that one is lost.
PATIENCE_S = 30


class Forked:
    """One or several forked ranks, with what tests use of a subprocess.Popen."""

    def __init__(self, server: "Server", pids: Sequence[int], output: Path) -> None:
        self._server, self.pids, self._output = server, list(pids), output
        self.pid, self.returncode = self.pids[0], None
        self._failed, self._patience = 0, 0.0

    def codes(self) -> list[int | None]:
        """Of each rank: None while it runs."""
        return [self._server.ask(code_of=pid)["code"] for pid in self.pids]

    def poll(self) -> int | None:
        """None while a rank runs; then the code of the first that failed, negative for a signal, or 0."""
        codes = self.codes()
        if any(codes) and not self._failed:
            self._failed, self._patience = next(filter(None, codes)), time.monotonic() + PATIENCE_S
            self.send_signal(signal.SIGTERM)
        elif self._failed and time.monotonic() > self._patience:
            self.kill()
        if None not in codes:
            self.returncode = self._failed
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout or float("inf"))
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"ranks {self.pids}", timeout, self._output.read_text())
            time.sleep(POLL_S)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return self._output.read_text(errors="replace"), None

    def send_signal(self, number: int) -> None:
        for pid in self.pids:
            # As Popen: no other process that has got the number since.
            if self._server.ask(code_of=pid)["code"] is None:
                os.kill(pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


class Server:
    """The process that forks, started at its first use; it ends with this one."""

    def __init__(self, environment: Mapping[str, str], first: Sequence[str] = ()) -> None:
        """`first`: modules that it imports before all others."""
        self.environment, self._first, self._process = dict(environment), list(first), None
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        self._starts = 0

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether a process with this environment can be forked."""
        names = {name for name in {*environment, *self.environment} if name.startswith(READ_AT_IMPORT)}
        return all(environment.get(name) == self.environment.get(name) for name in names)

    def start(self, program: str, flags: Sequence[str], folder: Path, ranks: Sequence[Mapping[str, str]]) -> Forked:
        """`python -m program flags` in `folder`, once for each environment of `ranks`; they share their output."""
        self._starts += 1
        output = Path(self._folder.name) / str(self._starts)
        common = {"argv": [program, *flags], "folder": str(folder), "output": str(output)}
        return Forked(self, [self.ask(**common, environment=dict(rank))["pid"] for rank in ranks], output)

    def ask(self, **request: object) -> dict:
        if self._process is None:
            # A session of its own: Ctrl-C ends the tests, which end it.
            self._process = subprocess.Popen(
                [sys.executable, __file__, *self._first], env=self.environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
            atexit.register(self._process.stdin.close)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve(answers: TextIO) -> dict:
    """Answer requests; returns in a forked child, with what it is to run."""
    codes: dict[int, int | None] = {}
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "code_of" in request:
            with contextlib.suppress(ChildProcessError):
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    codes[found[0]] = os.waitstatus_to_exitcode(found[1])
            answer = {"code": codes[request["code_of"]]}
        else:
            pid = os.fork()
            if pid == 0:
                answers.close()
                return request
            codes[pid] = None
            answer = {"pid": pid}
        print(json.dumps(answer), file=answers, flush=True)
    for pid, code in codes.items():
        if code is None:
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def become(request: dict) -> None:
    """Give this process the environment, folder, arguments and output of what it is to run."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    sys.argv = list(request["argv"])
    sys.orig_argv = [sys.executable, "-m", *request["argv"]]
    # Not the numbers of every other child.
    random.seed()


def run(program: str) -> int:
    """The exit code of `python -m program`."""
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
            return 1
        return error.code or 0
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def leave(code: int) -> None:
    """End as the interpreter does, without taking all that was imported apart, which takes 2 s."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    # What is imported may print.
    to_client = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in (*sys.argv[1:], *IMPORTED):
        try:
            __import__(name)
        except ModuleNotFoundError:
            # Each release of DeepSpeed has others.
            if not name.startswith("deepspeed."):
                raise
    # Not looked through, and so not copied, by each child's collections.
    gc.freeze()
    task = serve(to_client)
    become(task)
    leave(run(task["argv"][0]))
