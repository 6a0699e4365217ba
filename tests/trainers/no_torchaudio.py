"""An empty torchaudio: LLaMA-Factory 0.9.5 imports it at once, and uses none of it for pictures.

It has no build for CPUs on PyPI beside the torch of these environments.
"""

import importlib.machinery
import sys
import types

module = types.ModuleType("torchaudio")
# transformers looks whether there is one by its spec.
module.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
sys.modules["torchaudio"] = module
