"""How many engines of vLLM a machine runs, and which GPUs each of them sees."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_engine.commands import engines
from data_engine.errors import UserError
from data_engine.job import by_vllm
from data_engine.processes import ranks
from data_engine.stages import RunStages


@pytest.mark.parametrize(
    ("args", "more", "gpus", "wanted"),
    [
        ({}, [], 8, 8),
        ({"tensor_parallel_size": 2, "prefill_context_parallel_size": 2}, [], 8, 2),
        ({"tensor_parallel_size": 4}, [], 8, 2),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, [], 6, 1),
        ({"tensor_parallel_size": 4}, ["--continue_from_stage", "1"], 8, 8),
    ],
)
def test_a_machine_runs_as_many_engines_as_its_gpus_hold(args, more, gpus, wanted):
    flags = ["--instruct_model_path", "a", "--reward_model_path", "b", "--dataset_path", "c", "--work_dir", "d"]
    flags += ["--sampler", "vllm", "--vllm_args", json.dumps(args), *more]
    assert engines.num_ranks(gpus, flags) == wanted


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [({"tensor_parallel_size": 4}, 0, "2 ranks"), ({"tensor_parallel_size": 16}, 2, "engines of 16 GPUs")],
)
def test_the_launch_script_starts_as_many_ranks_as_there_are_engines(tmp_path, args, code, told):
    """On a machine that is said to have 8 GPUs; what would start the ranks says how many."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$1" in\n-c) echo 8 ;;\n-m) exec {sys.executable} "$@" ;;\n'
        '*) echo "$NUM_PROCESSES ranks" ;;\nesac\n'
    )
    python.chmod(0o755)
    flags = "--instruct_model_path a --reward_model_path b --dataset_path c --work_dir d --sampler vllm --vllm_args"
    kept = {name: value for name, value in os.environ.items() if name not in ("NUM_PROCESSES", "ACCELERATE_CONFIG")}
    script = Path(__file__).parents[2] / "launch/run_engine.sh"
    done = subprocess.run(
        [script, *flags.split(), json.dumps(args)], env=kept | {"PYTHON": str(python)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert told in done.stdout + done.stderr


def test_an_engine_larger_than_the_machine_is_refused(monkeypatch):
    flags = ["--instruct_model_path", "a", "--reward_model_path", "b", "--dataset_path", "c", "--work_dir", "d"]
    with pytest.raises(UserError, match=r"asks for engines of 16 GPUs .* and this machine has 8"):
        engines.num_ranks(8, [*flags, "--sampler", "vllm", "--vllm_args", '{"tensor_parallel_size": 16}'])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    with pytest.raises(UserError, match=r"4 engines of 4 GPUs were asked for .* and torch sees 8"):
        ranks.Ranks(0, 4, 0, 4).with_gpus(4)


def test_each_rank_sees_its_own_group_of_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    # The second of the second machine.
    second = ranks.Ranks(3, 4, 1, 2).with_gpus(2)
    assert ranks.os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert second.device("auto") == "cuda:0"
    for rank, seen in ((1, "6,7"), (0, "3,5")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
        ranks.Ranks(rank, 2, rank, 2).with_gpus(2)
        assert ranks.os.environ["CUDA_VISIBLE_DEVICES"] == seen
    # CUDA sees the names before the first that is no GPU.
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,-1,6")
    ranks.Ranks(1, 2, 1, 2).with_gpus(1)
    assert ranks.os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_gpus_that_make_no_whole_engine_are_told(capsys):
    flags = ["--instruct_model_path", "a", "--reward_model_path", "b", "--dataset_path", "c", "--work_dir", "d"]
    flags += ["--sampler", "vllm", "--vllm_args", '{"tensor_parallel_size": 4}']
    assert engines.num_ranks(8, flags) == 2
    assert not capsys.readouterr().err
    assert engines.num_ranks(7, flags) == 1
    assert "3 of 7 GPUs are left over: each engine of vLLM takes 4" in capsys.readouterr().err


def test_another_librarys_processes_see_nothing_of_the_launcher(monkeypatch):
    told = {
        "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a",
        "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_RANK": "0", "ROLE_RANK": "1",
        "ACCELERATE_MIXED_PRECISION": "no", "OTHER": "x",
    }  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with ranks.unlaunched("SET", OTHER="y", NEW="z"):
        inside = {name: ranks.os.environ.get(name) for name in (*told, "NEW")}
        # By the body, or by what it calls.
        ranks.os.environ["SET"] = "1"
    assert inside == dict.fromkeys(told) | {"OTHER": "y", "NEW": "z"}
    assert "SET" not in ranks.os.environ
    assert {name: ranks.os.environ.get(name) for name in (*told, "NEW")} == told | {"NEW": None}


@pytest.mark.parametrize(
    ("args", "stages", "device", "told"),
    [
        ({"tensor_parallel_size": 4}, {}, "cuda", True),
        ({"tensor_parallel_size": 4}, {"stop_after_stage": 0}, "cuda", False),
        ({"tensor_parallel_size": 4}, {"continue_from_stage": 1}, "cuda", False),
        ({"tensor_parallel_size": 4}, {}, "cpu", False),
        ({}, {}, "cuda", False),
    ],
)
def test_gpus_that_scoring_leaves_idle_are_told(settings, args, stages, device, told):
    config = settings(vllm_args=json.dumps(args), **stages)
    warnings = by_vllm.warnings(config, RunStages.of(vars(config)), device)
    assert any("scores too, by one GPU of each 4" in one for one in warnings) == told
