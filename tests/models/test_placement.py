"""--zero3: whole models or split ones, by arithmetic; and DeepSpeed's settings, as the user may give them."""

import json
from pathlib import Path

import pytest
import torch

from data_engine.commands import main
from data_engine.errors import UserError
from data_engine.models.sharding import placement
from data_engine.models.sharding.placement import decide
from data_engine.models.sharding.settings import SETTINGS, read_settings
from data_engine.processes import memory_limit
from data_engine.processes.ranks import Ranks

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
FOUR, ALONE = Ranks(0, 4, 0, 4), Ranks()


def memory(monkeypatch, size: int) -> None:
    monkeypatch.setattr(placement, "total_memory_bytes", lambda device: size)


def test_ranks_on_the_cpu_share_what_the_container_lets_them_have(monkeypatch):
    monkeypatch.setattr(memory_limit, "memory_bytes", lambda: 8 * GIB)
    # Of 2 GiB a rank, half is working room.
    decision = decide("auto", GIB, FOUR, CPU)
    assert (decision.memory_bytes, decision.working_room_bytes, decision.split) == (2 * GIB, GIB, False)
    assert decide("auto", GIB + 1, FOUR, CPU).split


@pytest.mark.parametrize(
    ("asked", "weights", "ranks", "split"),
    [
        ("auto", 16 * GIB, FOUR, False),  # 16 + 8 = 24
        ("auto", 16 * GIB + 1, FOUR, True),
        ("auto", 40 * GIB, ALONE, False),  # nobody to split with
        ("on", GIB, FOUR, True),
        ("on", GIB, ALONE, True),
        ("off", 40 * GIB, FOUR, False),
    ],
)
def test_a_gpu_of_24_gib_holds_16_gib_of_weights_whole(monkeypatch, asked, weights, ranks, split):
    memory(monkeypatch, 24 * GIB)
    assert decide(asked, weights, ranks, CUDA).split is split
    # As half of one of 48, by --memory_fraction.
    memory(monkeypatch, 48 * GIB)
    assert decide(asked, weights, ranks, CUDA, 0.5).split is split


@pytest.mark.parametrize(
    ("size", "weights", "split"),
    [
        # Four ranks share the memory: 4 * 6 + 8 = 32.
        (32 * GIB, 6 * GIB, False),
        (32 * GIB, 6 * GIB + 1, True),
        # A small machine: half of it for the weights.
        (4 * GIB, GIB // 2, False),
        (4 * GIB, GIB // 2 + 1, True),
    ],
)
def test_on_cpu_the_ranks_of_a_machine_share_its_memory(monkeypatch, size, weights, split):
    memory(monkeypatch, size)
    assert decide("auto", weights, FOUR, CPU).split is split


def test_the_decision_tells_its_arithmetic(monkeypatch):
    memory(monkeypatch, 24_000_000_000)
    told = "8.6 GB of working room > 24.0 GB of memory a rank"
    decision = decide("auto", 23_228_786_176, FOUR, CUDA)
    assert str(decision) == f"zero3 auto: split over 4 ranks (23.2 GB of weights + {told})"


def test_the_shipped_settings_are_the_built_in_ones_and_those_with_offloading():
    assert read_settings(None) == SETTINGS == read_settings(str(ROOT / "launch/deepspeed/zero3.json"))
    offload = read_settings(str(ROOT / "launch/deepspeed/zero3-offload.json"))
    assert offload["zero_optimization"].pop("offload_param") == {"device": "cpu", "pin_memory": True}
    assert offload == SETTINGS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", 'zero3.json" cannot be read as JSON'),
        ("[]", 'must be an object with {"zero_optimization": {"stage": 3, ...}}'),
        ('{"zero_optimization": {"stage": 2}}', "must be an object with"),
        ('{"zero_optimization": {"stage": 3}, "bf16": {"enabled": true}}', "sets bf16; the engine sets those itself"),
    ],
)
def test_settings_that_are_none_are_refused_by_validate_too(tmp_path, capsys, text, message):
    path = tmp_path / "zero3.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_settings(str(path))
    assert message in str(error.value)
    paths = [
        f"--{name}={tmp_path}" for name in ("instruct_model_path", "reward_model_path", "dataset_path", "work_dir")
    ]
    assert main.main(["validate", *paths, f"--zero3_config={path}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["bf16", "fp16", "train_micro_batch_size_per_gpu", "train_batch_size", "optimizer", "scheduler"]
)
def test_settings_that_are_the_engines_are_refused_by_name(tmp_path, name):
    (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": {"stage": 3}, name: {}}))
    with pytest.raises(UserError, match=f"sets {name}; the engine sets those itself, leave them out"):
        read_settings(str(tmp_path / "zero3.json"))


@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_file_of_settings_that_is_none_is_refused_where_nothing_is_split_too(goldens, tmp_path, capsys, command):
    flags = {f"{role}_model_path": goldens / "llava" / role for role in ("instruct", "reward")}
    flags |= {"dataset_path": goldens / "llava/dataset/questions.parquet", "work_dir": tmp_path / "work"}
    flags |= {"zero3": "off", "zero3_config": tmp_path / "none.json"}
    assert main.main([command, *(f"--{name}={value}" for name, value in flags.items())]) == 2
    told = capsys.readouterr().err
    assert f'error: zero3_config "{tmp_path}/none.json" cannot be read as JSON' in told
    assert "Traceback" not in told
    assert not (tmp_path / "work/run.json").exists()


def test_the_configurations_of_12b_models_split_them():
    import yaml

    for name in ("omnilmm-12b", "rlaif-v-12b"):
        assert yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())["zero3"] == "on"


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"zero3_config .*no-such\.json"):
        read_settings(str(tmp_path / "no-such.json"))


def test_settings_are_a_copy_each_time():
    read_settings(None)["zero_optimization"]["stage"] = 2
    assert json.dumps(read_settings(None)) == json.dumps(SETTINGS)
