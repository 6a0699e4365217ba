"""The stacks of all threads, written to stderr on a signal, without interrupting the rank."""

import os
import signal
import socket
import sys
import threading
import traceback


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
            os.write(2, _stacks().encode())


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            parts.append(f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}")
    return "".join(parts)
