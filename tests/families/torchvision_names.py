"""torchvision's Python without its compiled operators: their names are declared, so that its import goes through.

Image processors of some families ask for torchvision, whose wheel for CUDA does not load beside torch for CPUs. They
call none of its operators. This module has to be imported before torchvision is, so before transformers is.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import torch

# Kept, since a library that is freed takes its operators along.
_declared: list[torch.library.Library] = []


def declare() -> None:
    """Declare the operators where torchvision is there and its compiled part does not load."""
    found = find_spec("torchvision")
    if found is None or _declared or _compiled_part_loads(Path(found.origin).parent):
        return
    library = torch.library.Library("torchvision", "DEF")
    source = (Path(found.origin).parent / "_meta_registrations.py").read_text()
    for name in sorted(set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', source))):
        library.define(f"{name}(Tensor x) -> Tensor")
    _declared.append(library)


def _compiled_part_loads(folder: Path) -> bool:
    for path in folder.glob("_C*.so"):
        try:
            torch.ops.load_library(path)
        except OSError:
            return False
        return True
    return False


declare()
