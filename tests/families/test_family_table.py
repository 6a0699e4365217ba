"""docs/families.md says what the suite finds, and all pages count the same families."""

import pytest
from families import FAMILIES
from table import HEAD, PAGE, row
from test_family_fused import LEFT as NOT_FUSED
from test_family_packed_prompts import PACKED
from test_family_waits import WHOLE

ROOT = PAGE.parents[1]


def test_the_page_has_a_line_for_each_family():
    assert PAGE.read_text().startswith(f"{HEAD}| family |")
    table = PAGE.read_text().removeprefix(HEAD)
    names = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("|")]
    assert names[2:] == list(FAMILIES)


def num_families(names) -> int:
    """Llama 4 is there twice."""
    return len({name.removesuffix("_beyond") for name in names})


def test_every_page_says_how_many_families_there_are():
    number = num_families(FAMILIES)
    shared = num_families(name for name, family in FAMILIES.items() if family.fast)
    says = {
        "README.md": [f"and [{number} families](docs/families.md) of transformers"],
        "CHANGELOG.md": [f"{number} families are tested against stock transformers"],
        "docs/models.md": [f"[families](families.md) {number} families with"],
        "docs/families.md": [f"{number} families of transformers, each tested"],
        "docs/gpu.md": [
            f"Of the {number} families, {number - num_families(NOT_FUSED)} have all",
            f"Of the {shared} families that share prompts, {num_families(PACKED)} do",
            f"{num_families(WHOLE)} of the {shared} families that share prompts pass",
        ],
    }
    for page, sentences in says.items():
        text = " ".join((ROOT / page).read_text().split())
        assert not [sentence for sentence in sentences if sentence not in text], page


@pytest.mark.families
@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_line_of_a_family_is_what_the_suite_finds(checkpoints, name):
    found = row(name, checkpoints(name))
    assert found in PAGE.read_text().splitlines(), f"python tests/families/table.py --write: {found}"
