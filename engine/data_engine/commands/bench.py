"""`data-engine bench`: the engine against stock transformers, timed in one run; and what a dataset would take.

By default one random LLaVA-shaped model (336 px, 576 image tokens, LLaMA of 8 layers x 512) on the CPU, of which only
ratios mean anything; `--shape qwen2.5-vl` is as large, with M-RoPE and grouped heads; with --model a checkpoint
of the user's, on the user's device. Every way does the same work from pixels on. Prints a table, and writes JSON if
asked.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from data_engine.bench import measure
from data_engine.bench.model import Sizes
from data_engine.bench.shapes import SHAPES
from data_engine.bench.steady import LONG
from data_engine.bench.table import table
from data_engine.commands.examples import Parser
from data_engine.errors import UserError

QUICK = {"questions": 2, "drawn_questions": 2, "most_tokens": 160, "rounds": 1}
# To see that every part runs; its figures say nothing.
TINY = {
    "k": 2,
    "questions": 2,
    "drawn_questions": 3,
    "answer_tokens": 5,
    "new_tokens": 3,
    "most_tokens": 6,
    "rounds": 1,
}


def main(argv: Sequence[str]) -> int:
    """Run the benchmark and print its table; the exit code is 0."""
    arguments = _parser().parse_args(argv)
    if arguments.output:
        _make_place(arguments.output)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    smaller = TINY if arguments.tiny else QUICK if arguments.quick else {}
    drawn = {"drawn_questions": arguments.drawn_questions} if arguments.drawn_questions else {}
    sizes = replace(Sizes(vocab=arguments.vocab, rounds=arguments.rounds), **smaller | drawn)
    options = measure.Options(**{field.name: getattr(arguments, field.name) for field in fields(measure.Options)})
    result = measure.run(sizes, options)
    print(table(result))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _make_place(output: Path) -> None:
    """Raise UserError, before minutes of measuring, where the result could not be written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        is_new = not output.exists()
        # Not truncated: what is there stays until there is a result.
        output.open("a").close()
        if is_new:
            output.unlink()
    except OSError as error:
        raise UserError(f'--output "{output}" cannot be written: {error.strerror}') from None


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'must be a whole number, at least 1, got "{text}"')
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="data-engine bench", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--model", metavar="PATH", help="a checkpoint, folder or hub id (default: random, LLaVA-shaped)"
    )
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the built-in model (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: %(default)s)")
    parser.add_argument(
        "--rows", type=_at_least_one, metavar="N", help="answers decoded at a time (default: as run would)"
    )
    parser.add_argument(
        "--rounds", type=_at_least_one, default=Sizes.rounds, metavar="N", help="medians of (default: %(default)s)"
    )
    parser.add_argument("--drawn_questions", type=_at_least_one, metavar="N",
                        help=f"questions with answers of drawn lengths (default: {Sizes.drawn_questions}); on a GPU, "
                        f"the steady rate takes {LONG} times the rows / k")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one round of two questions: some minutes")
    parser.add_argument("--compile_layers", action="store_true", help="the engine's layers by torch.compile, as in run")
    parser.add_argument("--alone", action="store_true", help="the engine alone, without stock transformers")
    parser.add_argument("--vllm", action="store_true",
                        help="time vLLM too; it takes --shape qwen2.5-vl, or a --model that it knows")  # fmt: skip
    parser.add_argument("--vllm-if-there", action="store_true",
                        help="the same where it is installed and takes the model; else it says why not")  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write sizes, seconds and ratios as JSON")
    parser.add_argument("--vocab", type=_at_least_one, default=Sizes.vocab, metavar="N",
                        help="vocabulary of the built-in model (default: %(default)s)")  # fmt: skip
    parser.add_argument("--questions", type=_at_least_one, default=100_000, metavar="N",
                        help="size of the dataset that is estimated (default: %(default)s)")  # fmt: skip
    parser.add_argument("--threads", type=_at_least_one, metavar="N", help="CPU threads (default: torch's)")
    return parser
