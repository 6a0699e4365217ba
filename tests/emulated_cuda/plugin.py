"""pytest -p tests.emulated_cuda.plugin: from here on, this process has one GPU."""

from tests.emulated_cuda.cuda_api import install

install()
