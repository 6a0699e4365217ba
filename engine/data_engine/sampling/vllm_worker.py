"""What is mixed into each worker process of vLLM, before it loads weights: the process ends with the rank it works for.

A worker of its own accord looks whether its rank is alive only once all weights are loaded, and between two steps.
"""

import ctypes
import multiprocessing
import os
import signal

# linux/prctl.h
PR_SET_PDEATHSIG = 1


class EndsWithRank:
    """vLLM's worker_extension_cls; there is nothing in it but that a worker imports this module."""


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; at once where that has happened."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


# In the rank itself this is None.
if started_by := multiprocessing.parent_process():
    end_with(started_by.pid)
