"""Runs whose models are split over the ranks: the dataset of the plain run, whatever each rank's work, and kills."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from jobs import (
    GOLDENS,
    ROOT,
    Job,
    Result,
    free_port,
    ranks_that_worked,
    split_settings,
    stray_files,
    torchrun,
    write_questions,
)

OMNI = GOLDENS.parent / "omnilmm"
FLAGS = ("--sample_k", "4", "--rank", "2", "--distance", "1000", "--max_new_tokens", "64", "--temperature", "1.0")
# (questions, questions a unit): units that do not divide among the ranks, the last of one question; and a single one,
# so that all ranks but one only help.
SHARES = {"uneven": (10, 3), "one unit": (4, 8)}


# Cases that others cover in part, a minute or two each.
LONG = (pytest.mark.slow, pytest.mark.long)


def plain_job(folder: Path, family: str, share: str) -> Job:
    questions, unit_size = SHARES[share]
    dataset = write_questions(folder / "questions.parquet", questions)
    models = {"llava": GOLDENS, "omnilmm": OMNI}[family]
    flags = (*FLAGS, "--unit_size", str(unit_size))
    return Job(dataset, folder / "plain", flags, models / "instruct", models / "reward")


def split(job: Job, folder: Path, *flags: str) -> Job:
    zero3 = ("--zero3", "on", "--zero3_config", str(split_settings(folder)))
    return dataclasses.replace(job, work_dir=folder / "split", flags=(*job.flags, *zero3, *flags))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Plain runs of one process, each made once: (family, share) -> job and result."""
    made = {}

    def make(family: str, share: str) -> tuple[Job, Result]:
        if (family, share) not in made:
            job = plain_job(tmp_path_factory.mktemp("plain"), family, share)
            job.run()
            made[family, share] = job, Result.of(job.work_dir)
        return made[family, share]

    return make


@pytest.mark.parametrize(
    ("family", "num_processes", "share"),
    [
        pytest.param("llava", 2, "one unit", marks=LONG),
        pytest.param("llava", 3, "one unit", marks=LONG),
        pytest.param("llava", 2, "uneven", marks=LONG),
        pytest.param("llava", 3, "uneven", marks=LONG),
        pytest.param("omnilmm", 2, "uneven", marks=LONG),
        pytest.param("omnilmm", 3, "uneven", marks=pytest.mark.slow),
        pytest.param("omnilmm", 2, "one unit", marks=LONG),
    ],
)
def test_split_models_make_the_dataset_of_whole_ones(plain, tmp_path, family, num_processes, share):
    job, expected = plain(family, share)
    lengths = [len(row["token_ids"]) for rows in expected.units.values() for row in rows if "token_ids" in row]
    assert share == "one unit" or max(lengths) - min(lengths) > 20, "the ranks' work would be too even"
    divided = split(job, tmp_path)
    output = divided.world(num_processes)
    assert f"zero3 on: split over {num_processes} ranks" in output
    assert json.loads((divided.work_dir / "run.json").read_text())["zero3"]["split"] is True
    assert Result.of(divided.work_dir) == expected
    assert not stray_files(divided.work_dir)
    # In the other share, whoever is first takes a stage's only unit, and the rest of them help.
    assert share == "one unit" or ranks_that_worked(divided) == num_processes


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [pytest.param((), id="alone"), pytest.param(torchrun(2), id="torchrun", marks=pytest.mark.long)]
)
def test_a_lone_process_and_shares_in_cpu_memory_make_it_too(plain, tmp_path, launcher):
    job, expected = plain("llava", "uneven")
    settings = json.loads((ROOT / "launch/deepspeed/zero3-offload.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = tmp_path / "offload.json"
    path.write_text(json.dumps(settings))
    divided = split(job, tmp_path, "--zero3_config", str(path))
    divided.run(*launcher)
    assert Result.of(divided.work_dir) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair", [pytest.param(("llava", "omnilmm"), marks=pytest.mark.long), ("omnilmm", "llava")], ids="-".join
)
def test_a_mixed_pair_is_split_too(plain, tmp_path, pair):
    folders = {"llava": GOLDENS, "omnilmm": OMNI}
    job = dataclasses.replace(
        plain("llava", "uneven")[0],
        work_dir=tmp_path / "plain", instruct=folders[pair[0]] / "instruct", reward=folders[pair[1]] / "reward",
    )  # fmt: skip
    job.run()
    divided = split(job, tmp_path)
    divided.world(2)
    assert Result.of(divided.work_dir) == Result.of(job.work_dir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "num_processes", "rank", "window"),
    [("llava", 2, 0, "scoring"), pytest.param("omnilmm", 3, 2, "sampling", marks=pytest.mark.long)],
)
def test_a_killed_rank_is_named_by_the_others_and_the_same_command_goes_on(
    plain, tmp_path, family, num_processes, rank, window
):
    job, expected = plain(family, "uneven")
    divided, log = split(job, tmp_path), tmp_path / "kills"
    environment = {"KILL_WINDOW": window, "KILL_RANK": str(rank), "KILL_LOG": str(log), "KILL_AT": "1"}
    output = divided.engine_script(num_processes, code=1, DATA_ENGINE_PROGRAM="killed", **environment)
    ended = time.time()
    assert log.read_text() == f"{window}\n"
    named = re.findall(rf"error: rank {rank} on \S+ died, or has not been heard of for 20 s", output)
    assert len(named) == num_processes - 1, output
    assert ended - log.stat().st_mtime < 60
    kept = {path: path.stat().st_mtime_ns for path in divided.work_dir.glob("*/unit-*.parquet")}
    divided.world(num_processes)
    assert Result.of(divided.work_dir) == expected
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "published units were computed again"
    assert not stray_files(divided.work_dir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("memory", "out of memory in a split model"),
        pytest.param("device", "uncorrectable ECC error", marks=pytest.mark.long),
    ],
)
def test_a_call_that_fails_on_one_rank_ends_the_job_by_name(plain, tmp_path, fault, told):
    """Nothing is retried inside a collective: the others would wait in it until its own timeout, half an hour."""
    job, _ = plain("llava", "uneven")
    divided, log = split(job, tmp_path), tmp_path / "fault"
    options = {"DATA_ENGINE_PROGRAM": "short_of_memory", "FAULT": fault, "FAULT_LOG": str(log)}
    output = divided.engine_script(2, code=1, **options)
    assert time.time() - log.stat().st_mtime < 60
    # By the other rank; and by the rank itself.
    assert re.search(rf"rank 1 on \S+ has ended: .*{told}", output), output
    assert output.count(told) > 1
    assert "two halves" not in output
    assert "its finished ones are kept" not in output


LOAD = """
import sys, threading, time
import data_engine.models.native.llava
from data_engine import load_model
from data_engine.models.sharding.lock_step import CallAgreement
from data_engine.models.sharding.zero3 import Zero3Split, deepspeed
from data_engine.models.sharding.settings import read_settings
from data_engine.processes.ranks import Ranks, join_process_group
from data_engine.processes.signals import Stopped

def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) * 1024

ranks = Ranks.from_environment()
store = join_process_group(ranks, "cpu")
split = Zero3Split(read_settings(None), CallAgreement(lambda: False, Stopped), ranks.rank)
deepspeed()
for _ in range(2):
    before, peak, done = anonymous(), 0, threading.Event()
    def watch():
        global peak
        while not done.is_set():
            peak = max(peak, anonymous()); time.sleep(0.002)
    thread = threading.Thread(target=watch); thread.start()
    model = load_model(None, sys.argv[1], device="cpu", dtype="bfloat16", split=split)
    peak = max(peak, anonymous()); done.set(); thread.join()
    print(f"rank {ranks.rank}: {(peak - before) / 1e9:.3f} GB", flush=True)
"""


@pytest.mark.slow
def test_no_rank_holds_more_than_its_share_while_loading(tmp_path):
    """1 GB of random weights on two ranks, twice in turn: a share each, and the second model in the first's place."""
    folder = tmp_path / "model"
    write_big_checkpoint(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert size > 0.95e9
    (tmp_path / "load.py").write_text(LOAD)
    command = [*torchrun(2), str(tmp_path / "load.py"), str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    print(output)
    peaks = {rank: re.findall(rf"rank {rank}: (-?[\d.]+) GB", output) for rank in (0, 1)}
    for first, second in peaks.values():
        # Half of it, and what stays whole or is on its way.
        assert 0.45 < float(first) < 0.75
        assert float(second) < 0.15


def write_big_checkpoint(folder: Path) -> None:
    """The goldens' LLaVA with a decoder of 0.5 billion random weights, in bf16."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaModel

    shutil.copytree(GOLDENS / "instruct", folder)
    shutil.copytree(GOLDENS / "openai", folder.parent / "openai")
    for file in folder.glob("model*"):
        file.unlink()
    sizes = {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 38, "vocab_size": 4000}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 8}
    config = json.loads((folder / "config.json").read_text()) | sizes
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        decoder = LlamaModel(LlamaConfig(**sizes))
    shapes = {f"model.{name}": value.shape for name, value in decoder.named_parameters()}
    shapes |= {"lm_head.weight": (4000, 1024), "model.mm_projector.0.weight": (1024, 32)}
    shapes |= {"model.mm_projector.0.bias": (1024,), "model.mm_projector.2.weight": (1024, 1024)}
    shapes |= {"model.mm_projector.2.bias": (1024,)}
    save_file({name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}, folder / "model.safetensors")


@pytest.mark.slow
def test_a_model_is_split_over_two_machines_too(plain, tmp_path):
    """Two launchers with the file for several nodes, one rank each, meeting at an address."""
    job, expected = plain("llava", "uneven")
    divided = split(job, tmp_path)
    config = (ROOT / "launch/accelerate/nodes.yaml").read_text()
    config = config.replace("use_cpu: false", "use_cpu: true").replace("num_processes: 16", "num_processes: 2")
    (tmp_path / "nodes.yaml").write_text(config.replace("gpu_ids: all\n", ""))
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "nodes.yaml"))
    meeting = ("--main_process_ip", "localhost", "--main_process_port", str(free_port()), "--machine_rank")
    command = [(*launch, *meeting, str(machine), "--module", "data_engine", "run") for machine in (0, 1)]
    machines = [subprocess.Popen([*words, *divided.arguments()], cwd=ROOT) for words in command]
    assert [machine.wait(timeout=300) for machine in machines] == [0, 0]
    assert Result.of(divided.work_dir) == expected
    assert ranks_that_worked(divided) == 2


@pytest.mark.long
@pytest.mark.slow
def test_a_signal_stops_all_ranks_with_75_and_the_same_command_goes_on(plain, tmp_path):
    job, expected = plain("llava", "uneven")
    divided = split(job, tmp_path)
    process = divided.start(
        str(ROOT / "launch/run_engine.sh"), NUM_PROCESSES="2", PYTHON=sys.executable,
        ACCELERATE_CONFIG=str(ROOT / "launch/accelerate/cpu.yaml"),
    )  # fmt: skip
    end = time.monotonic() + 120
    while not list((divided.work_dir / "sampled_answer").glob("unit-*")):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    divided.engine_script(2)
    assert Result.of(divided.work_dir) == expected
