"""`python kernels/bench/layers.py`: a decoder's layers, plain, merged, fused and compiled, in one run; ratios to plain.

Layers of LLaMA-7B in bf16, without a cache: a step of 204 rows of one token, captured in a CUDA graph as sampling does,
and a row of 640 tokens, as a prompt is. `--tiny` runs small ones on the CPU, to show that this script works.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from data_engine.bench import machine
from data_engine.models.layers.backends import choose_backends
from data_engine.models.layers.compiled_layers import number_hooks
from data_engine.models.layers.fused import fuse_operations
from data_engine.models.layers.merged_linear import merge_linears

LAYERS, CALLS = 4, 50
# Rows, and tokens of each.
SHAPES = {"step, 204 rows": (204, 1), "prompt, 640 tokens": (1, 640)}


def main(argv: list[str]) -> int:
    """Print each figure as it is known; exit code 1 where a way could not be run, 2 where there is no CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--tiny", action="store_true", help="small layers on the CPU; the figures mean nothing")
    arguments = parser.parse_args(argv)
    if not arguments.tiny and not torch.cuda.is_available():
        print("no CUDA device, which these figures are about; --tiny runs small layers on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if arguments.tiny else "cuda")
    print(f"\nlayers of a decoder, {', '.join(f'{k} {v}' for k, v in machine.machine(device).items())}")
    print(f"{'':22}" + "".join(f"{f'{way}, ms':>14}{f'{way}/plain':>16}" for way in WAYS))
    failed = False
    with torch.inference_mode():
        for name, shape in SHAPES.items():
            print(f"{name:22}", end="", flush=True)
            spent: dict[str, float] = {}
            for way, change in WAYS.items():
                try:
                    spent[way] = milliseconds(change, shape, device)
                # Compilers and launchers raise errors of many kinds.
                except Exception as error:
                    failed = True
                    print(f"\n{name}, {way}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                print(figures(spent, way), end="", flush=True)
            print(flush=True)
    return int(failed)


def figures(spent: Mapping[str, float], way: str) -> str:
    """Of a way, the time and its ratio to plain, as far as they are there."""
    ratio = f"{spent[way] / spent['plain']:.3f}" if {way, "plain"} <= spent.keys() else ""
    return f"{f'{spent[way]:.3f}' if way in spent else 'failed':>14}{ratio:>16}"


def made(device: torch.device) -> LlamaModel:
    """Random layers; of LLaMA-7B on CUDA."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    if device.type == "cuda":
        sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    config = LlamaConfig(vocab_size=16, num_hidden_layers=LAYERS, attn_implementation="sdpa", **sizes)
    choose_backends()
    with torch.device(device):
        return LlamaModel(config).to(torch.bfloat16 if device.type == "cuda" else torch.float32).eval()


def fused(decoder: LlamaModel) -> None:
    """As they are on a GPU."""
    merge_linears(decoder)
    fuse_operations(decoder)


def compiled(decoder: LlamaModel) -> None:
    """As models/layers/compiled_layers.py compiles them, the attention included."""
    merge_linears(decoder)
    for layer in decoder.layers:
        number_hooks(layer)
        layer.forward = torch.compile(layer.forward, dynamic=True, options={"deterministic": True})


WAYS: dict[str, Callable[[LlamaModel], object]] = {
    "plain": lambda one: None, "merged": merge_linears, "fused": fused, "compiled": compiled,
}  # fmt: skip


def milliseconds(change: Callable[[LlamaModel], object], shape: tuple[int, int], device: torch.device) -> float:
    """Median time of a call of changed layers with rows of so many tokens, captured in one graph on CUDA."""
    decoder, (rows, tokens) = made(device), shape
    change(decoder)
    embeds = torch.randn(rows, tokens, decoder.config.hidden_size, device=device, dtype=decoder.dtype)
    # Both given: transformers would look at the positions on the host to make a mask, which no capture survives.
    positions = torch.arange(tokens, device=embeds.device).expand(rows, -1)
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device=embeds.device).tril().expand(rows, 1, -1, -1)

    def run() -> Tensor:
        return decoder(
            inputs_embeds=embeds, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state

    call = captured(run) if embeds.is_cuda else run
    call()
    return statistics.median(machine.seconds_of(call, embeds.device, CALLS if embeds.is_cuda else 3)) * 1e3


def captured(run: Callable[[], Tensor]) -> Callable[[], None]:
    """The call as a CUDA graph, after two that compile what there is to compile."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
