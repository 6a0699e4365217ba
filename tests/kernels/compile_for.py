"""`python compile_for.py CAPABILITY`: compile what the launchers launch for that GPU, on a machine without one.

Triton compiles down to the machine's code by itself; only launching needs the driver. So the launchers are called as
always, with CPU tensors, and each launch ends after compiling. Prints a line a kernel: operation, dtype, kernel, bytes
of shared memory, bytes of stack (registers that did not suffice), as JSON; and last, how many kernels of decode
attention other numbers of rows, slots, pages and tokens of a prefix compile beside these.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from data_engine_kernels import (
    LayerCaches,
    RowIndex,
    Special,
    attention_triton,
    layer_triton,
    logps_triton,
    members_of,
    merge_triton,
)
from data_engine_kernels.layouts import USUAL
from data_engine_kernels.work_list import DEFAULT, Launch

# What --sweep tries.
sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "bench"))
from cases import SWEEP_LAUNCHES, SWEEP_TILES

TARGET = GPUTarget("cuda", int(sys.argv[1]), 32)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
launch = JITFunction.run


class Driver:
    """As much of a driver as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def stack_bytes(cubin: bytes) -> int:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


def compile_only(self, *arguments, grid, warmup, **options) -> None:
    if "INTERPRETED" in options:
        options["INTERPRETED"] = False
    compiled = launch(self, *arguments, grid=grid, warmup=True, **options)
    found = {
        "kernel": self.fn.__name__,
        "shared": compiled.metadata.shared,
        "stack": stack_bytes(compiled.asm["cubin"]),
        "fused": len(re.findall(r"\bfma\.", compiled.asm["ptx"])),
    }
    print(json.dumps({"case": case} | found), flush=True)


def attend(
    heads: int, groups: int, width: int, dtype: torch.dtype, special=USUAL, rows=20, slots=2, pages=4, prefix=640,
    most=10, launch=DEFAULT
) -> None:  # fmt: skip
    """Launch decode attention for `most` answers a question."""
    which, ones = torch.arange(rows) % slots, torch.ones(rows, dtype=torch.int32)
    members, own = members_of(which, slots, most), torch.zeros(rows, pages, dtype=torch.long)
    index = RowIndex(which, ones, ones[:slots], members, own, torch.zeros(slots, -(-prefix // 128), dtype=torch.long))
    caches = LayerCaches(*(torch.zeros(rows * pages, groups, 128, width, dtype=dtype) for _ in range(2)))
    query = torch.zeros(rows, heads, width, dtype=dtype)
    attention_triton.grouped_decode_attention(query, caches, index, 0.1, special, launch)


def predict(dtype: torch.dtype, tiles: logps_triton.Tiles) -> None:
    """Launch token_logps."""
    hidden, weight = (torch.zeros(size, 4096, dtype=dtype) for size in (200, 1000))
    logps_triton.token_logps(hidden, weight, torch.zeros(200, dtype=torch.long), tiles)


def small_operations(heads: int, groups: int, width: int, dtype: torch.dtype, rows=20, tokens=1) -> None:
    """Launch what a layer does beside its products and attention, norms of heads included, on a merged product."""
    hidden, inner = heads * width, 11008

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(rows, tokens, *shape, dtype=dtype)

    for offset in (None, 1.0):
        layer_triton.rms_norm(zeros(hidden), torch.ones(hidden, dtype=dtype), 1e-5, offset)
    layer_triton.rms_norm(zeros(hidden), torch.ones(hidden, dtype=dtype), 1e-5, 0.0, centred=True)
    parts = zeros((heads + 2 * groups) * width).split([heads * width, groups * width, groups * width], -1)
    query, key, _ = (part.unflatten(-1, (-1, width)) for part in parts)
    layer_triton.rms_norm(query, torch.ones(width, dtype=dtype), 1e-5)
    layer_triton.rms_norm(query, torch.ones(width, dtype=dtype), 1e-5, gate=query)
    heads, table = [query.transpose(1, 2), key.transpose(1, 2)], torch.zeros(1, tokens, width, dtype=dtype)
    layer_triton.apply_rotary(heads, table, table)
    layer_triton.apply_rotary(heads, *[table[..., : width // 4].contiguous()] * 2)
    layer_triton.apply_rotary(heads[:1], table, table)
    layer_triton.apply_rotary(heads, *[table[..., : width // 2].contiguous()] * 2, neighbours=True)
    layer_triton.apply_rotary(heads, *[table.float()] * 2, neighbours=True, in_fp32=True)
    layer_triton.apply_rotary(heads, *[table[..., : width // 2].contiguous()] * 2, apart=True)
    for activation in ("silu", "gelu_tanh"):
        layer_triton.act_and_mul(*zeros(2 * inner).split(inner, -1), activation)


def merge(heads: int, width: int, tokens=20) -> None:
    """Launch the merge of two attentions."""
    mixed, lse = torch.zeros(tokens, heads, width, dtype=torch.bfloat16), torch.zeros(heads, tokens)
    merge_triton.merge_attention(mixed, lse, mixed, lse)


def num_compiled() -> int:
    kernels = (
        merge_triton.merge_attention_kernel,
        attention_triton.parts_kernel, attention_triton.merge_kernel, layer_triton.rms_norm_kernel,
        layer_triton.rotary_kernel, layer_triton.act_and_mul_kernel,
    )  # fmt: skip
    return sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())


driver.set_active(Driver())
JITFunction.run = compile_only
for dtype in (torch.bfloat16, torch.float32):
    name = str(dtype).removeprefix("torch.")
    for tiles in ("LARGE", "SMALL") if dtype == torch.bfloat16 else ("FP32",):
        case = f"token_logps {name} {tiles}"
        predict(dtype, getattr(logps_triton, tiles))
    for heads, groups, width in (
        ((32, 32, 128), (28, 4, 128), (8, 8, 80), (8, 1, 256), (16, 4, 256), (8, 2, 512))
        if dtype == torch.bfloat16
        else ((28, 4, 128), (8, 1, 256), (8, 2, 512))
    ):
        case = f"grouped_decode_attention {name} {heads}/{groups} x {width}"
        attend(heads, groups, width, dtype)
# Gemma 3 of 4 and 27 billion, PaliGemma 2 of 3, Aya Vision of 8, and layers of Gemma 4.
for heads, groups, width, special in (
    (8, 4, 256, Special(1024)), (32, 16, 128, Special(1024)), (8, 4, 256, Special(4096, 50.0)),
    (32, 8, 128, Special(4096)), (8, 1, 256, Special(512)),
):  # fmt: skip
    case = f"grouped_decode_attention bfloat16 {heads}/{groups} x {width} {special}"
    attend(heads, groups, width, torch.bfloat16, special)
# Other numbers of answers, and fp16.
for heads, groups, most, dtype in (
    (32, 32, 1, torch.bfloat16), (28, 4, 1, torch.bfloat16), (28, 4, 4, torch.bfloat16), (32, 32, 10, torch.float16),
    (28, 4, 10, torch.float16),
):  # fmt: skip
    case = f"grouped_decode_attention {str(dtype).removeprefix('torch.')} {heads}/{groups} x 128, {most} answers"
    attend(heads, groups, 128, dtype, rows=2 * most, most=most)
case = "token_logps float16 LARGE"
predict(torch.float16, logps_triton.LARGE)
for heads, groups, width, dtype in (
    (32, 32, 128, torch.bfloat16), (28, 4, 128, torch.bfloat16), (8, 4, 256, torch.bfloat16),
    (32, 8, 128, torch.float32),
):  # fmt: skip
    case = f"small operations {str(dtype).removeprefix('torch.')} {heads}/{groups} x {width}"
    small_operations(heads, groups, width, dtype)
for heads, width in ((32, 128), (28, 128), (8, 256)):
    case = f"merge_attention bfloat16 {heads} x {width}"
    merge(heads, width)
if TARGET.arch >= 90:
    for sizes in SWEEP_TILES:
        case = f"token_logps sweep {sizes}"
        predict(torch.bfloat16, logps_triton.Tiles(*sizes))
    for sizes in SWEEP_LAUNCHES:
        case = f"grouped_decode_attention sweep {sizes}"
        attend(32, 32, 128, torch.bfloat16, launch=Launch(*sizes))
before = num_compiled()
assert before
JITFunction.run = lambda self, *arguments, warmup, **options: launch(
    self, *arguments, warmup=True, **options | {"INTERPRETED": False}
)
for sizes in ({"prefix": 1472}, {"prefix": 64}, {"rows": 30, "slots": 3}, {"pages": 1}, {"rows": 10, "slots": 1}):
    attend(32, 32, 128, torch.bfloat16, **sizes)
for rows, tokens in ((1, 1), (21, 1), (1, 640), (1, 16384), (3, 2)):
    small_operations(32, 32, 128, torch.bfloat16, rows, tokens)
for tokens in (1, 9600, 14656, 321):
    merge(32, 128, tokens)
print(num_compiled() - before)
