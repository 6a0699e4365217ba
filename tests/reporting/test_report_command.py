"""data-engine report: --open, with and without a browser, and --compare."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from report_page import Page
from stage2_world import make_world, picture

from data_engine.commands import main
from data_engine.config import RunConfig
from data_engine.preferences import pairs_metadata
from data_engine.questions.dataset import load_questions
from data_engine.store.file_hashes import hash_files
from data_engine.store.units import read_unit_facts


@pytest.fixture
def work_dir(tmp_path):
    """A run with its own pairing and one called wide."""
    world, work_dir = make_world(tmp_path / "world", num_questions=8), tmp_path / "run"
    world.publish(work_dir)
    world.pair(work_dir, distance=25)
    (work_dir / "pairs/pairs.parquet").rename(work_dir / "pairs/wide.parquet")
    world.pair(work_dir, distance=5)
    world.write_run_file(work_dir)
    return work_dir


def opened(work_dir, **environment):
    """Exit code and output of report --open, by a process that knows no browser but those of `environment`."""
    without = {
        name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    }
    found = subprocess.run(
        [sys.executable, "-m", "data_engine", "report", str(work_dir), "--open"],
        capture_output=True, text=True, env=without | environment,
    )  # fmt: skip
    return found.returncode, found.stdout


def test_open_hands_the_page_to_the_browser_and_prints_its_path(work_dir, tmp_path):
    browser, told = tmp_path / "browser", tmp_path / "told"
    browser.write_text(f'#!/bin/sh\necho "$1" > {told}\n')
    browser.chmod(0o755)
    path = work_dir / "report/index.html"
    assert opened(work_dir, BROWSER=f"{browser} %s") == (0, f"{path}\n")
    assert told.read_text().strip() == path.as_uri()


def test_without_a_browser_open_says_so_and_the_page_is_written(work_dir):
    path = work_dir / "report/index.html"
    code, told = opened(work_dir, PATH="/nowhere")
    assert (code, told.splitlines()[0]) == (0, str(path))
    assert "no browser was found" in told
    assert [made for made in path.parent.iterdir() if made.is_file()] == [path]


def test_compare_writes_a_page_about_two_pairings(work_dir, capsys):
    assert main.main(["report", str(work_dir), "--compare", "wide"]) == 0
    path = work_dir / "report/compare/pairs/wide/index.html"
    assert capsys.readouterr().out == f"{path}\n"
    statuses = {pair["status"] for pair in Page(path.read_text()).pairs}
    assert "only wide" in statuses
    assert statuses <= {"only wide", "only pairs"}


def test_pages_of_several_runs_are_told_apart_by_their_titles(work_dir):
    run = f"{work_dir.parent.name}/{work_dir.name}"
    for more, path, title in (
        ([], "index.html", f"{run}: preference pairs"),
        (["--name", "wide"], "wide/index.html", f"{run}: preference pairs wide"),
        (["--compare", "wide"], "compare/pairs/wide/index.html", f"{run}: pairings pairs and wide"),
    ):
        assert main.main(["report", str(work_dir), *more]) == 0
        page = (work_dir / "report" / path).read_text()
        assert f"<title>{title}</title>" in page
        assert f"<h1>{title}</h1>" in page


@pytest.mark.parametrize("more", [[], ["--compare", "wide"]])
def test_a_report_of_pairs_that_are_written_anew_meanwhile_is_no_success(work_dir, capsys, monkeypatch, more):
    own, read = work_dir / "pairs/pairs.parquet", pairs_metadata.read_funnel

    def late(*arguments):
        found = read(*arguments)
        os.replace(shutil.copy(own, f"{own}.new"), own)
        return found

    assert main.main(["report", str(work_dir), *more]) == 0
    page = Path(capsys.readouterr().out.strip())
    page.write_text("as it was before")
    monkeypatch.setattr(pairs_metadata, "read_funnel", late)
    assert main.main(["report", str(work_dir), *more]) == 3
    assert "were written anew meanwhile: give the command again" in capsys.readouterr().err
    assert page.read_text() == "as it was before"


def test_compare_refuses_a_pairing_that_is_not_there_and_the_pairing_itself(work_dir, capsys):
    assert main.main(["report", str(work_dir), "--compare", "wid"]) == 2
    assert 'no pairing "wid"' in capsys.readouterr().err
    assert main.main(["report", str(work_dir), "--name", "wide", "--compare", "wide"]) == 2
    assert '--compare "wide" is the pairing itself' in capsys.readouterr().err


def test_a_compared_pairing_that_is_broken_or_of_an_earlier_version_is_refused(work_dir, capsys):
    path = work_dir / "pairs/wide.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    assert main.main(["report", str(work_dir), "--compare", "wide"]) == 2
    assert "were made by an earlier version of this program; make it again, by data-engine pairs with --name wide" in (
        capsys.readouterr().err
    )
    path.write_bytes(b"PAR1")
    assert main.main(["report", str(work_dir), "--compare", "wide"]) == 2
    assert 'wide.parquet" is broken; make it again' in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--compare", "wide")])
def test_a_place_where_no_page_can_be_written_is_named(work_dir, capsys, more):
    (work_dir / "report").touch()
    assert main.main(["report", str(work_dir), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'data-engine: error: "{work_dir}/report')
    assert " cannot be read or written: " in error
    assert "Traceback" not in error


@pytest.fixture
def pictured(tmp_path):
    """A run of 8 questions whose pictures are files in a folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [f"{number}.png" for number in range(8)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(number))
    world, work_dir = make_world(tmp_path / "world", 8, unit_size=4, image=names), tmp_path / "run"
    questions = load_questions(str(world.dataset_path), image_root=str(folder))
    world.questions = lambda: questions
    world.publish(work_dir)
    world.pair(work_dir, strategy="best_worst")
    (work_dir / "pairs/pairs.parquet").rename(work_dir / "pairs/best.parquet")
    world.pair(work_dir)
    config = RunConfig(
        instruct_model_path="instruct", reward_model_path="reward", dataset_path=str(world.dataset_path),
        work_dir=str(work_dir), image_root=str(folder),
    )  # fmt: skip
    bound = {"dataset": questions.fingerprint(hash_files)}
    (work_dir / "run.json").write_text(json.dumps({"config": asdict(config), "bound": bound}))
    return work_dir


def reported(work_dir, *more):
    """Exit code, errors, and what the page says of pictures that it lacks."""
    command = [sys.executable, "-m", "data_engine", "report", str(work_dir), *map(str, more)]
    found = subprocess.run(command, capture_output=True, text=True)
    page = Page((work_dir / "report/index.html").read_text()) if found.returncode == 0 else None
    return found.returncode, found.stderr, page


def test_pictures_that_are_not_where_they_are_looked_for_are_counted_in_terminal_and_page(pictured, tmp_path):
    for name in ("3.png", "5.png"):
        (tmp_path / "pictures" / name).unlink()
    (tmp_path / "elsewhere").mkdir()
    for root, unread in ((None, (3, 5)), (tmp_path / "elsewhere", range(8))):
        code, errors, page = reported(pictured, *(["--image_root", root] if root else []))
        assert code == 0
        [line] = errors.splitlines()
        told = f"the report lacks the pictures of {len(unread)} of 8 questions, which cannot be shown; of idx "
        assert line.startswith(f"data-engine: warning: {told}")
        assert any(f"{told}'q00{one}': image path \"{one}.png\" is not a readable file" in line for one in unread)
        assert line.endswith(f"by --image_root, which is {root or tmp_path / 'pictures'}")
        assert f"Warning: {line.removeprefix('data-engine: warning: ')}" in page.texts


def test_a_picture_that_was_exchanged_is_not_shown_beside_answers_to_another(pictured, tmp_path):
    told = json.loads((pictured / "run.json").read_text())
    rows = [len(read_unit_facts(pictured, "sampled_answer", unit)[0]["rows"]) for unit in (0, 1)]
    assert len(set(rows)) == 1
    (pictured / "run.json").write_text(json.dumps(told | {"units": {"unit_size": rows[0]}}))
    assert reported(pictured)[:2] == (0, "")
    # The last row of the second unit is known by its own digest.
    for number, other in ((1, 2), (2 * rows[0] - 1, 0)):
        (tmp_path / f"pictures/{number}.png").write_bytes(picture(other))
    code, errors, page = reported(pictured)
    assert code == 0
    assert "lacks the pictures of 2 of 8 questions" in errors
    assert "its question or picture is not the one that its answers were sampled from" in errors
    exchanged = {pair["idx"] for pair in page.data["pairs"] if pair["problem"]}
    assert exchanged == {"q001", f"q00{2 * rows[0] - 1}"}


def test_a_report_with_all_its_pictures_warns_of_nothing(pictured):
    code, errors, page = reported(pictured)
    assert (code, errors) == (0, "")
    assert len(page.data["images"]) == 8
    assert not any(text.startswith("Warning") for text in page.texts)


def test_a_folder_of_pictures_that_is_not_there_is_refused_by_its_flag(pictured, tmp_path):
    code, errors, _ = reported(pictured, "--image_root", tmp_path / "nowhere")
    assert code == 2
    assert f'image_root "{tmp_path}/nowhere" is not a folder' in errors


def test_a_page_about_two_pairings_counts_a_question_without_its_picture_once(pictured, tmp_path, caplog):
    caplog.clear()
    where = ["--name", "best", "--compare", "pairs", "--image_root", str(tmp_path / "world")]
    assert main.main(["report", str(pictured), *where]) == 0
    data = Page((pictured / "report/compare/best/pairs/index.html").read_text()).data
    both = [{pair["idx"] for pair in data["pairs"] if pair["status"] == f"only {name}"} for name in ("best", "pairs")]
    assert both[0] & both[1]
    assert both[1] - both[0]
    number = len(both[0] | both[1])
    [warning] = [record.getMessage() for record in caplog.records]
    assert f"the pictures of {number} of {number} questions" in warning
