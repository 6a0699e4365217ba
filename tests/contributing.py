"""The examples of docs/adding.md, as a contributor would add them: one file in its folder, one line in its table.

A section `## TITLE` holds two blocks of Python: the file, whose first line names its place, and the line of the table.
"""

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTION = r"^## {}\n(.*?)(?=^## |\Z)"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks(title: str) -> tuple[str, str]:
    """The file and the line of a section."""
    text = (ROOT / "docs/adding.md").read_text()
    section = re.search(SECTION.format(re.escape(title)), text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/adding.md has no section {title}"
    file, line = BLOCK.findall(section[1])
    return file, line


def add(title: str, table_module: str, table: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """Put a section's file into `folder`, where its package finds it, and its line into the table; the line's key."""
    file, line = blocks(title)
    place = Path(re.match(r"# engine/(\S+)\.py\n", file)[1])
    package = importlib.import_module(".".join(place.parent.parts))
    (folder / f"{place.name}.py").write_text(file)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    module = ".".join(place.parts)
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delattr(package, place.name, raising=False)
    owner = importlib.import_module(table_module)
    # The line stands in the table's module, so it sees what that one has imported.
    [(key, value)] = eval(f"{{{line}}}", vars(owner)).items()
    monkeypatch.setitem(getattr(owner, table), key, value)
    return key
