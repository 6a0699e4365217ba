"""`data-engine bench`: the engine against stock transformers, timed in one run; and what a dataset would take.

By default one random LLaVA-shaped model (336 px, 576 image tokens, LLaMA of 8 layers x 512) on the CPU, of which only
ratios mean anything; with --model a checkpoint of the user's, on the user's device. Every way does the same work from
pixels on. Prints a table, and writes JSON if asked.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers.utils import logging

from data_engine.bench.job import Job
from data_engine.bench.machine import PeakMemory, ceilings, estimate, least_seconds, loop_budgets, machine, settled
from data_engine.bench.model import SHAPES, Sizes, Subject, write_checkpoint
from data_engine.bench.ways import WAYS, Ways, half_of
from data_engine.models.base import pick_device, pick_dtype
from data_engine.models.registry import resolve
from data_engine.sampling.memory import rows_without_pages
from data_engine.sampling.native.kv_cache import num_slots
from data_engine.sampling.native.scheduler import Decoder
from data_engine_kernels import use_triton

QUICK = {"questions": 2, "drawn_questions": 2, "most_tokens": 160, "rounds": 1}


def main(argv: Sequence[str]) -> int:
    """Run the benchmark and print its table; the exit code is 0."""
    parser = argparse.ArgumentParser(prog="data-engine bench", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--model", metavar="PATH", help="a checkpoint, folder or hub id (default: random, LLaVA-shaped)"
    )
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the built-in model (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: %(default)s)")
    parser.add_argument("--rows", type=int, metavar="N", help="answers decoded at a time (default: as run would)")
    parser.add_argument(
        "--rounds", type=int, default=Sizes.rounds, metavar="N", help="medians of (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="one round of two questions: a minute or two")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write sizes, seconds and ratios as JSON")
    parser.add_argument("--vocab", type=int, default=Sizes.vocab, metavar="N",
                        help="vocabulary of the built-in model (default: %(default)s)")  # fmt: skip
    parser.add_argument("--questions", type=int, default=100_000, metavar="N",
                        help="size of the dataset that is estimated (default: %(default)s)")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    sizes = replace(Sizes(vocab=arguments.vocab, rounds=arguments.rounds), **(QUICK if arguments.quick else {}))
    result = run(sizes, arguments)
    print(table(result))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def run(sizes: Sizes, arguments: argparse.Namespace) -> dict:
    """Time every way, round by round in turn; seconds, rates and ratios by way."""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        device, folder = pick_device(arguments.device), Path(scratch, "model")
        if arguments.model:
            folder = resolve(arguments.model)
        else:
            write_checkpoint(folder, sizes.vocab, arguments.shape, str(device), pick_dtype(arguments.dtype, device))
        subject = Subject(folder, sizes, str(device), arguments.dtype)
        found = loop_budgets(subject.engine, sizes.k, sizes.most_tokens)
        fused = sizes.k if use_triton(subject.engine.head_weight) else None
        rows = arguments.rows or found["decode_rows"]
        if not (arguments.rows or fused):
            rows = rows_without_pages(rows, device.type)
        ways = Ways(subject, Decoder(subject.engine, rows, num_slots(rows, sizes.k), fused))
        job = Job(subject, ways.decoder, Path(scratch), found["score_tokens"])
        timed = {name: ways.by_name.get(name, job.run) for name in WAYS}
        if subject.stock is None:
            timed = {name: way for name, way in timed.items() if name.startswith("engine")}
        warm_up(subject, ways)
        measured = measure(timed, sizes.rounds, device)
        peak = ceilings(device, subject.engine.dtype)
        per_question = job.figures.seconds / sizes.drawn_questions
        rates = {name: one["tokens"] / statistics.median(one["seconds"]) for name, one in measured.items()}
        return {
            "sizes": asdict(sizes) | {"prefix_tokens": len(subject.prompt_P), "rows": rows},
            "model": str(folder) if arguments.model else f"random weights, {arguments.shape}",
            "dtype": str(subject.engine.dtype).removeprefix("torch."),
            "machine": machine(device) | peak,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "no_stock": subject.why_no_stock,
            "largest_difference_nat": ways.largest_difference(),
            "ways": measured,
            "tokens_a_second": rates,
            "questions_a_second": questions_a_second(measured, sizes),
            "share_of_ceiling": {
                name: least / statistics.median(measured[name]["seconds"])
                for name, least in least_seconds(subject, peak).items()
            },
            "engine_is_faster_by": ratios(measured),
            "lookahead_gain": lookahead_gain(measured),
            "overhead": job.figures.overhead if device.type == "cpu" else None,
            "estimate": estimate(
                arguments.questions, per_question, job.figures.bytes_on_disk / sizes.drawn_questions, device
            ),
        }


def warm_up(subject: Subject, ways: Ways) -> None:
    """Each kind of call once, so that nothing is timed for being first."""
    two = torch.full((1, subject.sizes.k), 2)
    ways.sample_by_engine(two)
    ways.score_by_engine()
    if subject.stock is not None:
        ways.generate([0], two)
        ways.score_one_at_a_time_twice(subject.answers_BKL[0][:1])
        ways.score_padded_batch()


def measure(timed: dict[str, Callable[[], int]], rounds: int, device: torch.device) -> dict[str, dict]:
    """Seconds by round, tokens and peak memory of each way. In turn, so that a slower minute falls on all of them."""
    found: dict[str, dict] = {name: {"seconds": [], "tokens": 0, "peak_bytes": None} for name in timed}
    peak = PeakMemory(device)
    turns = [name for number in range(rounds) for name in timed if not number or not WAYS[name].once]
    with tqdm(turns, unit="way", desc="bench", dynamic_ncols=True) as bar:
        for name in bar:
            bar.set_postfix_str(name)
            peak.start()
            start = settled(device)
            found[name]["tokens"] = timed[name]()
            found[name]["seconds"].append(settled(device) - start)
            found[name]["peak_bytes"] = peak.read()
    return found


def ratios(measured: dict[str, dict]) -> dict[str, float]:
    """How many times the tokens a second of each stock way the engine reaches: the median over rounds of the ratio
    within a round, in which a slower minute falls on both."""
    found = {}
    for name, one in measured.items():
        if not name.startswith("engine"):
            engine = next(m for n, m in measured.items() if n.startswith("engine") and WAYS[n].work == WAYS[name].work)
            speed_up = engine["tokens"] / one["tokens"]
            found[name] = speed_up * statistics.median(
                stock / ours for stock, ours in zip(one["seconds"], engine["seconds"], strict=False)
            )
    return found


def lookahead_gain(measured: dict[str, dict]) -> float:
    """How many times as fast two units are sampled from one queue, as --lookahead does, as one after the other; in the
    rounds that have both."""
    pairs = zip(measured["engine, two units"]["seconds"], measured["engine, drawn lengths"]["seconds"], strict=False)
    return statistics.median(one_by_one / ahead for one_by_one, ahead in pairs)


def questions_a_second(measured: dict[str, dict], sizes: Sizes) -> dict[str, float]:
    """Of the engine's ways, which do whole questions."""
    count = {"engine, scoring": max(1, sizes.questions // 4), "engine, sampling": sizes.questions}
    return {
        name: count.get(name, sizes.drawn_questions) / statistics.median(one["seconds"])
        for name, one in measured.items()
        if name.startswith("engine")
    }


def table(result: dict) -> str:
    """The result for people."""
    sizes, machine = result["sizes"], result["machine"]
    lines = [
        f"{result['model']}: {sizes['prefix_tokens']} prefix tokens, k = {sizes['k']}, {sizes['answer_tokens']} scored "
        f"and {sizes['new_tokens']} sampled tokens an answer, {result['dtype']}, {machine['device']}, "
        f"{machine['threads']} threads, median of {sizes['rounds']}",
        f"{'':26}{'tokens/s':>9}{'questions/s':>12}{'peak GB':>9}{'ceiling':>9}{'engine is':>15}",
    ]
    for name, one in result["ways"].items():
        ratio, share = result["engine_is_faster_by"].get(name), result["share_of_ceiling"].get(name)
        questions, peak = result["questions_a_second"].get(name), one["peak_bytes"]
        lines.append(
            f"{name:26}{result['tokens_a_second'][name]:9.0f}{f'{questions:.3f}' if questions else '':>12}"
            f"{f'{peak / 1e9:.1f}' if peak else '':>9}{f'{share:.0%}' if share else '':>9}"
            f"{f'{ratio:.1f} x faster' if ratio else '':>15}   {WAYS[name].what}"
        )
    return "\n".join(lines + _remarks(result))


def _remarks(result: dict) -> list[str]:
    machine, told = result["machine"], result["estimate"]
    lines = [
        f"ceilings measured here: {machine['matmul_flops'] / 1e9:.0f} GFLOP/s, {machine['read_bytes'] / 1e9:.0f} GB/s"
    ]
    if result["no_stock"]:
        lines.append(result["no_stock"])
    if result["largest_difference_nat"] is not None:
        lines.append(f"largest difference of a log-prob to transformers: {result['largest_difference_nat']:.1e} nat")
    half = half_of(result["sizes"]["drawn_questions"])
    lines.append(f"--lookahead samples two units of {half} questions {result['lookahead_gain']:.2f} times as fast")
    if result["overhead"] is not None:
        lines.append(f"whole job: {result['overhead']:.1%} of the time is in no model call")
    gpus = "" if told["gpu_hours"] is None else f", {told['gpu_hours']:.1f} GPU-hours"
    lines.append(
        f"{told['questions']} questions at this pace, one rank: {told['hours']:.1f} hours{gpus}, "
        f"{told['disk_bytes'] / 1e9:.1f} GB on disk with images as large as these"
    )
    return lines
