"""Where each thread of a rank is, written to stderr on a signal, while the rank goes on."""

import os
import signal
import socket
import sys
import threading
import traceback


def show_on(number: signal.Signals) -> None:
    """From here on, signal `number` makes this process write every thread's stack to stderr. Main thread only.

    A thread of its own writes them, woken by the signal's byte on a socket, so that a rank whose main thread hangs
    in a call that has let go of the interpreter, such as a collective, shows them too. faulthandler would write from
    the signal's handler itself, which walks the frames of threads that run meanwhile, and has crashed ranks.
    """
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    # The byte comes from a handler in C, whatever Python is doing; the handler in Python has nothing left to do.
    signal.signal(number, lambda *_: None)
    signal.siginterrupt(number, False)
    signal.set_wakeup_fd(wakes.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(woken, number), name="stacks", daemon=True).start()


def _listen(woken: socket.socket, number: int) -> None:
    # Every signal that Python handles sends its number.
    while received := woken.recv(4096):
        if number in received:
            os.write(2, _stacks().encode())


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            parts.append(f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}")
    return "".join(parts)
