"""Prompts of LLaVA-1.5-7B's length in passes of one, two and four: the time of each, and whether its bits are the same;
and how many lengths of a prompt alone agree with such passes.

By the engine's own code, on a decoder of that size; the vision tower, which runs an image at a time, is left out.
"""

import functools
import statistics
import time
from collections.abc import Sequence

import torch

from data_engine.bench import machine
from data_engine.bench.bare_llama import LLAMA_7B, TINY_LLAMA, BareLlama, EmbeddedPrompt
from data_engine.models.prefix import Prefix, run_prefix, run_prefixes
from data_engine.sampling.native.packing import Packing, rows_for

# Tokens of four prompts: 576 of an image, and a question.
LENGTHS, TINY_LENGTHS = (616, 604, 631, 622), (70, 65, 81, 66)
# Whose number of rows is held against that of each pass: a prompt whose bits are others alone never shares one.
ALONE, TINY_ALONE = range(580, 708), range(61, 77)


@torch.inference_mode()
def prompt_passes(device: torch.device, tiny: bool) -> dict:
    """Of passes of so many prompts: the rows, ms a prompt, whether bits are those of prompts alone, and whether the
    engine would run them so.
    """
    model = BareLlama(TINY_LLAMA if tiny else LLAMA_7B, device, torch.float32 if tiny else torch.bfloat16)
    prompts = [model.prompt(length) for length in (TINY_LENGTHS if tiny else LENGTHS)]
    alone, packing, ways = [run_prefix(model, one) for one in prompts], Packing(model), {}
    for number in (1, 2, 4):
        groups = [prompts[first : first + number] for first in range(0, len(prompts), number)]
        lengths = [[one.length for one in group] for group in groups]
        found = run(model, groups)
        spent = statistics.median(machine.seconds_of(functools.partial(run, model, groups), device, 3 if tiny else 20))
        ways[str(number)] = {
            "rows": [sum(each) if number == 1 else rows_for(each) for each in lengths],
            "ms_a_prompt": spent * 1e3 / len(prompts),
            "same_bits": all(same_bits(*both) for both in zip(found, alone, strict=True)),
            "would_run": number == 1 or all(packing.agree(each) for each in lengths),
        }
    start = time.perf_counter()
    Packing(model).fingerprint(ways["4"]["rows"][0])
    spent, tried = time.perf_counter() - start, TINY_ALONE if tiny else ALONE
    rows = sorted({number for name in ("2", "4") for number in ways[name]["rows"]})
    agree = {str(number): agreeing(packing, number, tried) for number in rows}
    return {"ways": ways, "ms_to_measure": spent * 1e3, "lengths": [tried.start, tried.stop - 1], "agree": agree}


def agreeing(packing: Packing, num_rows: int, lengths: Sequence[int]) -> int:
    """How many of these lengths of a prompt alone have the fingerprint of a pass of so many rows."""
    expected = packing.fingerprint(num_rows)
    return sum(expected is not None and packing.fingerprint(length) == expected for length in lengths)


def run(model: BareLlama, groups: Sequence[Sequence[EmbeddedPrompt]]) -> list[Prefix]:
    """What all prompts leave, those of a group run in one pass."""
    found = []
    for group in groups:
        lengths = [one.length for one in group]
        found += run_prefixes(model, group, rows_for(lengths)) if len(group) > 1 else [run_prefix(model, *group)]
    return found


def same_bits(one: Prefix, other: Prefix) -> bool:
    """Whether two runs of a prompt left the same."""
    layers = zip(one.layers.values(), other.layers.values(), strict=True)
    same = all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in layers)
    return same and torch.equal(one.end.hidden_D, other.end.hidden_D)


def table(measured: dict) -> str:
    """The figures, a line for each number of prompts."""
    alone = measured["ways"]["1"]["ms_a_prompt"]
    names = f"{'':12}{'rows':>24}{'ms a prompt':>14}{'of one alone':>15}{'same bits':>12}{'would run so':>15}"
    lines = ["", "prompts in a pass of the decoder, without vision tower", names]
    for number, way in measured["ways"].items():
        rows = ", ".join(map(str, way["rows"]))
        times = f"{way['ms_a_prompt']:14.2f}{way['ms_a_prompt'] / alone:15.1%}"
        same, runs = ("yes" if way[name] else "no" for name in ("same_bits", "would_run"))
        lines.append(f"{number:12}{rows:>24}{times}{same:>12}{runs:>15}")
    lines.append(f"to measure whether {measured['ways']['4']['rows'][0]} rows agree, once: "
                 f"{measured['ms_to_measure']:.1f} ms")  # fmt: skip
    first, last = measured["lengths"]
    agree = ", ".join(f"{number} with a pass of {rows} rows" for rows, number in measured["agree"].items())
    lines.append(f"of the {last - first + 1} lengths from {first} to {last} tokens agree: {agree}")
    return "\n".join(lines)
