"""Preference data for vision-language models: sample k answers a question, score them by two models, pair them.

The public API is imported on first use, so that the command line starts without torch.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PUBLIC = {
    "load_model": "data_engine.models",
    "sample_answers": "data_engine.pipeline.sample",
    "score_answers": "data_engine.pipeline.score",
    "build_pairs": "data_engine.preferences.strategies",
}
__all__ = ["build_pairs", "load_model", "sample_answers", "score_answers"]


if TYPE_CHECKING:
    # For type checkers and editors, to which a name behind __getattr__ is of any type.
    from data_engine.models import load_model
    from data_engine.pipeline.sample import sample_answers
    from data_engine.pipeline.score import score_answers
    from data_engine.preferences.strategies import build_pairs
else:

    def __getattr__(name: str):
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """What a notebook offers to complete."""
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
