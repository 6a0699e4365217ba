"""`python kernels/bench/needs.py`: whether this Python has what `make bench-gpu` imports, before anything is run.

Nothing is imported, so it runs on any Python. Exit code 2, and one line with all packages that are missing.
"""

import sys
from importlib.util import find_spec

# By the name that is imported, what pip calls it. Of setup.cfg's packages, those that the bench, the kernels and
# tests/gpu use; the rest of a run's, such as datasets and nltk, are not asked for.
PACKAGES = {
    "torch": "torch", "transformers": "transformers", "tokenizers": "tokenizers", "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub", "numpy": "numpy", "tqdm": "tqdm", "yaml": "pyyaml", "jinja2": "jinja2",
    "accelerate": "accelerate", "sentencepiece": "sentencepiece",
    "pyarrow": "pyarrow", "PIL": "pillow", "pytest": "pytest", "triton": "triton",
}  # fmt: skip


def main() -> int:
    """0 where nothing is missing."""
    missing = [wheel for name, wheel in PACKAGES.items() if find_spec(name) is None]
    if missing:
        print(f"bench-gpu: {sys.executable} lacks: {' '.join(missing)} (pip install {' '.join(missing)})",
              file=sys.stderr)  # fmt: skip
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
