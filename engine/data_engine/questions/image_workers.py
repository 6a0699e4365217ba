"""images.decode in worker processes: a hostile file may crash them, hang them, or exhaust their memory.

A worker imports questions.images, with what that imports, and hardly more of the engine. Encoded bytes go in and
pixels come out through a socket; when the rank ends, in whatever way, the socket closes, and the worker exits after the
image that it decodes. Nothing that comes from a worker is unpickled. A request is (max_megapixels, whether EXIF is
applied, size) and the file; a response is (width, height, whether it was turned, size) and the pixels, or a width of 0
and a reason.
"""

import contextlib
import signal
import struct
import threading
from typing import BinaryIO

from PIL import Image

from data_engine.processes import isolated, job_signals
from data_engine.processes.isolated import Isolated
from data_engine.questions import images
from data_engine.questions.images import BadImage, Exif, MissingImage

# Processor time that an image may take; a large photograph takes a second. Independent of what else the machine does.
PROCESSOR_S = 60
# Wall-clock time that an image may take: a worker that swaps uses little processor time.
CLOCK_S = 600
# Limit of a worker's memory, plus BYTES_A_PIXEL for the copies that Pillow and NumPy make: 16 bits a channel, twice.
MEMORY_BYTES = 2 << 30
BYTES_A_PIXEL = 16
# An image that ends so many workers is given up.
TRIES = 2
COMMAND = isolated.command("data_engine.questions.image_workers")
_REQUEST, _RESPONSE = struct.Struct("<d?Q"), struct.Struct("<II?Q")
_NO_IMAGE = (0, 0, False)
_READY = b"R"
_CLOSED = "the workers for images have ended"


class ImageWorkers:
    """A pool with one worker for each thread that decodes, started on demand; a worker that died is replaced."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._closed = False

    def __enter__(self) -> "ImageWorkers":
        self._closed = False
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers, those that are decoding too: an image may take CLOCK_S, a rank told to stop has seconds."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
            # The thread that waits for a worker sees its socket close, and cleans up.
            for worker in self._busy:
                worker.process.kill()
        for worker in free:
            worker.end()

    def start(self) -> None:
        """Start one worker if there is none, without waiting until it is ready."""
        if not self._free:
            self._give_back(_Worker(COMMAND))

    def decode(self, data: bytes | None, max_megapixels: float, exif: Exif = "apply") -> Image.Image:
        """images.decode in a worker. Raises BadImage, also for an image that ends TRIES workers.

        Where somebody else ended them, MissingImage: the machine may be short of memory, and the image as good as any.
        """
        for _ in range(TRIES):
            worker = self._take()
            try:
                found = worker.decode(data or b"", max_megapixels, exif)
            except (EOFError, OSError):
                self._forget(worker)
                code = worker.ended()
                continue
            except BaseException:
                self._end(worker)
                raise
            self._give_back(worker)
            if isinstance(found, str):
                raise BadImage(found)
            return found
        raised = MissingImage if code == -signal.SIGKILL else BadImage
        raise raised(f"decoding {_what_ended(code)}, {TRIES} times")

    def _take(self) -> "_Worker":
        """A worker that is alive: the next image must not count for one that died idle. RuntimeError once closed."""
        while worker := self._pop_free():
            if worker.process.poll() is None:
                return worker
            self._end(worker)
        worker = _Worker(COMMAND)
        with self._lock:
            if not self._closed:
                self._busy.add(worker)
                return worker
        worker.end()
        raise RuntimeError(_CLOSED)

    def _pop_free(self) -> "_Worker | None":
        with self._lock:
            if self._closed:
                raise RuntimeError(_CLOSED)
            if not self._free:
                return None
            worker = self._free.pop()
            self._busy.add(worker)
            return worker

    def _give_back(self, worker: "_Worker") -> None:
        with self._lock:
            self._busy.discard(worker)
            if not self._closed:
                self._free.append(worker)
                return
        worker.end()

    def _end(self, worker: "_Worker") -> None:
        self._forget(worker)
        worker.end()

    def _forget(self, worker: "_Worker") -> None:
        with self._lock:
            self._busy.discard(worker)


def _what_ended(code: int | None) -> str:
    return {
        -signal.SIGPROF: f"took more than {PROCESSOR_S} s of processor time",
        -signal.SIGALRM: f"took more than {CLOCK_S} s",
        -signal.SIGKILL: isolated.KILLED,
    }.get(code, "crashed")


class _Worker(Isolated):
    """A worker's process."""

    _ready = False

    def decode(self, data: bytes, max_megapixels: float, exif: Exif) -> Image.Image | str:
        """The image, or the reason why it cannot be used. Raises EOFError or OSError where the worker dies."""
        if not self._ready:
            self._wait_until_ready()
        _send(self.stream, _REQUEST.pack(max_megapixels, exif == "apply", len(data)), data)
        width, height, turned, size = _RESPONSE.unpack(isolated.read(self.stream, _RESPONSE.size))
        found = isolated.read(self.stream, size)
        if not width:
            return found.decode()
        return images.marked(Image.frombytes("RGB", (width, height), found), turned)

    def _wait_until_ready(self) -> None:
        try:
            self._ready = bool(isolated.read(self.stream, len(_READY)))
        except (EOFError, OSError):
            code = self.end()
            raise RuntimeError(f"a worker for images ended with code {code} before it was ready") from None


def serve(stream: BinaryIO) -> None:
    """The loop of a worker: for each image its size and pixels, or a reason, until the socket closes."""
    job_signals.ignore()
    with contextlib.suppress(EOFError, OSError):
        _send(stream, _READY)
        while True:
            max_megapixels, applied, size = _REQUEST.unpack(isolated.read(stream, _REQUEST.size))
            data = isolated.read(stream, size)
            isolated.limit_memory(MEMORY_BYTES + int(BYTES_A_PIXEL * max_megapixels * 1e6))
            head, content = _decoded(data, max_megapixels, "apply" if applied else "ignore")
            _send(stream, _RESPONSE.pack(*head, len(content)), content)
            del data, content


def _decoded(data: bytes, max_megapixels: float, exif: Exif) -> tuple[tuple[int, int, bool], bytes]:
    """An image's size, whether it was turned, and its pixels; or a size of 0 and the reason.

    Past a time limit the kernel ends this process by a signal, even inside a call of C code.
    """
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_S)
    signal.alarm(CLOCK_S)
    try:
        image = images.decode(data, max_megapixels, exif)
        return (*image.size, images.was_turned(image)), image.tobytes()
    except BadImage as problem:
        return _NO_IMAGE, str(problem).encode()
    except MemoryError:
        return _NO_IMAGE, b"image needs more memory than a worker may have"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def _send(stream: BinaryIO, *parts: bytes) -> None:
    for part in parts:
        stream.write(part)
    stream.flush()


if __name__ == "__main__":
    with isolated.served() as served:
        serve(served)
