"""`python kernels/bench/layers.py`: a decoder's layers, plain, merged, fused and compiled, in one run; ratios to plain.

Layers of LLaMA-7B in bf16, without a cache: a step of 204 rows of one token, captured in a CUDA graph as sampling does,
and a row of 640 tokens, as a prompt is. `--tiny` runs small ones on the CPU, to show that this script works.
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from data_engine.bench import machine
from data_engine.models.layers.backends import choose_backends
from data_engine.models.layers.compiled_layers import number_hooks
from data_engine.models.layers.fused import fuse_operations
from data_engine.models.layers.merged_linear import merge_linears

LAYERS, CALLS = 4, 50


def main(argv: list[str]) -> int:
    """Print the table; exit code 2 where there is no CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--tiny", action="store_true", help="small layers on the CPU; the figures mean nothing")
    arguments = parser.parse_args(argv)
    if not arguments.tiny and not torch.cuda.is_available():
        print("no CUDA device, which these figures are about; --tiny runs small layers on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if arguments.tiny else "cuda")
    print(f"\nlayers of a decoder, {', '.join(f'{k} {v}' for k, v in machine.machine(device).items())}")
    print(f"{'':22}" + "".join(f"{f'{way}, ms':>14}{f'{way}/plain':>16}" for way in WAYS))
    with torch.inference_mode():
        for name, shape in {"step, 204 rows": (204, 1), "prompt, 640 tokens": (1, 640)}.items():
            spent = []
            for change in WAYS.values():
                decoder = made(device)
                change(decoder)
                embeds = torch.randn(*shape, decoder.config.hidden_size, device=device, dtype=decoder.dtype)
                spent.append(milliseconds(decoder, embeds))
            print(f"{name:22}" + "".join(f"{took:14.3f}{took / spent[0]:16.3f}" for took in spent), flush=True)
    return 0


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


def milliseconds(decoder: LlamaModel, embeds: Tensor) -> float:
    """Median time of a call, the layers captured in one graph on CUDA."""

    rows, tokens, _ = embeds.shape
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
