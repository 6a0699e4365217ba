"""`data-engine export` and `run --export`: what they write, what they refuse, and that nothing is half-written."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_world import hostile_world, publish_run
from stage2_world import digest, make_world

from data_engine import exports
from data_engine.commands import export, main
from data_engine.commands.work_dir import open_finished

BEST = "sft, llama-factory-sft, ms-swift-sft"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("export") / "world")


@pytest.fixture(scope="module")
def work_dir(world, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("export") / "work"
    publish_run(world, work_dir)
    return work_dir


def run(*arguments) -> int:
    return main.main(["export", *map(str, arguments)])


def test_several_formats_are_written_each_into_a_folder_of_its_own(work_dir, tmp_path, capsys):
    assert run(work_dir, "--format", "rlaif-v, trl", "--output", tmp_path / "a" / "b") == 0
    assert sorted(os.listdir(tmp_path / "a/b")) == ["rlaif-v", "trl"]
    dataset = pq.read_table(work_dir / "dataset/dpo_dataset.parquet")
    assert pq.read_table(tmp_path / "a/b/rlaif-v/dpo_dataset.parquet") == dataset
    told = capsys.readouterr().out
    assert f"export rlaif-v: {dataset.num_rows} rows" in told
    assert str(tmp_path / "a/b/trl") in told
    # An empty folder will do as well.
    (tmp_path / "empty").mkdir()
    assert run(work_dir, "--format", "rlaif-v", "--output", tmp_path / "empty") == 0
    assert digest(tmp_path / "empty") == digest_of(tmp_path / "a/b", "rlaif-v")


def test_an_export_goes_to_a_home_that_the_shell_did_not_fill_in(work_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(work_dir, "--format", "rlaif-v", "--output=~/out") == 0
    assert (tmp_path / "out/rlaif-v/dpo_dataset.parquet").exists()


def digest_of(folder, name) -> str:
    """As `digest`, of a folder with that one export in it."""
    alone = folder.parent / "alone"
    alone.mkdir()
    (folder / name).rename(alone / name)
    return digest(alone)


@pytest.mark.parametrize("others", [{"distance": 1}, {"distance": 10_000, "max_pairs": 1}])
def test_an_export_of_pairs_that_are_written_anew_meanwhile_is_not_written(
    world, work_dir, tmp_path, capsys, monkeypatch, others
):
    """By a start with other settings, between the export's count of the kept pairs and its reading of them."""
    work = shutil.copytree(work_dir, tmp_path / "work")
    build = export.build

    def late(name, source, scratch):
        assert len(source.pairs)
        world.pair(work, bound=json.loads((work / "run.json").read_text())["bound"], **others)
        return build(name, source, scratch)

    monkeypatch.setattr(export, "build", late)
    assert run(work, "--format", "scored,trl", "--output", tmp_path / "out") == 3
    assert "were written anew meanwhile: give the command again" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_was_rewritten_and_left_out_is_told_with_its_counts(tmp_path, capsys):
    world = hostile_world(tmp_path / "world", num_questions=30)
    publish_run(world, tmp_path / "work", distance=10_000)
    assert run(tmp_path / "work", "--format", "rlaif-v", "--output", tmp_path / "out") == 0
    told = capsys.readouterr().out
    kept = [row for row in pq.read_table(tmp_path / "work/pairs/pairs.parquet").to_pylist() if row["status"] == "kept"]
    # Of the kinds 1120st, the second, fourth, fifth and sixth have no place in these columns.
    beyond = [row for row in kept if int(row["idx"][1:]) % 6 not in (0, 1)]
    assert f"{len(beyond)} left out: the format has no place for the question's images" in told
    assert f"export rlaif-v: {len(kept) - len(beyond)} rows" in told
    assert " rewritten, so that a trainer reads control tokens in texts as text\n" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--format", "rlaif"], 'format "rlaif"; did you mean rlaif-v?'),
        (["--format", "llama_factory"], "did you mean llama-factory?"),
        (["--format", "TRL"], "did you mean trl?"),
        (["--format", "MS-Swft"], "did you mean ms-swift?"),
        (["--format", "zzz"], f"formats: {', '.join(exports.EXPORTS)}"),
        (["--format", "trl,trl"], "--format names trl twice"),
        (["--format", ""], 'unknown format ""'),
        (["--formt", "trl"], "--formt"),
        (["--license", "CC BY 4.0"], '"CC BY 4.0"; did you mean cc-by-4.0?'),
        (["--image_root", "nowhere"], "where the dataset has moved, give --dataset_path and --image_root"),
        (["--output", "{full}"], "is not empty; name an empty folder"),
        (["--output", "{file}"], "is a file; name an empty folder"),
        (["--output", "{file}/under"], "file"),
        (["--output", "{link}"], "is a link to nothing; name an empty folder"),
        (["--output", "x" * 300], "cannot be used: File name too long"),
        (["--output", "/proc/out"], '"/proc/out" cannot be read or written: No such file or directory'),
        (["--output", "{work}/dataset/out"], "dataset\", which is the run's own; name another"),
        (["--output", "{work}/exports/trl"], "exports\", which is the run's own; name another"),
        # The run swaps what stands there for its own.
        (["--output", "{work}/exports"], "exports\", which is the run's own; name another"),
        (["--dataset_path", "{elsewhere}"], "is not the dataset that"),
        (["--dataset_path", "nowhere.parquet"], 'no file or folder at dataset_path "nowhere.parquet"\n'),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(work_dir, tmp_path, capsys, change, message):
    (tmp_path / "full").mkdir()
    for name in ("full/file", "file"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    other = make_world(tmp_path / "other", num_questions=4)
    places = {"full": tmp_path / "full", "file": tmp_path / "file", "elsewhere": other.dataset_path}
    places |= {"link": tmp_path / "link", "work": work_dir}
    arguments = {"--format": "trl", "--output": str(tmp_path / "out")} | {change[0]: change[1].format(**places)}
    before = everything(tmp_path, work_dir)
    assert run(work_dir, *(word for both in arguments.items() for word in both)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert everything(tmp_path, work_dir) == before


@pytest.mark.parametrize("name", ["circle", "x" * 300, "file"])
def test_a_work_dir_that_is_no_folder_is_refused(tmp_path, capsys, name):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").touch()
    assert run(tmp_path / name, "--format", "trl", "--output", tmp_path / "out") == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "least", "told"),
    [
        ("trl,scored", "1", f"--min_reward is about the formats {BEST}, and --format names trl, scored"),
        ("sft", "nan", "--min_reward must be a finite number, got nan"),
        ("sft", "high", "argument --min_reward: invalid float value: 'high'"),
        # Of 30 questions none has so good an answer.
        ("sft", "1e9", "30 rows: the best answer has less than 1e+09 of the reward sum"),
    ],
)
def test_a_least_reward_that_means_nothing_is_refused(work_dir, tmp_path, capsys, names, least, told):
    assert run(work_dir, "--format", names, "--output", tmp_path / "out", "--min_reward", least) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_best_answers_none_of_which_is_good_enough_are_told_of_answers(work_dir, tmp_path, capsys):
    """pairs.parquet has no answer that makes no pair."""
    assert run(work_dir, "--format", "sft", "--output", tmp_path / "out", "--min_reward", "1000") == 2
    told = capsys.readouterr().err
    assert "the format sft has no row (" in told
    assert told.endswith("); the format scored has every answer\n")


@pytest.mark.parametrize(
    ("name", "file"),
    [("sft", "train.parquet"), ("llama-factory-sft", "data.parquet"), ("ms-swift-sft", "train.parquet")],
)
def test_the_card_of_best_answers_says_how_many_were_not_good_enough(work_dir, tmp_path, capsys, name, file):
    assert run(work_dir, "--format", f"{name},trl", "--output", tmp_path / "out", "--min_reward", "0.13") == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "less than 0.13" in line]
    count = int(line.split()[0])
    assert 0 < count < 30
    assert pq.read_table(tmp_path / "out" / name / file).num_rows == 30 - count
    card = (tmp_path / "out" / name / "README.md").read_text()
    assert f"left out: the best answer has less than 0.13 of the reward sum | {count} |" in card
    assert "less than 0.13" not in (tmp_path / "out/trl/README.md").read_text()


def test_a_run_without_pairs_is_refused(world, tmp_path, capsys):
    assert run(tmp_path / "none", "--format", "trl", "--output", tmp_path / "out") == 2
    work_dir = tmp_path / "work"
    publish_run(world, work_dir)
    pairs = work_dir / "pairs/pairs.parquet"
    table = pq.read_table(pairs)
    none = table.set_column(table.schema.get_field_index("status"), "status", pa.array(["identical"] * table.num_rows))
    pq.write_table(none, pairs)
    assert run(work_dir, "--format", "trl", "--output", tmp_path / "out") == 2
    assert "no pair of" in capsys.readouterr().err
    pairs.unlink()
    assert run(work_dir, "--format", "trl", "--output", tmp_path / "out") == 2
    assert "no pairs/pairs.parquet yet: let the run finish stage 2 first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def everything(*folders) -> list[Path]:
    """What lies in folders, but for the hashes of files, which any command may remember."""
    return sorted(path for folder in folders for path in folder.rglob("*") if path.parent.name != "hashes")


def copied(work_dir, folder):
    """A copy of a run, to be damaged."""
    shutil.copytree(work_dir, folder)
    return folder


def without_metadata(work_dir):
    table = pq.read_table(work_dir / "pairs/pairs.parquet")
    pq.write_table(table.replace_schema_metadata(None), work_dir / "pairs/pairs.parquet")


def run_file(**entries):
    """Puts other entries into run.json."""

    def change(work_dir):
        found = json.loads((work_dir / "run.json").read_text())
        (work_dir / "run.json").write_text(json.dumps(found | entries))

    return change


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (without_metadata, 2, "were made by an earlier version of this program; pair again"),
        (lambda work: os.truncate(work / "pairs/pairs.parquet", 2000), 2, 'pairs.parquet" is broken; pair again'),
        (lambda work: (work / "run.json").write_text("{}"), 2, "is not one of this version of the program"),
        (lambda work: (work / "run.json").write_text("[]"), 2, "is not one of this version of the program"),
        (run_file(config={"removed": 1}), 2, "is not one of this version of the program ("),
        (run_file(models={}), 2, "is not one of this version of the program (models has no instruct)"),
        (lambda work: (work / "sampled_answer/unit-00000.parquet").unlink(), 3, "unit-00000.parquet is gone; the"),
        (lambda work: os.truncate(work / "sampled_answer/unit-00000.parquet", 900), 3, "computes it again"),
    ],
)
def test_a_work_dir_that_is_damaged_or_of_another_version_is_told(work_dir, tmp_path, capsys, damage, code, message):
    damage(copied(work_dir, tmp_path / "work"))
    assert run(tmp_path / "work", "--format", "trl", "--output", tmp_path / "out" / "deep") == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_half_written(work_dir, tmp_path, capsys, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run(work_dir, "--format", "trl,llama-factory", "--output", tmp_path / "out" / "deep") == 2
    assert "cannot be read or written: No space left on device\n" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_exports_into_one_folder_leave_one_of_them_whole(work_dir, tmp_path, capsys, monkeypatch):
    built = exports.build

    def slow(name, *arguments):
        # The other one is done before this one has moved anything.
        monkeypatch.setattr(export, "build", built)
        assert run(work_dir, "--format", "llama-factory,trl", "--output", tmp_path / "out") == 0
        return built(name, *arguments)

    monkeypatch.setattr(export, "build", slow)
    assert run(work_dir, "--format", "sft,trl", "--output", tmp_path / "out") == 2
    assert 'is not empty any more: another program has written "trl" there' in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path / "out")) == ["llama-factory", "trl"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(work_dir, tmp_path, capsys, monkeypatch, number):
    monkeypatch.setattr(export, "build", lambda *arguments: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert run(work_dir, "--format", "trl", "--output", tmp_path / "out") == 75
    assert "interrupted; run the same command again" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert signal.getsignal(number) is before


def test_a_run_in_an_archive_that_cannot_be_written_is_exported(work_dir, tmp_path, monkeypatch):
    archive = copied(work_dir, tmp_path / "archive")
    shutil.rmtree(archive / "hashes")
    before = sorted(archive.rglob("*"))
    # Whoever runs the tests as root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert run(archive, "--format", "rlaif-v", "--output", tmp_path / "out") == 0
    assert sorted(archive.rglob("*")) == before


@pytest.mark.parametrize("told_by", ["flag", "later start"])
def test_a_copy_of_a_dataset_of_the_hub_takes_its_place(work_dir, world, tmp_path, told_by):
    moved = copied(work_dir, tmp_path / "work")
    config = json.loads((moved / "run.json").read_text())["config"]
    config |= {"dataset_path": "owner/gone", "dataset_split": "validation", "dataset_revision": "v1"}
    flag = ["--dataset_path", world.dataset_path] if told_by == "flag" else []
    run_file(config=config, places={} if flag else {"dataset_path": str(world.dataset_path)})(moved)
    assert run(moved, "--format", "rlaif-v", *flag, "--output", tmp_path / "out") == 0


def test_where_one_format_has_no_row_none_is_written(tmp_path, capsys):
    world = hostile_world(tmp_path / "world", num_questions=12, kinds="0")
    publish_run(world, tmp_path / "work", distance=10_000)
    assert run(tmp_path / "work", "--format", "trl,internvl-mpo", "--output", tmp_path / "out") == 2
    assert "the format internvl-mpo has no row (" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_answers_are_exported_though_no_pair_is_kept(world, tmp_path, capsys):
    publish_run(world, tmp_path / "work", min_margin=1e9)
    assert run(tmp_path / "work", "--format", "scored,sft", "--output", tmp_path / "out") == 0
    assert pq.read_table(tmp_path / "out/scored/scored.parquet").num_rows > 0
    assert pq.read_table(tmp_path / "out/sft/train.parquet").num_rows > 0
    assert run(tmp_path / "work", "--format", "scored,trl", "--output", tmp_path / "more") == 2
    told = f"is kept: the format trl has nothing to write; those that are made of answers need none: {BEST}, scored\n"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("name", exports.BEST_OF_N)
def test_a_run_without_an_answer_that_can_be_ranked_is_told_of_answers(tmp_path, capsys, caplog, name):
    world = make_world(tmp_path / "world")
    for row in world.rows:
        row["answer"] = ""
    publish_run(world, tmp_path / "work")
    assert run(tmp_path / "work", "--format", name, "--output", tmp_path / "out") == 2
    assert f"can be ranked: the format {name} has nothing to write; the format scored" in capsys.readouterr().err
    open_finished(tmp_path / "work", {}).write([name], tmp_path / "exports", tmp_path)
    assert f"no answer can be ranked: {tmp_path / 'exports' / name} is written without a row" in caplog.text


KILL = """
import os, signal, sys
from data_engine import exports
from data_engine.commands import main
moved = exports.move_all
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
exports.move_all = die
main.main(sys.argv[1:])
"""


def test_a_killed_export_leaves_nothing_that_looks_finished_and_can_be_repeated(work_dir, tmp_path):
    arguments = ["export", str(work_dir), "--format", "trl", "--output", str(tmp_path / "out")]
    killed = subprocess.run([sys.executable, "-c", KILL, *arguments], capture_output=True)
    assert killed.returncode == -9
    assert not [name for name in os.listdir(tmp_path / "out") if not name.startswith(".")]
    assert main.main(arguments) == 0
    assert os.listdir(tmp_path / "out") == ["trl"]


@pytest.mark.parametrize("columns", [50, 80, 130])
def test_the_help_names_every_format(columns):
    shown = subprocess.run(
        [sys.executable, "-m", "data_engine", "export", "--help"], capture_output=True, text=True, check=True,
        # Narrow, so that lines end where they would cut a name in two.
        env=os.environ | {"COLUMNS": str(columns)},
    ).stdout  # fmt: skip
    assert {*exports.EXPORTS} <= {word.strip(",") for word in shown.split()}


def test_a_run_of_before_control_tokens_were_kept_uses_its_markers(work_dir, tmp_path):
    found = json.loads((work_dir / "run.json").read_text())
    for model in found["models"].values():
        del model["control_tokens"]
    (tmp_path / "run.json").write_text(json.dumps(found))
    for name in ("pairs", "sampled_answer", "instruct_logps", "reward_logps"):
        (tmp_path / name).symlink_to(work_dir / name)
    assert run(tmp_path, "--format", "rlaif-v", "--output", tmp_path / "out") == 0
