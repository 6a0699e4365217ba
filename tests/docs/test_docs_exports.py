"""docs/exports.md, and what a card says of a format, name every format, its columns and its command."""

import ast
import dataclasses
import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_world import write_export

from data_engine import schemas
from data_engine.commands import export
from data_engine.exports import EXPORTS, chosen
from data_engine.exports.formats import rlaif_v_logps
from data_engine.exports.usage import USAGES

DOCS = (Path(__file__).parents[2] / "docs/exports.md").read_text()
SECTIONS = dict(re.findall(r"^### (\S+)\n(.*?)(?=^### |\Z)", DOCS, re.MULTILINE | re.DOTALL))


# These need more of a run than its pairs and best answers.
FROM_A_RUN = ("rlaif-v-logps", "scored")


def documented(name: str) -> set[str]:
    """The columns that the table of a format names."""
    return {column for names, _ in USAGES[name].columns for column in names.split(", ")}


def test_every_format_is_described_in_the_order_of_the_table():
    assert list(SECTIONS) == list(EXPORTS) == list(USAGES)


@pytest.mark.parametrize("name", EXPORTS)
def test_the_documentation_of_a_format_is_what_its_card_says(name):
    usage = USAGES[name]
    assert usage.sentence in SECTIONS[name]
    assert usage.command in SECTIONS[name]
    for column, meaning in usage.columns:
        assert f"| `{column}` | {meaning} |" in SECTIONS[name]


@pytest.mark.parametrize("name", [name for name in EXPORTS if name not in FROM_A_RUN])
def test_a_format_has_the_columns_that_are_documented(name, tmp_path):
    folder, _ = write_export(tmp_path, name)
    [file] = [path for path in folder.iterdir() if path.suffix in (".parquet", ".jsonl") or path.name == "data.json"]
    if file.suffix == ".parquet":
        written = set(pq.read_schema(file).names)
    elif file.suffix == ".json":
        written = {column for row in json.loads(file.read_text()) for column in row}
    else:
        written = {column for line in file.read_text().splitlines() for column in json.loads(line)}
    assert documented(name) == written


@pytest.mark.parametrize("name", [name for name in EXPORTS if name not in FROM_A_RUN])
def test_the_formats_whose_pictures_load_dataset_takes_for_the_rows_are_named(name, tmp_path):
    folder, _ = write_export(tmp_path, name)
    named = re.search(r"`datasets.load_dataset`. It mistakes those of(.*?)for folders of pictures", DOCS, re.DOTALL)[1]
    named = re.findall(r"[\w-]{2,}", named.replace("LLaMA-Factory's formats", "llama-factory"))
    assert (folder / "images").is_dir() == (re.sub("(?<=factory)-.*", "", name) in named)
    assert (folder / "images").is_dir() == any(folder.glob("data.*"))


def test_the_columns_of_formats_that_need_a_whole_run_are_documented():
    assert documented("rlaif-v-logps") == set(rlaif_v_logps._schema(pa.string()).names)
    assert documented("scored") == {*schemas.scored(pa.string()).names, "question", "image_path"}


def test_the_engines_own_commands_are_understood(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    lines = re.findall(r"^data-engine export (.*)$", DOCS, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        asked = export._arguments(shlex.split(line))
        assert chosen(asked.format)
    for flags in re.findall(r"`data-engine run (.*?)`", DOCS):
        assert chosen(shlex.split(flags)[1])


@pytest.mark.slow
def test_the_python_is_that_of_the_trainer():
    import trl

    blocks = [
        block for section in SECTIONS.values() for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    ]
    assert len(blocks) == 4
    for block in blocks:
        for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if name.startswith("trl.") and name.endswith("Config"):
                known = {field.name for field in dataclasses.fields(getattr(trl, name.removeprefix("trl.")))}
                assert {keyword.arg for keyword in call.keywords} <= known
