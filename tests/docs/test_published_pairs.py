"""docs/published-pairs.md: its flags are the command line's, and its layouts are what `validate` says of replicas."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from published_replicas import REPLICAS

from data_engine.commands.arguments import parse
from data_engine.commands.main import main
from data_engine.job.checkpoints import ONE_MODEL

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/published-pairs.md").read_text()
QUESTIONS = ROOT / "tests/goldens/llava/dataset/questions.parquet"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FOLDER = re.compile(r"models(/[\w.-]+){2}")


@dataclass(frozen=True)
class Row:
    """A pair of the page."""

    flags: dict[str, str]
    layout: str
    training: str
    licence: str
    source: str


def table(first: str) -> list[list[str]]:
    """The cells of the lines of all tables whose first column has this name."""
    found = re.findall(rf"^\| {first} \|.*\n\|[ |-]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in line[1:-1].split("|")] for body in found for line in body.splitlines()]


def flags_of(cell: str) -> dict[str, str]:
    words = shlex.split(cell.strip("`"))
    assert all(word.startswith("--") for word in words[::2])
    return dict(zip((word[2:] for word in words[::2]), words[1::2], strict=True))


LAYOUTS = {name: loads for name, _, loads, _ in table("layout")}
ROWS = [Row(flags_of(flags), *cells) for flags, *cells in table("flags")]


def command_line(flags: dict[str, str]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def test_every_line_of_the_page_with_flags_is_a_row():
    assert len(ROWS) == PAGE.count("\n| `--") >= 46


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row.flags.values()))
def test_the_flags_of_a_row_are_those_of_a_run(row):
    config = parse([*command_line(row.flags), "--dataset_path", "q.parquet", "--work_dir", "work"])
    assert all(getattr(config, name) == value for name, value in row.flags.items())
    for value in row.flags.values():
        assert HUB_ID.fullmatch(value) or FOLDER.fullmatch(value)
    assert row.flags["instruct_model_path"] != row.flags["reward_model_path"]
    assert ("reward_base_model_path" in row.flags) == row.layout.endswith("+ LoRA")
    assert row.training
    assert row.licence
    assert re.fullmatch(r"<https://(huggingface\.co|github\.com)/\S+/\S+>", row.source)


def test_no_pair_is_told_twice():
    told = [(row.flags["instruct_model_path"], row.flags["reward_model_path"]) for row in ROWS]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/published-pairs.md", "docs/first-run.md", "docs/models.md", "CHANGELOG.md"]
)
def test_other_pages_count_the_pairs_that_load(page):
    told = re.findall(r"(?<!,)\b(\d+) (?:published\s+)?pairs\b", (ROOT / page).read_text())
    assert told == [str(sum(LAYOUTS[row.layout] == "yes" for row in ROWS))]


def test_the_layouts_of_rows_are_those_of_the_table_and_each_has_a_replica():
    assert list(LAYOUTS) == list(REPLICAS)
    # The goldens' other layout, of which no pair was found.
    assert {row.layout for row in ROWS} == set(LAYOUTS) - {"llava-hf"}


def test_the_page_says_of_a_layout_whether_its_replica_loads():
    assert {name: loads == "yes" for name, loads in LAYOUTS.items()} == {
        name: replica.family is not None for name, replica in REPLICAS.items()
    }
    assert set(LAYOUTS.values()) == {"yes", "no"}


@pytest.mark.parametrize("name", REPLICAS)
def test_validate_says_of_a_replica_what_the_page_says_of_its_layout(name, tmp_path, capsys, one_thread):
    replica, folder = REPLICAS[name], tmp_path / "models"
    folder.mkdir()
    more = {"dataset_path": str(QUESTIONS), "work_dir": str(tmp_path / "work"), "device": "cpu", "limit": "2"}
    words = command_line(replica.make(folder) | more)
    # What transformers printed while it saved the replica.
    capsys.readouterr()
    code = main(["validate", *words])
    told, error = capsys.readouterr()
    if replica.family is None:
        assert (code, told) == (2, "")
        assert replica.refusal in error
        assert "Traceback" not in error
    else:
        # Some replicas have the same weights twice.
        assert (code, error.replace(f"data-engine: warning: {ONE_MODEL.format(role='instruct')}\n", "")) == (0, "")
        assert f"instruct and reward model: {replica.family} and {replica.family};" in told
