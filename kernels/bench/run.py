"""`python kernels/bench/run.py`: the kernels against the eager path, the best library calls, and the card's ceilings;
and prompts in passes of one and of several.

Needs a CUDA device. The ceilings, a large bf16 product and the reading of a large buffer, are measured in the same run.
Every other figure is the median of many calls, each with a cold L2 cache: in a model the layers evict each other's data
from it. `--tiny` runs small shapes on the CPU instead, without the kernels, to show that this script works; its figures
say nothing about a GPU.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import prompt_passes
import torch
from cases import CHECKED, Case, Way, cases
from torch import Tensor

from data_engine.bench import machine

# FLOP/s and bytes/s in each unit.
SCALES = {"TFLOP/s": 1e12, "GB/s": 1e9}


def main(argv: list[str]) -> int:
    """Print the tables; exit code 1 where a way could not be run, 2 where there is no CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU, without the kernels")
    parser.add_argument("--sweep", action="store_true", help="also time the kernels with other tiles and splits")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args(argv)
    if not arguments.tiny and not torch.cuda.is_available():
        print("no CUDA device, which these figures are about; --tiny runs small shapes on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if arguments.tiny else "cuda")
    torch.manual_seed(0)
    lacked_memory = False

    def keep() -> None:
        """What there is so far, for whoever stops it or has it stopped."""
        if arguments.output:
            arguments.output.write_text(json.dumps(result, indent=2) + "\n")

    with torch.inference_mode():
        result = {"machine": machine.machine(device) | machine.versions(device)}
        result |= {"ceilings": ceilings(device), "cases": []}
        print(heading(result, device), flush=True)
        for make in cases(device, arguments.tiny, arguments.sweep):
            if (measured := made_and_measured(make, device, result["ceilings"])) is None:
                lacked_memory = True
                continue
            result["cases"].append(measured)
            print(table(measured), flush=True)
            keep()
    result["prompt_passes"] = prompt_passes.prompt_passes(device, arguments.tiny)
    print(prompt_passes.table(result["prompt_passes"]), flush=True)
    keep()
    failed = [f"{case['case']}: {name}" for case in result["cases"] for name in case["failed"]]
    if failed:
        print("could not be run:\n  " + "\n  ".join(failed), file=sys.stderr)
    return int(bool(failed) or lacked_memory)


def ceilings(device: torch.device) -> dict[str, float]:
    """The most that this device was seen to do, in the units of the cases."""
    found = machine.ceilings(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return {unit: found[name] / SCALES[unit] for unit, name in (("TFLOP/s", "matmul_flops"), ("GB/s", "read_bytes"))}


def milliseconds(run: Callable[[], Tensor], device: torch.device) -> float:
    """Median time of a call, compiled and warm, with a cold cache on CUDA."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return do_bench(run, warmup=100, rep=500, return_mode="median")
    run()
    return statistics.median(machine.seconds_of(run, device, 5)) * 1e3


def rate(work: int, spent_ms: float, unit: str) -> float:
    """FLOP or bytes in milliseconds -> TFLOP/s or GB/s."""
    return work / (spent_ms * 1e-3) / SCALES[unit]


def made_and_measured(make: Callable[[], Case], device: torch.device, ceilings: dict[str, float]) -> dict | None:
    """The figures of a case, of which no tensor is left; None for one that the memory does not hold, which is told."""
    try:
        case = make()
    except torch.OutOfMemoryError as error:
        print(f"a case is left out: {error}", file=sys.stderr, flush=True)
        return None
    return measure(case, device, ceilings[case.unit])


def measure(case: Case, device: torch.device, ceiling: float) -> dict:
    """The figures of each way; one that cannot be compiled or run is told, and costs the others nothing."""
    ways, failed = {}, []
    for way in case.ways:
        try:
            ways[way.name] = measure_way(way, case, device, ceiling)
        # Triton's compiler and launcher raise errors of many kinds.
        except Exception as error:
            failed.append(way.name)
            print(f"{case.name}: {way.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return {"case": case.name, "unit": case.unit, "ways": ways, "failed": failed}


def measure_way(way: Way, case: Case, device: torch.device, ceiling: float) -> dict:
    error = float((way.run()[:CHECKED].double() - case.exact).abs().max())
    spent_ms = milliseconds(way.run, device)
    reached = rate(way.work, spent_ms, case.unit)
    return {
        "ms": spent_ms,
        "work": way.work,
        "rate": reached,
        "of_ceiling": reached / ceiling,
        "peak_mb": peak_mb(way.run, device),
        "error": error,
    }


def peak_mb(run: Callable[[], Tensor], device: torch.device) -> float | None:
    """Memory that a call needs beyond its inputs, result included; known on CUDA alone."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def heading(result: dict, device: torch.device) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    limits = ", ".join(f"{value:.4g} {unit}" for unit, value in result["ceilings"].items())
    lines = [versions, f"ceilings measured: {limits}"]
    if device.type == "cpu":
        lines.append("tiny shapes on the CPU, without the kernels: these figures say nothing about a GPU")
    return "\n".join(lines)


def table(measured: dict) -> str:
    unit = measured["unit"]
    lines = ["", measured["case"], f"{'':32}{'ms':>9}{unit:>10}{'of ceiling':>12}{'peak MB':>10}{'error':>10}"]
    for name, way in measured["ways"].items():
        peak = "-" if way["peak_mb"] is None else f"{way['peak_mb']:.0f}"
        lines.append(
            f"{name:32}{way['ms']:9.3f}{way['rate']:10.4g}{way['of_ceiling']:12.1%}{peak:>10}{way['error']:10.1e}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
