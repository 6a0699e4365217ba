"""Stage 2 killed at any moment, started several times at once, and its memory: each in processes of its own."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stage2_world import dataset_rows, digest, make_world

RUN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from stage2_world import World
from data_engine import exports
from data_engine.exports import parquet_files
from data_engine.exports.formats import rlaif_v
from data_engine.pipeline import pair
from data_engine.store import folders
from data_engine.store import units

def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def dies_at_call(function, number):
    calls = iter(range(1, number))
    return lambda *args, **options: function(*args, **options) if next(calls, None) else die()

{window}
World(Path({folder!r}), []).pair(Path({work_dir!r}), debug=True)
"""
WINDOWS = {
    "adding candidates": "pair.CandidateTable.add = dies_at_call(pair.CandidateTable.add, 5)",
    "dealing into buckets": "rlaif_v.row_of = dies_at_call(rlaif_v.row_of, 7)",
    "writing the dataset": "parquet_files.pq.ParquetWriter.close = die",
    "before the swap": "exports.swap_in = die",
    "between the renames": "os.rename = dies_at_call(os.rename, 4)",
    "after the swap": "folders.sync_folder = dies_at_call(folders.sync_folder, 2)",
    "before the pairs are renamed": "os.replace = dies_at_call(os.replace, 3)",
}


def start(world, work_dir, window=""):
    code = RUN.format(
        tests=str(Path(__file__).parents[1]), folder=str(world.folder), work_dir=str(work_dir), window=window
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def fresh(world, tmp_path_factory):
    """A work_dir that was paired once, undisturbed."""
    folder = tmp_path_factory.mktemp("fresh") / "work"
    world.publish(folder)
    world.pair(folder, debug=True)
    return folder


# In make test one of each outcome: the old dataset, none, the new one.
IN_TEST = ("writing the dataset", "between the renames", "before the pairs are renamed")


@pytest.mark.parametrize(
    "window", [pytest.param(name, marks=() if name in IN_TEST else pytest.mark.slow) for name in WINDOWS]
)
def test_a_pairing_killed_at_any_moment_leaves_a_whole_dataset_or_none_and_can_be_repeated(
    world, work_dir, fresh, window
):
    world.pair(work_dir, seed=9)
    old, new = digest(work_dir / "dataset"), digest(fresh / "dataset")
    process = start(world, work_dir, WINDOWS[window])
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    found = digest(work_dir / "dataset") if (work_dir / "dataset").exists() else None
    expected = {"between the renames": None, "after the swap": new, "before the pairs are renamed": new}
    assert found == expected.get(window, old)
    world.pair(work_dir, debug=True)
    assert digest(work_dir) == digest(fresh)
    assert not list(work_dir.rglob(".*"))


def test_two_pairings_at_the_same_time_both_end_well(world, work_dir, fresh):
    processes = [start(world, work_dir) for _ in range(3)]
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert digest(work_dir) == digest(fresh)
    assert not list(work_dir.glob(".*"))


MEASURED = """
import sys, tracemalloc
from pathlib import Path
sys.path.insert(0, {tests!r})
import pyarrow as pa
from data_engine.preferences.word_count import count_words
from stage2_world import World
count_words("nltk is a large import")
tracemalloc.start()
World(Path({folder!r}), [], unit_size=16).pair(Path({work_dir!r}))
print(pa.default_memory_pool().max_memory(), tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.slow
def test_images_are_not_held_in_memory(tmp_path):
    draw = random.Random(0)
    size, number = 300_000, 200
    images = [{"bytes": draw.randbytes(size), "path": None} for _ in range(number)]
    world = make_world(tmp_path, num_questions=number, num_answers=4, unit_size=16, image=images)
    world.publish(tmp_path / "work")
    code = MEASURED.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path), work_dir=str(tmp_path / "work"))
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    arrow, python = map(int, output.split())
    written = len(dataset_rows(tmp_path / "work")) * size
    assert written > 80 * 2**20
    # A row group is 30 MB in the result and 3 MB in the source.
    assert arrow < 30 * 2**20
    assert python < 40 * 2**20
