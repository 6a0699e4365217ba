"""How a process of the engine ends."""

import gc


def without_collection() -> None:
    """For the end of a program: what it has imported is not looked through for garbage once more.

    Python does so whenever it ends. That takes 2 s of processor time for torch and transformers, and frees nothing that
    the end of the process would not.
    """
    gc.freeze()
