"""`data-engine bench`: the engine's scoring and sampling against stock transformers, timed in one run, as ratios.

One random LLaVA-shaped model (336 px, 576 image tokens, LLaMA of 8 layers x 512), fp32, on the CPU. Every way does the
same work from pixels on; only ratios mean anything, since the model is small. Prints a table, and writes JSON if asked.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from data_engine.bench_ways import WAYS, Bench, Sizes


def main(argv: Sequence[str]) -> int:
    """Run the benchmark and print its table; the exit code is 0."""
    parser = argparse.ArgumentParser(prog="data-engine bench", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="one round of two questions: a minute instead of several")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write sizes, seconds and ratios as JSON")
    parser.add_argument("--vocab", type=int, default=Sizes.vocab, metavar="N", help="vocabulary (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    arguments = parser.parse_args(argv)
    quick = {"questions": 2, "rounds": 1} if arguments.quick else {}
    result = run(Sizes(vocab=arguments.vocab, **quick), arguments.threads)
    print(table(result))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def run(sizes: Sizes, threads: int | None = None) -> dict:
    """Time every way, round by round in turn; seconds, rates and ratios by way."""
    if threads:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), sizes)
    bench.warm_up()
    # In turn, so that a slower minute of the machine falls on all of them.
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    tokens: dict[str, int] = {}
    for _ in range(sizes.rounds):
        for name in WAYS:
            spent, tokens[name] = timed(bench.ways[name])
            seconds[name].append(spent)
    rates = {name: tokens[name] / statistics.median(spent) for name, spent in seconds.items()}
    return {
        "sizes": asdict(sizes) | {"prefix_tokens": bench.prefix_tokens},
        "machine": {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "processor": platform.machine()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "largest_difference_nat": bench.largest_difference(),
        "seconds": seconds,
        "tokens_a_second": rates,
        "engine_is_faster_by": {
            name: rates[f"engine, {work}"] / rates[name]
            for name, (work, _) in WAYS.items()
            if not name.startswith("engine")
        },
    }


def timed(way: Callable[[], int]) -> tuple[float, int]:
    """Seconds that a way took, and the tokens it scored or drew."""
    start = time.perf_counter()
    tokens = way()
    return time.perf_counter() - start, tokens


def table(result: dict) -> str:
    """The result for people."""
    sizes, machine = result["sizes"], result["machine"]
    lines = [
        f"{sizes['prefix_tokens']} prefix tokens, k = {sizes['k']}, {sizes['answer_tokens']} scored and "
        f"{sizes['new_tokens']} sampled tokens an answer, vocabulary {sizes['vocab']}, fp32, "
        f"{machine['threads']} threads, median of {sizes['rounds']}",
        f"{'':26}{'tokens/s':>9}  {'engine is':>11}",
    ]
    for name, (_, what) in WAYS.items():
        ratio = result["engine_is_faster_by"].get(name)
        shown = f"{ratio:.1f} x faster" if ratio else ""
        lines.append(f"{name:26}{result['tokens_a_second'][name]:9.0f}  {shown:>13}   {what}")
    lines.append(
        f"largest difference of a log-prob between engine and transformers: {result['largest_difference_nat']:.1e} nat"
    )
    return "\n".join(lines)
