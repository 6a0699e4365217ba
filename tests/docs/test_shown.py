"""What README.md and docs/*.md show is run as it stands, page by page, in a folder like the reader's."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import adapters
import pytest
from safetensors.torch import load_file
from shown import (
    ELSEWHERE,
    PAGES,
    ROOT,
    SHELL,
    SHOWN,
    STAND_INS,
    Elsewhere,
    Shown,
    is_of_the_engine,
    shown_in,
    understand,
)

from data_engine.commands.main import main
from data_engine.rewards.critic import template_in

HERE = [one for one in SHOWN if one.elsewhere is None]
SNIPPETS = [one for one in HERE if one.kind not in SHELL]


def test_a_new_block_is_run_whatever_is_in_it():
    text = "```bash\nls  # here\ndata-engine status \\\n  runs/x\n```\n\n```python\nprint(1)\n```\n"
    page = "docs/new.md"
    assert shown_in(text, page) == [
        Shown(page, "bash", "ls"), Shown(page, "bash", "data-engine status runs/x"), Shown(page, "python", "print(1)\n")
    ]  # fmt: skip
    assert all(one.elsewhere is None for one in shown_in(text, page))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_one_that_is_seen(page):
    text = (ROOT / page).read_text()
    assert text.count("\n```") == 2 * len(re.findall(r"^```\w*\n.*?^```$", text, re.MULTILINE | re.DOTALL))
    assert {one.kind for one in SHOWN if one.page == page} <= {*SHELL, "python", "json", "yaml", "text"}


@pytest.mark.parametrize("entry", ELSEWHERE, ids=lambda one: f"{one.page}: {one.beginning.strip()}")
def test_what_is_run_elsewhere_is_shown_and_its_test_exists(entry: Elsewhere):
    assert any(one.elsewhere is entry for one in SHOWN)
    assert entry.why
    if entry.by is not None:
        file, _, name = entry.by.partition("::")
        assert f"def {name}" in (ROOT / file).read_text()


def test_every_command_line_of_the_engine_is_understood(without_runs):
    engines = [one.text for one in SHOWN if one.kind in SHELL and is_of_the_engine(one.text)]
    assert len(engines) > 20
    for line in engines:
        understand(stood_in(line))


def test_every_other_command_line_is_listed():
    assert {one.text.split()[0] for one in HERE if one.kind in SHELL and not is_of_the_engine(one.text)} == set()


def test_the_hubs_program_has_the_flags_that_are_shown():
    program = str(Path(sys.executable).with_name("hf"))
    for line in {one.text for one in SHOWN if one.text.startswith("hf ")}:
        words = shlex.split(line)[1:]
        command = [word for word in words if not word.startswith("-")][: 2 if words[0] == "auth" else 1]
        told = subprocess.run([program, *command, "--help"], capture_output=True, text=True, check=True).stdout
        assert all(word in told for word in words if word.startswith("--"))


@pytest.mark.parametrize("shown", [one for one in SNIPPETS if one.kind == "python"], ids=lambda one: one.page)
def test_a_snippet_of_python_runs_as_it_stands(shown, place):
    (place / "pictures").mkdir()
    shutil.copy(place / "picture.jpg", place / "pictures/cat.jpg")
    (place / "exported").mkdir()
    shutil.copy(place / "data/questions.parquet", place / "exported/scored.parquet")
    values: dict = {"__name__": "shown"}
    exec(compile(stood_in(shown.text), shown.page, "exec"), values)
    if "shorter" in values:
        assert values["shorter"]({}, ["ab", ""]) == [-2, None]
    elif "alone" in values:
        assert values["alone"]({"answer": "B"}, ["B", "(B) a cat", "A", "B or C"]) == [1, 1, 0, 0]
    elif "option" in values:
        said = ["Final Answer: B", "Final Answer: a dog", "Final Answer: (A) a cat", "a dog"]
        assert values["option"]({"answer": 1, "choices": ["a cat", "a dog"]}, said) == [1, 1, 0, 0]


@pytest.mark.parametrize("shown", [one for one in SNIPPETS if one.kind == "json"], ids=lambda one: one.page)
def test_lines_of_json_are_rows_that_a_run_takes(shown, place, capsys):
    rows = [json.loads(line) for line in shown.text.splitlines()]
    flags = ["--config", "configs/llava-1.5-7b.yaml", "--image_root", "."]
    shutil.copy(place / "picture.jpg", place / "cat.jpg")
    if "answer" in rows[0]:
        (place / "answers.jsonl").write_text(shown.text)
        rows = [{"idx": row["idx"], "question": "What?", "image": "cat.jpg"} for row in rows[:1]]
        flags += ["--answers", "answers.jsonl", "--rank", "1"]
    (place / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(["validate", *flags, "--dataset_path", "rows.jsonl"]) == 0
    assert "cannot be used" not in capsys.readouterr().out


def test_a_folder_of_pictures_is_asked_about_by_what_the_readme_writes_into_the_configuration(place, capsys):
    [shown] = [one for one in SHOWN if one.kind == "yaml" and one.page == "README.md"]
    (place / "pictures").mkdir()
    shutil.copy(place / "picture.jpg", place / "pictures/cat.jpg")
    (place / "data/questions.parquet").unlink()
    config = Path("configs/llava-1.5-7b.yaml")
    kept = [line for line in config.read_text().splitlines() if not line.startswith("dataset_path:")]
    (place / "pictures.yaml").write_text("\n".join([*kept, shown.text]))
    assert main(["validate", "--config", "pictures.yaml"]) == 0
    assert "valid: 1 question," in capsys.readouterr().out


def test_the_template_of_a_critic_is_read():
    [shown] = [one for one in SHOWN if one.kind == "yaml" and one.page != "README.md"]
    template = template_in(shown.text, shown.page)
    assert template.read("It is all there. Score: 7.5")[0] == 7.5
    assert (template.system, template.max_new_tokens) == ("You are a careful judge.", 512)


def stood_in(text: str) -> str:
    """With the reader's own folders in the place of the names for them."""
    for name, value in STAND_INS.items():
        text = re.sub(rf"\b{name}\b", value, text)
    return text


def run(line: str, place: Path) -> None:
    """One line, with this interpreter's programs."""
    programs = str(Path(sys.executable).parent)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    words, environment = shlex.split(line), os.environ | environment
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory, lay_out) -> Path:
    """One folder for all pages, in which the run of the first one is there for those behind it."""
    folder = tmp_path_factory.mktemp("reader")
    lay_out(folder)
    # A hub id that is a folder here is that folder.
    (folder / "llava-hf").mkdir()
    (folder / "llava-hf/llava-1.5-7b-hf").symlink_to(folder / "models/llava-v1.5-7b")
    (folder / "questions.parquet").symlink_to(folder / "data/questions.parquet")
    weights = load_file(folder / "models/RLAIF-V-7B/model.safetensors")
    changed = adapters.matrices({name: value for name, value in weights.items() if "q_proj.weight" in name})
    (folder / "adapters").mkdir()
    adapters.write(folder / "adapters/dpo", None, adapters.stored(changed))
    (folder / "pictures").mkdir()
    shutil.copy(folder / "picture.jpg", folder / "pictures/cat.jpg")
    [row, _] = [one.text for one in SNIPPETS if one.page == "docs/first-run.md"]
    (folder / "data/questions.jsonl").write_text(row)
    return folder


# Lines that a page before has shown are not run again.
DONE: set[str] = set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        # Twelve whole runs, and what the README and the first run do not show of them.
        pytest.param(page, marks=pytest.mark.long if page == "docs/real-runs.md" else ())
        for page in PAGES
        if any(one.page == page and one.kind in SHELL for one in HERE)
    ],
)
def test_every_command_of_a_page_runs(page, reader):
    for number, one in enumerate(SHOWN):
        if one.page == page and one in HERE and one.kind in SHELL and one.text not in DONE:
            DONE.add(one.text)
            line = re.sub(r"\bDIR\b", f"exported/{number}", stood_in(one.text))
            run(line, reader)


@pytest.mark.slow
def test_the_listing_of_a_finished_run_is_what_is_there(reader):
    [listing] = [one.text for one in SHOWN if one.kind == "text" and one.page == "docs/real-runs.md"]
    work_dir, *rows = listing.splitlines()
    if not (reader / work_dir / "dataset").is_dir():
        run("launch/run_engine.sh --config configs/llava-1.5-7b.yaml", reader)
    names = [name for row in rows for name in re.split(r"  +", row.strip(), maxsplit=1)[0].split()]
    names += rows[-1].split()
    for name in names:
        assert list((reader / work_dir).glob(name.replace("....", "*."))), name
