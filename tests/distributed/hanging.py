"""Stands in for the command line: the real engine, whose image workers hang at every picture.

They hang as a hostile file may make them, in C and off the processor, and say so in the file $HANGING. The first
picture is decoded as ever unless there is a file $HANGING-not.
"""

import contextlib
import os
import socket
import sys
from pathlib import Path

SELF = str(Path(__file__).resolve())


def serve(descriptor: int) -> None:
    import ctypes

    from data_engine.questions import image_workers, images

    decode = images.decode

    def hang(*arguments: object) -> object:
        with contextlib.suppress(FileExistsError), open(f"{os.environ['HANGING']}-not", "x"):
            return decode(*arguments)
        with open(os.environ["HANGING"], "a") as file:
            file.write(f"{os.getpid()}\n")
        ctypes.CDLL(None).pause()

    images.decode = hang
    image_workers.serve(socket.socket(fileno=descriptor).makefile("rwb"))


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        serve(int(sys.argv[1]))
    else:
        from data_engine.commands import main
        from data_engine.questions import image_workers

        image_workers.COMMAND = [sys.executable, "-P", SELF]
        sys.exit(main.main())
