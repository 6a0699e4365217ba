"""Commands about the work_dir of a run: which folder they take, and what they refuse."""

from pathlib import Path

import pytest
from command_line import call, refused
from stage2_world import World, make_world

from data_engine.commands import main
from data_engine.errors import UserError
from data_engine.planning.checks import check_writable


@pytest.fixture
def finished(tmp_path) -> tuple[World, Path]:
    """A world whose answers are paired, and its work_dir with a run.json."""
    world, work_dir = make_world(tmp_path / "world", num_questions=8), tmp_path / "run"
    world.publish(work_dir)
    world.pair(work_dir)
    world.write_run_file(work_dir)
    return world, work_dir


def test_report_of_a_run_without_pairs_exits_with_2(here, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    code, _, error = here("report", str(tmp_path), cwd=tmp_path)
    assert (code, error[-62:]) == (2, "has no pairs/pairs.parquet yet: let the run finish stage 2 first\n"[-62:])


def test_report_writes_the_page_again_from_the_work_dir(finished):
    _, work_dir = finished
    assert call("report", str(work_dir)) == (0, f"{work_dir}/report/index.html\n", "")
    assert (work_dir / "report/index.html").stat().st_size > 1000


def test_report_refuses_a_dataset_that_has_changed(finished, capsys):
    world, work_dir = finished
    make_world(world.folder, num_questions=9)
    assert main.main(["report", str(work_dir)]) == 2
    assert capsys.readouterr().err.endswith(f'is not the dataset that "{work_dir}" was made from; it has changed\n')


def test_report_says_of_another_dataset_than_the_runs_that_it_is_another(finished, here, tmp_path):
    """Nothing has changed: the flag names a wrong file."""
    world, work_dir = finished
    other = make_world(tmp_path / "other", num_questions=9).dataset_path
    told = f'"{other}" is not the dataset that "{work_dir}" was made from; that was "{world.dataset_path}", or the same'
    assert here("report", str(work_dir), "--dataset_path", str(other), cwd=tmp_path) == refused(
        f"{told} content elsewhere"
    )
    # Who gives the flag is not told to give it.
    told = f'no file or folder at dataset_path "{tmp_path}/nothing"'
    assert here("report", str(work_dir), f"--dataset_path={tmp_path}/nothing", cwd=tmp_path) == refused(told)


def test_homes_are_found_in_the_paths_of_every_command(finished, monkeypatch, here):
    """Quotes and --name=~/path keep the shell from it."""
    world, work_dir = finished
    monkeypatch.setenv("HOME", str(work_dir.parent))
    told = world.dataset_path.relative_to(work_dir.parent)
    page = f"{work_dir}/report/index.html\n"
    assert here("report", "~/run", f"--dataset_path=~/{told}", cwd=world.folder) == (0, page, "")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("$SCRATCH/new", "$SCRATCH is filled in by a shell alone, not in a configuration and not in single quotes"),
        ("~no-such-user/new", "there is no home of that name: ~no-such-user"),
    ],
)
def test_no_folder_is_made_that_has_the_name_of_a_variable_or_of_another_home(finished, here, given, says):
    _, work_dir = finished
    where, before = work_dir.parent, {*work_dir.parent.iterdir()}
    told = f'--output "{given}" cannot be meant; {says}'
    assert here("export", str(work_dir), "--format", "trl", "--output", given, cwd=where) == refused(told)
    with pytest.raises(UserError) as error:
        check_writable(Path(given))
    assert str(error.value) == f'work_dir "{given}" cannot be meant; {says}'
    assert {*where.iterdir()} == before
    # A folder that has such a name is another matter.
    (where / given).mkdir(parents=True)
    check_writable(Path(given))


def test_a_command_about_a_work_dir_takes_one(capsys):
    for arguments in ([], ["a", "b"], ["--watch"]):
        assert main.main(["status", *arguments]) == 2
        assert "usage: data-engine status WORK_DIR" in capsys.readouterr().err
    assert main.main(["status", "--help"]) == 0
    for arguments, says in (([], "arguments are required: WORK_DIR"), (["a", "b"], "unrecognized arguments: b")):
        assert main.main(["report", *arguments]) == 2
        assert says in capsys.readouterr().err


def test_help_may_stand_behind_a_work_dir(tmp_path, capsys):
    assert main.main(["status", str(tmp_path), "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: data-engine status WORK_DIR")


@pytest.mark.parametrize("command", ["status", "report", "pairs", "export"])
def test_a_file_is_said_to_be_no_work_dir(here, tmp_path, command):
    (tmp_path / "file").write_text("")
    more = {"pairs": ["--name", "x"], "export": ["--format", "trl", "--output", "out"]}.get(command, [])
    told = '"file" is a file; name the work_dir of a run, a folder'
    assert here(command, "file", *more, cwd=tmp_path) == refused(told)


def test_status_of_a_folder_that_is_no_work_dir_exits_with_2(here, tmp_path):
    assert here("status", "none", cwd=tmp_path) == refused('no folder "none"')
