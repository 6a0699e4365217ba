"""pytest -p emulated_cuda.plugin: from here on, this process has one GPU."""

from emulated_cuda.cuda_api import install

install()
