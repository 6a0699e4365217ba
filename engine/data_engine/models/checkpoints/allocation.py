"""How glibc keeps what is freed while a model is loaded on CPU."""

import contextlib
import ctypes

# Option of mallopt, from malloc.h: allocations of at least this size are mapped, and unmapped when freed.
M_MMAP_THRESHOLD = -3


def map_large_tensors() -> None:
    """Have glibc map each large tensor on its own, so that its memory returns to the system when it is freed.

    By default it keeps freed tensors below 32 MB that lie between those that stay: after loading, a rank that holds a
    share of each weight would take as much memory as the whole model, and one that merged an adapter half as much more.
    To be called before the model's modules are made: what the heap has free by then is still used.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 18)


def return_freed_memory() -> None:
    """Have glibc return freed memory to the system, also where it lies between tensors that are still used."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
