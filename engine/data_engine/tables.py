"""Tables name what they hold as text, "module:name", so that a table can be read before anything in it is imported."""

import importlib


def load(name: str):
    """The function or class behind "module:name", imported on first use."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
