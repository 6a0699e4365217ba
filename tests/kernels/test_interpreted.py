"""The kernels' GPU tests on the CPU, through Triton's interpreter.

In a process of its own: the interpreter must be chosen before Triton is first imported, and once chosen it holds for
all kernels of the process, the ones that belong on a GPU too.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is there on Linux alone")
@pytest.mark.slow
def test_the_kernels_tests_pass_in_the_interpreter():
    # No CUDA device is to be seen, so that on a machine with one the tests take CPU tensors here.
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    kernels = (
        "token_logps",
        "decode_attention",
        "layer_kernels",
        "norm_kernels",
        "merge_attention",
        "engine_by_kernels",
    )
    files = [*(f"tests/gpu/test_{name}.py" for name in kernels), "tests/families/test_family_by_kernels.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # All of them ran: a test that found no interpreter would have skipped.
    assert "skipped" not in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 40
