"""A machine with one GPU, which the CPU emulates: what the engine does on CUDA runs where there is none.

`python -m pytest -p emulated_cuda.plugin` runs tests on it, as make test-emulated-gpu does. `emulation.py` says
what is emulated, and what is refused.
"""
