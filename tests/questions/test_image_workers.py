"""Decoding in processes of their own: crashes, hangs and greed stay there, and pixels are those of images.decode."""

import dataclasses
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_images import mutations, outcome
from PIL import Image
from run_files import png, read

from data_engine.processes.job_signals import JOB_SIGNALS
from data_engine.questions import image_workers, images
from data_engine.questions.image_workers import ImageWorkers
from data_engine.questions.prefetch import ahead
from data_engine.store import units


def photo(seed: int = 0, size: tuple[int, int] = (60, 40), **options: object) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return png(Image.fromarray(values), **options)


@pytest.fixture
def workers():
    with ImageWorkers() as workers:
        yield workers


@pytest.fixture
def sabotaged(tmp_path, monkeypatch):
    """Workers whose images.decode obeys a file that has Python in it: the hostile file that we cannot make."""

    def start(**constants: float) -> ImageWorkers:
        lines = [f"image_workers.{name} = {value}" for name, value in constants.items()]
        script = tmp_path / "worker.py"
        script.write_text("\n".join([
            "import ctypes, os, signal, socket, sys, time",
            "from data_engine.questions import image_workers, images",
            "decode = images.decode",
            "def obey(data, limit, exif):",
            "    if b'python:' in data: exec(data.partition(b'python:')[2].decode())",
            "    return decode(data, limit, exif)",
            "images.decode = obey",
            *lines,
            "connection = socket.socket(fileno=int(sys.argv[1]))",
            "image_workers.serve(connection.makefile('rwb'))",
        ]))  # fmt: skip
        monkeypatch.setattr(image_workers, "COMMAND", [sys.executable, str(script)])
        return ImageWorkers()

    return start


def test_pixels_and_reasons_are_those_of_the_same_process(workers):
    for data in [photo(), None, b"", *mutations(random.Random(5), 40)]:
        assert outcome(workers.decode, data) == outcome(images.decode, data)
    assert outcome(workers.decode, photo(), 1e-6) == outcome(images.decode, photo(), 1e-6)


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_a_worker_turns_a_picture_as_the_same_process_does_and_says_so(workers, exif):
    tag = Image.Exif()
    tag[0x0112] = 6
    data = photo(exif=tag)
    found, expected = workers.decode(data, 1, exif), images.decode(data, 1, exif)
    assert (found.size, found.tobytes()) == (expected.size, expected.tobytes())
    assert [images.was_turned(image) for image in (found, expected)] == [exif == "apply"] * 2
    assert not images.was_turned(workers.decode(photo(), 1, exif))


def test_images_that_are_decoded_side_by_side_keep_their_order(workers):
    photos = [photo(seed, (40 + seed, 30)) for seed in range(40)]
    found = ahead(lambda data: workers.decode(data, 1), photos)
    assert [image.tobytes() for image in found] == [images.decode(data, 1).tobytes() for data in photos]
    assert len(workers._free) == 2


def test_a_worker_imports_no_torch_and_not_what_started_the_rank(sabotaged):
    with sabotaged() as workers:
        code = b"python:raise images.BadImage(' '.join(sorted({n.split('.')[0] for n in sys.modules})))"
        names = set(outcome(workers.decode, code).split())
    assert "PIL" in names
    assert not names & {"torch", "transformers", "pyarrow", "datasets", "pytest"}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("ctypes.string_at(0)", "decoding crashed, 2 times"),
        ("os._exit(0)", "decoding crashed, 2 times"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "decoding was killed, most often for want of memory, 2 times"),
        ("raise SystemExit(3)", "decoding crashed, 2 times"),
        # A call into C that does not come back in our time, on the processor and off it.
        (
            "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
            "decoding took more than 0.3 s of processor time, 2 times",
        ),
        ("ctypes.CDLL(None).pause()", "decoding took more than 1 s, 2 times"),
        ("bytearray(2 << 30)", "image needs more memory than a worker may have"),
    ],
)
def test_what_a_hostile_file_does_to_a_worker_costs_its_row_alone(sabotaged, monkeypatch, code, reason):
    # The clock of a busy machine must not be the first to end what works.
    limits = {"PROCESSOR_S": 0.3, "CLOCK_S": 1 if "pause" in code else 60, "MEMORY_BYTES": 1 << 30}
    for name, value in limits.items():
        monkeypatch.setattr(image_workers, name, value)
    with sabotaged(**limits) as workers:
        assert outcome(workers.decode, f"python:{code}".encode()) == reason
        assert outcome(workers.decode, photo()) == outcome(images.decode, photo())


def test_a_row_whose_worker_is_lost_once_is_decoded_by_the_next(sabotaged, tmp_path):
    once = f"python:m = {str(tmp_path / 'mark')!r}\nif not os.path.exists(m): open(m, 'w'); os._exit(1)".encode()
    with sabotaged() as workers:
        assert outcome(workers.decode, once) == outcome(images.decode, once)
    assert (tmp_path / "mark").exists()


def test_workers_that_were_killed_while_they_were_idle_are_no_fault_of_an_image(workers):
    assert outcome(workers.decode, photo()) == outcome(images.decode, photo())
    for _ in range(2):
        [worker] = workers._free
        worker.process.kill()
        worker.process.wait()
        assert outcome(workers.decode, photo()) == outcome(images.decode, photo())


def test_signals_that_a_job_gets_end_no_worker(workers):
    assert outcome(workers.decode, photo()) == outcome(images.decode, photo())
    [worker] = workers._free
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        worker.process.send_signal(number)
    assert outcome(workers.decode, photo()) == outcome(images.decode, photo())
    assert workers._free == [worker]
    assert os.getsid(worker.process.pid) == worker.process.pid


@pytest.mark.parametrize("number", sorted(JOB_SIGNALS))
def test_a_signal_that_comes_while_a_worker_starts_does_not_end_it(number):
    worker = image_workers._Worker(image_workers.COMMAND)
    # Python has not begun to run the worker's code.
    os.kill(worker.process.pid, number)
    try:
        assert worker.decode(photo(), 1, "apply").tobytes() == images.decode(photo(), 1).tobytes()
    finally:
        worker.end()


def test_a_worker_that_does_not_start_is_an_error_of_the_run_and_not_of_the_image(sabotaged):
    with (
        sabotaged(NO_SUCH="oops(") as workers,
        pytest.raises(RuntimeError, match="ended with code 1 before it was ready"),
    ):
        workers.decode(photo(), 1)


def test_a_worker_whose_process_cannot_be_started_leaves_no_socket_open(monkeypatch):
    monkeypatch.setattr(image_workers, "COMMAND", ["/no/such/python"])
    # The first process that is started has a file of this one's.
    resource_tracker.ensure_running()
    before = os.listdir("/proc/self/fd")
    with ImageWorkers() as workers, pytest.raises(FileNotFoundError) as failed:
        workers.decode(photo(), 1)
    # The exception keeps the frames, and what they hold.
    assert failed.tb is not None
    assert os.listdir("/proc/self/fd") == before


def test_none_is_started_once_they_have_ended(workers, monkeypatch):
    workers.__exit__()
    monkeypatch.setattr(image_workers, "COMMAND", ["/no/such/python"])
    with pytest.raises(RuntimeError, match="have ended"):
        workers.decode(photo(), 1)


def test_no_worker_is_left_when_all_is_done():
    with ImageWorkers() as workers:
        workers.start()
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda seed: workers.decode(photo(seed), 1), range(12)))
        processes = [worker.process for worker in workers._free]
    assert processes
    assert {process.returncode for process in processes} == {-signal.SIGKILL}


def test_leaving_ends_the_workers_that_hang_and_starts_no_other_one(sabotaged, tmp_path):
    hanging = tmp_path / "hanging"
    code = f"python:open({str(hanging)!r}, 'a').write(f'{{os.getpid()}}\\n'); ctypes.CDLL(None).pause()".encode()
    failed = []

    def decode() -> None:
        try:
            workers.decode(code, 1)
        except RuntimeError as error:
            failed.append(str(error))

    with sabotaged() as workers:
        threads = [threading.Thread(target=decode, daemon=True) for _ in "12"]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 30
        while not hanging.exists() or hanging.read_text().count("\n") < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
    for thread in threads:
        thread.join(10)
    pids = hanging.read_text().split()
    left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert len(pids) == 2
    assert not left
    assert failed == ["the workers for images have ended"] * 2


@pytest.mark.parametrize("doing", ["idle", "busy"])
def test_a_worker_ends_with_a_rank_that_is_killed(doing):
    """A real SIGKILL; the worker is gone when the pipe that it and the rank alone hold open ends."""
    code = (
        "import sys, io, os\nfrom PIL import Image\nfrom data_engine.questions.image_workers import ImageWorkers\n"
        "workers = ImageWorkers(); workers.start()\n"
        "w = workers._free[0]; w._wait_until_ready()\n"
        "print(w.process.pid, flush=True)\n"
    )
    if doing == "busy":
        code += "file = io.BytesIO(); Image.effect_noise((2000, 2000), 50).save(file, 'PNG')\n"
        code += "while True: workers.decode(file.getvalue(), 64); print('.', flush=True)\n"
    else:
        code += "print('.', flush=True); sys.stdin.read()\n"
    # The worker's own stdout is nowhere; its stderr is this pipe.
    rank = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    worker = int(rank.stdout.readline())
    assert rank.stdout.readline() == ".\n"
    assert Path(f"/proc/{worker}").exists()
    rank.kill()
    watchdog = threading.Timer(30, lambda: os.kill(worker, signal.SIGKILL))
    watchdog.start()
    try:
        told = rank.stderr.read()
        assert watchdog.is_alive()
    finally:
        watchdog.cancel()
    assert told == ""
    rank.stdin.close()
    rank.stdout.close()
    rank.stderr.close()
    assert rank.wait() == -signal.SIGKILL


def test_the_memory_limit_is_the_workers_own(workers):
    before = resource.getrlimit(resource.RLIMIT_DATA)
    assert outcome(workers.decode, photo()) == outcome(images.decode, photo())
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize("first", ["sampled_answer", "instruct_logps"])
def test_a_row_whose_workers_the_system_killed_is_asked_again_by_the_next_start(config, tmp_path, sabotaged, first):
    """As the kernel does where memory is short, whatever the picture."""
    from data_engine.job import worker

    short = tmp_path / "short of memory"
    killed = photo(1) + f"python:if os.path.exists({str(short)!r}): os.kill(os.getpid(), signal.SIGKILL)".encode()
    rows = [{"idx": i, "question": "What is it?", "image": {"bytes": data}} for i, data in enumerate([photo(), killed])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "questions.parquet")
    sabotaged()
    asked = config(tmp_path / "questions.parquet", sample_k=2, rank=1, stop_after_stage=1)
    if first != "sampled_answer":
        assert worker.run(dataclasses.replace(asked, stop_after_stage=0)) == 0
    short.touch()
    assert worker.run(asked) == 0
    reason = "decoding was killed, most often for want of memory, 2 times"
    [left_out] = units.left_out(tmp_path / "work")
    assert left_out == {"idx": 1, "stage": first, "reason": reason, "missing": True, "unit": 0}
    assert {row["idx"] for row in read(tmp_path / "work/reward_logps")} == {0}
    short.unlink()
    assert worker.run(asked) == 0
    assert not list(units.left_out(tmp_path / "work"))
    assert {row["idx"] for row in read(tmp_path / "work/reward_logps")} == {0, 1}
