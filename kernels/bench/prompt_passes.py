"""Prompts of LLaVA-1.5-7B's length in passes of one, two and four: the time of each, and whether its bits are the same;
what filling up a prompt's own pass costs; and which numbers of rows have the same bits.

By the engine's own code, on a decoder of that size; the vision tower, which runs an image at a time, is left out.
"""

import functools
import statistics
import time
from collections.abc import Sequence

import torch

from data_engine.bench import machine
from data_engine.bench.bare_llama import LLAMA_7B, TINY_LLAMA, BareLlama, EmbeddedPrompt
from data_engine.models.layers.prefix import Prefix, run_prefix, run_prefixes
from data_engine.sampling.native.packing import MOST_TOKENS, ROUND, Packing, rows_for

# Tokens of four prompts: 576 of an image, and a question.
LENGTHS, TINY_LENGTHS = (616, 604, 631, 622), (70, 65, 81, 66)
# Numbers of rows that passes have: prompts go together where theirs have the same bits.
ROWS, TINY_ROWS = range(ROUND, MOST_TOKENS + 1, ROUND), range(ROUND, 4 * ROUND + 1, ROUND)


@torch.inference_mode()
def prompt_passes(device: torch.device, tiny: bool) -> dict:
    """Of passes of so many prompts: the rows, ms a prompt, whether bits are those of prompts alone, and whether the
    engine would run them so.
    """
    model = BareLlama(TINY_LLAMA if tiny else LLAMA_7B, device, torch.float32 if tiny else torch.bfloat16)
    prompts = [model.prompt(length) for length in (TINY_LENGTHS if tiny else LENGTHS)]
    alone, packing, ways = run(model, [[one] for one in prompts]), Packing(model), {}
    for number in (1, 2, 4):
        groups = [prompts[first : first + number] for first in range(0, len(prompts), number)]
        lengths = [[one.length for one in group] for group in groups]
        found = run(model, groups)
        spent = statistics.median(machine.seconds_of(functools.partial(run, model, groups), device, 3 if tiny else 20))
        ways[str(number)] = {
            "rows": [rows_for(each) for each in lengths],
            "ms_a_prompt": spent * 1e3 / len(prompts),
            "same_bits": all(same_bits(*both) for both in zip(found, alone, strict=True)),
            "would_run": all(packing.agree(each) for each in lengths),
        }

    def as_it_is() -> None:
        for one in prompts:
            run_prefix(model, one)

    spent = statistics.median(machine.seconds_of(as_it_is, device, 3 if tiny else 20))
    ways["1 as it is"] = {"rows": [one.length for one in prompts], "ms_a_prompt": spent * 1e3 / len(prompts)}
    start = time.perf_counter()
    Packing(model).fingerprint(ways["4"]["rows"][0])
    spent = time.perf_counter() - start
    return {"ways": ways, "ms_to_measure": spent * 1e3, "agree": agreeing(packing, TINY_ROWS if tiny else ROWS)}


def agreeing(packing: Packing, numbers: Sequence[int]) -> list[list[int]]:
    """The numbers of rows that have the same bits, together; those whose bits depend on a row's place are left out."""
    groups: dict[bytes, list[int]] = {}
    for number in numbers:
        if (found := packing.fingerprint(number)) is not None:
            groups.setdefault(found, []).append(number)
    return list(groups.values())


def run(model: BareLlama, groups: Sequence[Sequence[EmbeddedPrompt]]) -> list[Prefix]:
    """What all prompts leave, those of a group run in one pass."""
    found = []
    for group in groups:
        found += run_prefixes(model, group, rows_for([one.length for one in group]))
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
        same, runs = ({True: "yes", False: "no", None: ""}[way.get(name)] for name in ("same_bits", "would_run"))
        lines.append(f"{number:12}{rows:>24}{times}{same:>12}{runs:>15}")
    lines.append(f"to measure whether {measured['ways']['4']['rows'][0]} rows agree, once: "
                 f"{measured['ms_to_measure']:.1f} ms")  # fmt: skip
    lines += [f"the same bits in passes of {', '.join(map(str, rows))} rows" for rows in measured["agree"]]
    return "\n".join(lines)
