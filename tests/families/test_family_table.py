"""docs/families.md says what the suite finds."""

import pytest
from families import FAMILIES
from table import HEAD, PAGE, row


def test_the_page_has_a_line_for_each_family():
    assert PAGE.read_text().startswith(f"{HEAD}| family |")
    table = PAGE.read_text().removeprefix(HEAD)
    names = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("|")]
    assert names[2:] == list(FAMILIES)


@pytest.mark.families
@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_line_of_a_family_is_what_the_suite_finds(checkpoints, name):
    found = row(name, checkpoints(name))
    assert found in PAGE.read_text().splitlines(), f"python tests/families/table.py --write: {found}"
