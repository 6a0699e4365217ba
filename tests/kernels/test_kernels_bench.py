"""The kernels' benchmark runs, measures the work it names, and says what it did not measure."""

import importlib
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "kernels/bench/run.py", *arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_tiny_run_times_the_ways_that_the_cpu_has_and_says_so(tmp_path):
    done = bench("--tiny", "--output", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr
    assert "without the kernels: these figures say nothing about a GPU" in done.stdout
    result = json.loads((tmp_path / "figures.json").read_text())
    decode, scoring, logps = result["cases"]
    assert set(logps["ways"]) == {"eager", "mm, cross_entropy"}
    assert set(decode["ways"]) == {"eager", "sdpa, prefix copied"}
    assert set(scoring["ways"]) == {"prefix causal, answers behind", "flex_attention"}
    for case in (logps, decode, scoring):
        for name, way in case["ways"].items():
            assert name in done.stdout
            assert way["error"] < 1e-5
            unit = {"TFLOP/s": 1e12, "GB/s": 1e9}[case["unit"]]
            assert way["rate"] == pytest.approx(way["work"] / way["ms"] * 1e3 / unit)
            assert way["of_ceiling"] == pytest.approx(way["rate"] / result["ceilings"][case["unit"]])
    # 24 rows x 64 x 500 multiply-adds.
    assert logps["ways"]["eager"]["work"] == 2 * 24 * 64 * 500
    # fp32 keys and values of 2 heads x 16, and 12 queries of 6 heads x 16 in and out: three prefixes of 20 tokens, or
    # twelve copies of them; and twelve suffixes of 5.
    assert decode["ways"]["eager"]["work"] == 4 * (2 * (3 * 20 + 12 * 5) * 2 * 16 + 2 * 12 * 6 * 16)
    assert decode["ways"]["sdpa, prefix copied"]["work"] == 4 * (2 * (12 * 20 + 12 * 5) * 2 * 16 + 2 * 12 * 6 * 16)
    # Each of 3 questions: 20 x 21 / 2 pairs in the prefix; 4 answers of 5 tokens see its 20 and 5 x 6 / 2 of their own.
    assert scoring["ways"]["flex_attention"]["work"] == 4 * 3 * (210 + 4 * (100 + 15)) * 6 * 16
    # Prompts of 70, 65, 81 and 66 tokens; passes are filled up to a multiple of 128 rows.
    passes = result["prompt_passes"]["ways"]
    assert {name: way["rows"] for name, way in passes.items()} == {
        "1": [128, 128, 128, 128], "2": [256, 256], "4": [384], "1 as it is": [70, 65, 81, 66]
    }  # fmt: skip
    assert all(way["ms_a_prompt"] > 0 for way in passes.values())
    assert all(passes[number]["same_bits"] and passes[number]["would_run"] for number in "124")
    assert "to measure whether 384 rows agree" in done.stdout
    # In fp32 on a CPU all do.
    assert result["prompt_passes"]["agree"] == [[128, 256, 384, 512]]
    assert "the same bits in passes of 128, 256, 384, 512 rows" in done.stdout


def test_a_way_that_cannot_be_run_costs_the_others_nothing(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "kernels/bench")
    run, cases = (importlib.import_module(name) for name in ("run", "cases"))

    def broken() -> torch.Tensor:
        raise RuntimeError("out of resources")

    ones = torch.ones(3)
    case = cases.Case("sums", "GB/s", [cases.Way("broken", broken, 8), cases.Way("sound", lambda: ones, 8)], ones)
    measured = run.measure(case, torch.device("cpu"), 1.0)
    assert measured["failed"] == ["broken"]
    assert list(measured["ways"]) == ["sound"]
    assert measured["ways"]["sound"]["error"] == 0
    assert capsys.readouterr().err == "sums: broken: RuntimeError: out of resources\n"


def test_a_case_that_memory_does_not_hold_costs_the_others_nothing(monkeypatch, capsys):
    """Nor do the tensors of one lie beside those of the next."""
    monkeypatch.syspath_prepend(ROOT / "kernels/bench")
    run, cases = (importlib.import_module(name) for name in ("run", "cases"))
    alive = []

    def sums() -> cases.Case:
        assert [one for one in alive if one() is not None] == []
        ones = torch.ones(3)
        alive.append(weakref.ref(ones))
        return cases.Case("sums", "GB/s", [cases.Way("sound", lambda: ones, 8)], ones)

    def too_large() -> cases.Case:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GB")

    monkeypatch.setattr(run, "cases", lambda *of: iter([sums, too_large, sums]))
    monkeypatch.setattr(run, "ceilings", lambda device: {"GB/s": 1.0})
    monkeypatch.setattr(run.prompt_passes, "prompt_passes", lambda *of: {})
    monkeypatch.setattr(run.prompt_passes, "table", lambda found: "passes of prompts")
    assert run.main(["--tiny"]) == 1
    told = capsys.readouterr()
    assert told.out.count("sums") == 2
    assert told.out.endswith("passes of prompts\n")
    assert told.err == "a case is left out: CUDA out of memory. Tried to allocate 8 GB\n"


def test_layers_that_cannot_be_timed_one_way_are_timed_in_the_others(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "kernels/bench")
    layers = importlib.import_module("layers")

    def broken(decoder) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(layers, "WAYS", {"plain": lambda one: None, "broken": broken, "same": lambda one: None})
    monkeypatch.setattr(layers, "SHAPES", {"a step": (2, 1), "a prompt": (1, 3)})
    # Of each row, the two ways that can be run.
    spent = iter([0.004, 0.006, 0.01, 0.002])
    monkeypatch.setattr(layers.machine, "seconds_of", lambda call, device, times: [next(spent)])
    assert layers.main(["--tiny"]) == 1
    told = capsys.readouterr()
    assert [line.split() for line in told.out.splitlines()[-2:]] == [
        ["a", "step", "4.000", "1.000", "failed", "6.000", "1.500"],
        ["a", "prompt", "10.000", "1.000", "failed", "2.000", "0.200"],
    ]
    wrong = ["a step, broken: RuntimeError: no compiler", "a prompt, broken: RuntimeError: no compiler"]
    assert told.err.split("\n")[1::2] == wrong


@pytest.mark.slow
def test_without_a_cuda_device_the_whole_run_is_refused():
    done = bench()
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert not done.stdout
