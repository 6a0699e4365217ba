"""docs/adding.md names tables and classes of the code, and where each stands: there it has to be."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/adding.md").read_text()
NAMED = sorted(set(re.findall(r"`([A-Z]\w{3,})`\s(?:of|in)\s`([\w/]+\.py)`", PAGE)))


def test_the_names_are_found():
    assert ("STRATEGIES", "preferences/strategies/__init__.py") in NAMED
    assert len(NAMED) >= 8


@pytest.mark.parametrize(("name", "file"), NAMED)
def test_what_is_named_stands_in_its_file(name, file):
    assert re.search(rf"^(class {name}\b|{name}\b.* =)", (ROOT / "engine/data_engine" / file).read_text(), re.MULTILINE)


def test_the_files_that_are_named_are_there():
    files = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert len(files) > 15
    assert [one for one in files if not (ROOT / "engine/data_engine" / one).is_file()
            and not list((ROOT / "engine/data_engine").glob(f"*/{one}"))] == []  # fmt: skip
