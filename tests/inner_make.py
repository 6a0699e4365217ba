"""make, run by a test that may itself be run by make."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """The environment without what the outer make was given: it exports its variables, which would be this one's."""
    outer = set(re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    return {name: os.environ[name] for name in os.environ if not (name.startswith("MAKE") or name in outer)}
