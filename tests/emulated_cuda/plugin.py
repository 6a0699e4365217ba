"""pytest -p tests.emulated_cuda.plugin: from here on, this process has one GPU.

EMULATED_KERNELS=interpreter runs Triton's kernels in its interpreter, which takes minutes, instead of their formulas.
"""

import os

# Before Triton is imported, which torch does.
os.environ["TRITON_INTERPRET"] = "1"

from tests.emulated_cuda.cuda_api import install

install(by_formula=os.environ.get("EMULATED_KERNELS") != "interpreter")
