"""The stacks of all threads, written to stderr on a signal, without interrupting the rank."""

import contextlib
import os
import signal
import socket
import sys
import threading
import traceback

# A walk over a stack takes microseconds, the interpreter changes threads after milliseconds.
_WALKS = 100


def dump_on_signal(number: signal.Signals) -> None:
    """From now on, signal `number` makes this process write the stack of every thread to stderr. Main thread only.

    A separate thread writes them, woken by the signal's byte on a socket, so that it also works while the main thread
    hangs in a call that released the GIL, such as a collective. faulthandler would write from the signal handler, which
    walks the frames of running threads, and has crashed ranks.
    """
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    # Python's C handler writes the byte, whatever Python is doing; the handler in Python has nothing to do.
    signal.signal(number, lambda *_: None)
    signal.siginterrupt(number, False)
    signal.set_wakeup_fd(wakes.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(woken, number), name="stacks", daemon=True).start()


def _listen(woken: socket.socket, number: int) -> None:
    # Every signal that Python handles writes its number.
    while received := woken.recv(4096):
        if number in received:
            # Whoever reads them may have left: the next signal may come all the same.
            with contextlib.suppress(OSError):
                os.write(2, _stacks().encode(errors="backslashreplace"))


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident in sys._current_frames():
        if ident != threading.get_ident():
            parts.append(f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_list(_stack_of(ident)))}")
    return "".join(parts)


def _stack_of(ident: int) -> list[traceback.FrameSummary]:
    """Where a thread is, outermost call first.

    The thread goes on whenever this one loses the GIL, and a generator that yields meanwhile has no caller any more: a
    walk during which the thread was moving is repeated.
    """
    for _ in range(_WALKS):
        top = frame = sys._current_frames().get(ident)
        at, found = top and top.f_lasti, []
        while frame:
            code = frame.f_code
            found.append(traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name, lookup_line=False))
            frame = frame.f_back
        if sys._current_frames().get(ident) is top and (top is None or top.f_lasti == at):
            break
    return found[::-1]
