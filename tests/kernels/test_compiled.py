"""The kernels compile for GPUs, fit into their shared memory, and into their registers where speed matters."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is there on Linux alone"),
]
# What a program may have: the smallest card of each generation, and the data centre cards.
DESKTOP_BYTES = 99 * 1024
DATA_CENTRE_BYTES = {"80": 163 * 1024, "90": 227 * 1024, "100": 227 * 1024}
# Stack by the case, in bytes, where registers do not suffice; else there is none.
STACK = {
    # What is mixed of 256 lanes takes most registers: up to 14 of others find no room. Of 28 queries, up to 4.
    "80": {"x 256": 64, "4 answers": 16},
    "90": {"x 256": 64, "4 answers": 16},
    # A data centre card multiplies in a memory of its own, and every large tile takes 8 bytes.
    "100": {"": 8},
    # On a desktop card, more: it computes all the same, a little slower.
    "120": {"x 256": 112, "28/4 x 128": 64},
}


@pytest.mark.parametrize("capability", ["80", "90", "100", "120"])
def test_every_kernel_compiles_and_fits(capability, tmp_path):
    script = Path(__file__).with_name("compile_for.py")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script, capability], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *lines, more = done.stdout.splitlines()
    compiled = [json.loads(line) for line in lines]
    # Four tiles of token_logps and nineteen shapes of attention, two kernels each, and what the bench sweeps; thirteen
    # small operations of four models, and the merge of three.
    assert len(compiled) == 2 * (23 + 12 * (int(capability) >= 90)) + 4 * 13 + 3
    for found in compiled:
        large = found["case"].endswith("LARGE") or "token_logps sweep" in found["case"]
        # A desktop card has no such tiles.
        if not large or capability in DATA_CENTRE_BYTES:
            assert found["shared"] <= (DATA_CENTRE_BYTES[capability] if large else DESKTOP_BYTES), found
        most = max((size for part, size in STACK[capability].items() if part in found["case"]), default=0)
        assert found["stack"] <= most or "float32" in found["case"], found
        # Products and their sum are rounded one by one. Older cards multiply bf16 by adding 0 in the same instruction.
        if found["kernel"] == "rotary_kernel" and (int(capability) >= 90 or "float32" in found["case"]):
            assert not found["fused"], found
    assert more == "0", "a unit with more rows, pages or longer prompts would wait for a compiler"
