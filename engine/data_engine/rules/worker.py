"""The process in which a rule runs: it may crash, hang, print, exit or exhaust memory, and takes no rank with it.

client.py is the rank's end. The rank pickles a request, and this process answers in JSON, so that the rank unpickles
nothing that a rule has made. Each message follows its length. The kernel ends this process by a signal where a time
limit is exceeded, even inside a call of C code, and where the rank dies, however it dies.
"""

import contextlib
import ctypes
import importlib
import inspect
import json
import math
import numbers
import os
import pickle
import re
import resource
import signal
import struct
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from data_engine.errors import nearest
from data_engine.plural import plural
from data_engine.processes import isolated, job_signals

LENGTH = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1
_REASON_LENGTH = 200
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
# Where code and its own data lie, and what belongs to the machine: no file of the user's.
_NOT_DATA = (sys.prefix, sys.base_prefix, "/proc/", "/sys/", "/dev/", "/etc/", "/usr/")
_CODE = (".py", ".pyc", ".so")
NO_MEMORY = "it needs more memory than a rule may have"


@dataclass(frozen=True)
class Limits:
    """What one question may use; `import_s` is of the import, `memory_bytes` of the whole process."""

    processor_s: float = 10
    """processor time: independent of what else the machine does"""
    clock_s: float = 60
    """wall-clock time: a function that sleeps uses no processor"""
    import_s: float = 300
    """either time, of importing the file: a run that goes on does not end because a machine is slow for a while"""
    memory_bytes: int = 2 << 30


@dataclass(frozen=True)
class SetUp:
    """The first request: what to run."""

    file: str
    """"" of a built-in rule, of whose lines nothing is told"""
    source: str
    function: str
    """its name"""
    module: str | None
    """of a built-in rule; None for the source of a file"""
    collected: list
    limits: Limits


def serve(stream: BinaryIO, rank: int) -> None:
    """Set up once, then a response a question, until the stream closes. `rank` is the process that started this one."""
    job_signals.ignore()
    # Of Linux alone; elsewhere the closed stream ends the process after the question.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != rank:
        return
    own = os.getpid()
    set_up: SetUp = pickle.loads(receive(stream))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    isolated.limit_memory(set_up.limits.memory_bytes)
    with _timed(set_up.limits.import_s, set_up.limits.import_s), data_files() as read:
        function, problem = _loaded(set_up)
    _respond(stream, {"problem": problem, "read": read}, own)
    while function is not None:
        row, answers = pickle.loads(receive(stream))
        with _timed(set_up.limits.processor_s, set_up.limits.clock_s):
            response = judged(function, set_up, row, answers)
        _respond(stream, response, own)


def _respond(stream: BinaryIO, response: dict, own: int) -> None:
    """Send it. A process that the rule has forked off comes here too, and ends: a second response would be taken for
    that to the next question.
    """
    if os.getpid() != own:
        os._exit(0)
    send(stream, json.dumps(response).encode())


def _loaded(set_up: SetUp) -> tuple[Callable | None, str | None]:
    """The function, or what is wrong with it."""
    if set_up.module is not None:
        return importlib.import_module(set_up.module).make(set_up.collected), None
    module = types.ModuleType("rule")
    module.__file__ = set_up.file
    # Dataclasses and pickles of the rule look their module up.
    sys.modules["rule"] = module
    try:
        exec(compile(set_up.source, set_up.file, "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        # Only the content of the file is bound.
        beside = "; nothing beside the file can be imported" if isinstance(error, ModuleNotFoundError) else ""
        return None, f"importing the file failed: {told(error, set_up.file)}{beside}"
    function = vars(module).get(set_up.function)
    if not callable(function):
        kind = "no function" if function is None else f"{type(function).__name__}, no function,"
        hint = nearest(set_up.function, [name for name, value in vars(module).items() if callable(value)])
        return None, f"the file has {kind} {set_up.function}{hint}"
    if (misfit := _misfit(function, set_up.function)) is not None:
        return None, misfit
    return function, None


def _misfit(function: Callable, name: str) -> str | None:
    """Why a function cannot be called with a row and its answers; None where it can, as far as Python knows."""
    try:
        # Not that of a function which functools.wraps names: a decorator may call that one in another way.
        signature = inspect.signature(function, follow_wrapped=False)
    # Functions in C may not tell it, and code of the rule may run here: Python 3.14 evaluates annotations, of which
    # those that are meant for type checkers fail.
    except Exception:
        return None
    try:
        signature.bind({}, [])
    except TypeError as error:
        # Names alone: a default may be long, and its text is made by code of the rule.
        names = [one.replace(default=one.empty, annotation=one.empty) for one in signature.parameters.values()]
        shown = signature.replace(parameters=names, return_annotation=signature.empty)
        return f"{name}{shown} cannot be called with a row and the list of its answers: {error}"
    return None


@contextlib.contextmanager
def data_files() -> Iterator[list[str]]:
    """The files that are opened inside, but for those of code: only the content of the rule's own file is bound."""
    found: dict[str, None] = {}
    watching = True

    def heard(event: str, arguments: tuple) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.endswith(_CODE) and not path.startswith(_NOT_DATA):
                found[path] = None

    # There is no way to take it off.
    sys.addaudithook(heard)
    read: list[str] = []
    try:
        yield read
    finally:
        watching = False
        read += filter(os.path.isfile, found)


def judged(function: Callable, set_up: SetUp, row: dict, answers: list[str]) -> dict:
    """`scores` and `reasons`, one an answer, or `problem`: why none of them has a number; `memory` where it ran out,
    and `errno` of an error of the system.
    """
    name = set_up.function
    try:
        # Some rules sort what they are given, and others keep it.
        given = list(answers)
        found = function(row, given)
        # A set has an order of its own: its numbers would be of other answers.
        if isinstance(found, str | bytes | dict | set | frozenset) or not hasattr(found, "__iter__"):
            return {"problem": f"{name} returned {_kind(found)}, expected a list with a number or None an answer"}
        found = list(found)
        if _is_reordered(given, answers):
            return {"problem": f"{name} changed the list of answers, so that its numbers are of others; sort a copy"}
        if len(found) != len(answers):
            return {"problem": f"{name} returned {plural(len(found), 'number')} for {plural(len(answers), 'answer')}"}
        scores, reasons = zip(*map(_number, found), strict=True) if found else ((), ())
    except MemoryError:
        return {"problem": NO_MEMORY, "memory": True}
    # SystemExit too: whatever the function raises is the question's reason.
    except BaseException as error:
        number = error.errno if isinstance(error, OSError) else None
        return {"problem": f"{name} raised {told(error, set_up.file)}", "errno": number}
    return {"scores": scores, "reasons": reasons}


def _is_reordered(given: list, answers: list[str]) -> bool:
    """Whether a rule sorted, shortened or lengthened its list; one that writes into its places keeps the order."""
    if len(given) != len(answers):
        return True
    return given != answers and sorted(map(str, given)) == sorted(answers)


def _number(value: object) -> tuple[float | None, str | None]:
    """The number that an answer has, or the reason why it has none; neither for None.

    True and False are 1 and 0, also those of numpy.
    """
    if value is None:
        return None, None
    is_bool = isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")
    if not is_bool and not isinstance(value, numbers.Real):
        return None, f"the rule gave {_kind(value)}, expected a number or None"
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return (number, None) if math.isfinite(number) else (None, f"the rule gave {number}, expected a finite number")


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def told(error: BaseException, file: str | None) -> str:
    """An exception on one line, with the line of the rule's file; the same in every process: without addresses."""
    try:
        # Half surrogate pairs, which rows of JSON may have, are in no column of text.
        text = (str(error).encode(errors="replace").decode().strip().splitlines() or [""])[0]
    # The text of an exception is code of the rule's, too, and what that raises is told by the type alone.
    except BaseException:
        text = ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" (line {lines[-1]})" if lines else ""
    return _ADDRESS.sub("0x…", f"{type(error).__name__}: {text}"[:_REASON_LENGTH].rstrip(": ")) + where


@contextlib.contextmanager
def _timed(processor_s: float, clock_s: float) -> Iterator[None]:
    """Past a limit the process ends by SIGPROF or SIGALRM, whose handlers a rule may have changed."""
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, processor_s)
    signal.setitimer(signal.ITIMER_REAL, clock_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def send(stream: BinaryIO, data: bytes) -> None:
    """One message."""
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: BinaryIO) -> bytes:
    """One message. Raises EOFError where the other end closes before its end."""
    [size] = LENGTH.unpack(isolated.read(stream, LENGTH.size))
    return isolated.read(stream, size)


if __name__ == "__main__":
    with isolated.served() as served:
        serve(served, int(sys.argv[2]))
