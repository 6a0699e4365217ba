"""docs/exports.md, and what a card says of a format, name every format, its columns and its command."""

import re
from pathlib import Path

import pytest

from data_engine.exports import EXPORTS
from data_engine.exports.usage import USAGES

DOCS = (Path(__file__).parents[1] / "docs/exports.md").read_text()
SECTIONS = dict(re.findall(r"^### (\S+)\n(.*?)(?=^### |\Z)", DOCS, re.MULTILINE | re.DOTALL))


def test_every_format_is_described_in_the_order_of_the_table():
    assert list(SECTIONS) == list(EXPORTS) == list(USAGES)


@pytest.mark.parametrize("name", EXPORTS)
def test_the_documentation_of_a_format_is_what_its_card_says(name):
    usage = USAGES[name]
    assert usage.sentence in SECTIONS[name]
    assert usage.command in SECTIONS[name]
    for column, meaning in usage.columns:
        assert f"| `{column}` | {meaning} |" in SECTIONS[name]
