"""images.decode in processes of their own, which a hostile file may crash, hang, or drive out of memory.

A worker imports questions.images and nothing else of the engine; bytes go in and pixels come out through a socket. It
ends with its rank, however that dies, since the socket then ends too: at once, or behind the image it is busy with.
Nothing that comes from a worker is unpickled: a question is (max_megapixels, size) and the file, an answer is
(width, height, size) and the pixels, or a width of 0 and a reason.
"""

import contextlib
import resource
import signal
import socket
import struct
import subprocess
import sys
from typing import BinaryIO

from PIL import Image

from data_engine.questions import images
from data_engine.questions.images import BadImage

# Processor time that an image may take: a large photograph takes a second, and a busy machine does not count.
PROCESSOR_S = 60
# The same as the clock has it, for a worker that waits for memory from a disk.
CLOCK_S = 600
# What a worker may allocate, besides the copies of the pixels that Pillow and NumPy make: 16 bits a channel, twice.
MEMORY_BYTES = 2 << 30
BYTES_A_PIXEL = 16
# A row is given up with the second process that it ends.
TRIES = 2
# Without -P, a file in the current folder that is called as a module of Python would be taken for it.
COMMAND = [sys.executable, "-P", "-m", "data_engine.questions.image_workers"]
_QUESTION, _ANSWER = struct.Struct("<dQ"), struct.Struct("<IIQ")
_READY = b"R"
# What the signals mean that a job gets is for its ranks to decide, and theirs to tell.
_FOR_RANKS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class ImageWorkers:
    """As many workers as threads decode at once, started when they are needed; a lost one is replaced."""

    def __init__(self) -> None:
        # Taken from and given back by several threads; either is one step of the interpreter.
        self._free: list[_Worker] = []

    def __enter__(self) -> "ImageWorkers":
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers. No thread may be decoding any more."""
        while self._free:
            self._free.pop().end()

    def start(self) -> None:
        """Start one worker where there is none, without waiting for it."""
        if not self._free:
            self._free.append(_Worker())

    def decode(self, data: bytes | None, max_megapixels: float) -> Image.Image:
        """images.decode, to the byte. Raises BadImage, also for an image that ends two workers."""
        for _ in range(TRIES):
            worker = self._worker()
            try:
                found = worker.decode(data or b"", max_megapixels)
            except (EOFError, OSError):
                end = _what_ended(worker.end())
                continue
            except BaseException:
                worker.end()
                raise
            self._free.append(worker)
            if isinstance(found, str):
                raise BadImage(found)
            return found
        raise BadImage(f"decoding {end}, {TRIES} times")

    def _worker(self) -> "_Worker":
        """A free worker that lives: one that was killed while it was idle is no fault of the next image."""
        with contextlib.suppress(IndexError):
            while True:
                worker = self._free.pop()
                if worker.process.poll() is None:
                    return worker
                worker.end()
        return _Worker()


def _what_ended(code: int) -> str:
    return {
        -signal.SIGPROF: f"took more than {PROCESSOR_S} s of processor time",
        -signal.SIGALRM: f"took more than {CLOCK_S} s",
    }.get(code, "crashed")


class _Worker:
    """One process and this end of its socket."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # In a session of its own, the keys of the terminal do not reach it.
            self.process = subprocess.Popen(
                [*COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._stream = ours.makefile("rwb")
        # The stream holds the socket open from here on.
        ours.close()
        self._ready = False

    def decode(self, data: bytes, max_megapixels: float) -> Image.Image | str:
        """The image, or the reason why there is none. Raises EOFError or OSError where the worker dies."""
        if not self._ready:
            self._wait_until_ready()
        _send(self._stream, _QUESTION.pack(max_megapixels, len(data)), data)
        width, height, size = _ANSWER.unpack(_read(self._stream, _ANSWER.size))
        found = _read(self._stream, size)
        return Image.frombytes("RGB", (width, height), found) if width else found.decode()

    def end(self) -> int:
        """Kill it, if it lives; its exit code, negative for a signal."""
        self.process.kill()
        # What is left to send has nobody to read it.
        with contextlib.suppress(OSError):
            self._stream.close()
        return self.process.wait()

    def _wait_until_ready(self) -> None:
        try:
            self._ready = bool(_read(self._stream, len(_READY)))
        except (EOFError, OSError):
            code = self.end()
            raise RuntimeError(f"a worker for images ended with code {code} before it was ready") from None


def serve(stream: BinaryIO) -> None:
    """What a worker does: answer each image with its size and pixels, or a reason, until its rank is gone."""
    for number in _FOR_RANKS:
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        _send(stream, _READY)
        while True:
            max_megapixels, size = _QUESTION.unpack(_read(stream, _QUESTION.size))
            data = _read(stream, size)
            _limit_memory(MEMORY_BYTES + int(BYTES_A_PIXEL * max_megapixels * 1e6))
            size, answer = _decoded(data, max_megapixels)
            _send(stream, _ANSWER.pack(*size, len(answer)), answer)
            del data, answer


def _limit_memory(size_bytes: int) -> None:
    """What counts is what this process writes to: address space that is only set aside costs nothing."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _decoded(data: bytes, max_megapixels: float) -> tuple[tuple[int, int], bytes]:
    """An image's size and pixels, or (0, 0) and the reason.

    Where it takes too long, the kernel ends this process, whatever it is in the middle of.
    """
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_S)
    signal.alarm(CLOCK_S)
    try:
        image = images.decode(data, max_megapixels)
        return image.size, image.tobytes()
    except BadImage as problem:
        return (0, 0), str(problem).encode()
    except MemoryError:
        return (0, 0), b"image needs more memory than a worker may have"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def _send(stream: BinaryIO, *parts: bytes) -> None:
    for part in parts:
        stream.write(part)
    stream.flush()


def _read(stream: BinaryIO, size: int) -> bytes:
    """Raises EOFError where the other end is gone before so many bytes came."""
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


if __name__ == "__main__":
    # Closing the stream may fail too, where an answer was on its way when the rank died.
    with contextlib.suppress(OSError), socket.socket(fileno=int(sys.argv[1])).makefile("rwb") as served:
        serve(served)
