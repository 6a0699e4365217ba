"""`data-engine pairs`: another pairing from what is stored; what it writes, keeps and refuses."""

import json
import shutil
import subprocess
import sys

import pairs_proof
import pyarrow.parquet as pq
import pytest
from export_run import finish
from stage2_world import digest, make_world, pairs_rows

from data_engine.commands import main
from data_engine.preferences.pairs_metadata import read_funnel
from data_engine.preferences.word_count import count_words
from data_engine.store import units


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose own pairs are by a rank of 2."""
    folder = tmp_path_factory.mktemp("pairs")
    world = make_world(folder / "world")
    finish(world, folder / "work")
    return folder / "work"


@pytest.fixture
def work_dir(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "work")
    return tmp_path / "work"


def pairs(*arguments) -> int:
    return main.main(["pairs", *map(str, arguments)])


def rows_of(work_dir, name) -> list[dict]:
    return pq.read_table(work_dir / f"pairs/{name}.parquet").to_pylist()


def settings_of(work_dir, name) -> dict:
    return json.loads(pq.read_schema(work_dir / f"pairs/{name}.parquet").metadata[b"settings"])


def test_without_a_flag_the_pairs_are_the_run_s_own_though_its_dataset_is_gone(work_dir, tmp_path, capsys):
    before = digest(work_dir / "dataset")
    run_file = (work_dir / "run.json").read_text()
    (work_dir / "run.json").write_text(run_file.replace("questions.parquet", "nowhere.parquet"))
    assert pairs(work_dir, "--name", "same") == 0
    assert rows_of(work_dir, "same") == pairs_rows(work_dir)
    assert settings_of(work_dir, "same") == settings_of(work_dir, "pairs")
    told = capsys.readouterr().out
    assert str(work_dir / "pairs/same.parquet") in told
    own, other = read_funnel(work_dir), read_funnel(work_dir, "same")
    assert (other.questions, other.answers, other.ranked) == (own.questions, own.answers, own.ranked)
    assert other.kept == own.written
    assert other.dropped == own.dropped
    assert ["kept", str(own.written)] in [line.split() for line in told.splitlines()]
    assert digest(work_dir / "dataset") == before


def test_a_flag_that_is_given_wins_and_the_others_stay_the_run_s(work_dir):
    assert pairs(work_dir, "--name", "best", "--strategy", "best_worst", "--max_margin", 0.3) == 0
    assert settings_of(work_dir, "best") == {
        "rank": 2, "distance": 25, "beta": 0.1, "seed": 0, "strategy": "best_worst", "max_margin": 0.3,
    }  # fmt: skip
    rows = rows_of(work_dir, "best")
    assert len({row["idx"] for row in rows}) == len(rows)
    assert {row["status"] for row in rows} == {"kept", "max_margin", "length_balance"}
    for row in rows:
        assert row["margin"] == row["chosen_sum"] - row["rejected_sum"]
        assert (row["status"] == "max_margin") == (row["margin"] > 0.3)
    funnel = read_funnel(work_dir, "best")
    assert funnel.dropped["max_margin"] == sum(row["margin"] > 0.3 for row in rows) > 0
    assert ("  dropped by max_margin", funnel.dropped["max_margin"]) in funnel.lines()


def test_no_pair_has_to_go_for_the_length_of_its_chosen_answer(work_dir, capsys):
    balanced = read_funnel(work_dir).dropped["length_balance"]
    assert balanced > 0
    assert pairs(work_dir, "--name", "longer", "--length_balance", 1000) == 0
    assert settings_of(work_dir, "longer")["length_balance"] == 1000
    longer = read_funnel(work_dir, "longer")
    assert longer.dropped["length_balance"] == 0
    assert longer.kept == read_funnel(work_dir).written + balanced


def test_a_pairing_of_the_same_name_is_replaced_and_says_so(work_dir, capsys):
    assert pairs(work_dir, "--name", "x", "--seed", 1) == 0
    kept = sum(row["status"] == "kept" for row in rows_of(work_dir, "x"))
    assert kept > 0
    assert "replaced" not in capsys.readouterr().out
    assert pairs(work_dir, "--name", "x", "--rank", 1) == 0
    before = f"x.parquet (replaced one with {kept} pairs, by --rank 2 --distance 25 --beta 0.1 --seed 1)"
    assert before in capsys.readouterr().out
    assert settings_of(work_dir, "x")["rank"] == 1
    assert settings_of(work_dir, "x")["seed"] == 0


def test_flags_that_change_nothing_are_warned_of(work_dir, capsys):
    assert pairs(work_dir, "--name", "x", "--strategy", "best_worst", "--rank", 1) == 0
    told = capsys.readouterr().err
    assert "data-engine: warning: rank has no effect: strategy best_worst does not go by it" in told
    assert "beta" not in told
    assert pairs(work_dir, "--name", "x", "--strategy", "aligned", "--rank", 1, "--beta", 0.2) == 0
    assert "no effect" not in capsys.readouterr().err
    # The run's --rank 2 is not what this command gave.
    assert pairs(work_dir, "--name", "x", "--strategy", "best_worst") == 0
    assert "no effect" not in capsys.readouterr().err


def test_a_run_by_right_and_wrong_can_be_paired_otherwise_and_none_unsets_a_flag(tmp_path):
    world = make_world(tmp_path / "world")
    world.publish(tmp_path / "other")
    finish(world, tmp_path / "work", strategy="right_wrong", right=0.01, min_margin=0.01)
    work_dir = tmp_path / "work"
    for row in pairs_rows(work_dir):
        assert row["chosen_sum"] >= 0.01 > row["rejected_sum"]
        assert row["margin"] >= 0.01 or row["status"] == "min_margin"
    assert pairs(work_dir, "--name", "cross", "--strategy", "cross", "--min_margin", "none") == 0
    assert settings_of(work_dir, "cross") == {"rank": 2, "distance": 25, "beta": 0.1, "seed": 0}
    world.pair(tmp_path / "other")
    assert rows_of(work_dir, "cross") == pairs_rows(tmp_path / "other")


def test_length_alpha_auto_says_what_it_comes_to_and_evens_the_pairs_out(work_dir, capsys):
    plain, even = ["--rank_by", "implicit.sum", "--rank", 2], []
    for name, more in (("plain", []), ("even", ["--length_alpha", "auto"])):
        assert pairs(work_dir, "--name", name, *plain, *more) == 0
        rows = rows_of(work_dir, name)
        even.append(sum(row["chosen_words"] - row["rejected_words"] for row in rows) / len(rows))
    assert abs(even[1]) < abs(even[0]) / 3
    alpha = json.loads(pq.read_schema(work_dir / "pairs/even.parquet").metadata[b"length_alpha"])
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("length_alpha")]
    assert told == [f"length_alpha auto came to {alpha}, by which answers ranked"]
    # As it is printed, it can be given.
    assert pairs(work_dir, "--name", "given", *plain, "--length_alpha", told[0].split()[4].rstrip(",")) == 0
    assert "length_alpha auto" not in capsys.readouterr().out
    assert rows_of(work_dir, "given") == rows_of(work_dir, "even")


@pytest.mark.parametrize("alpha", ["0.2", "auto"])
def test_places_of_answers_are_those_by_which_a_pairing_with_length_alpha_ranked(work_dir, tmp_path, alpha):
    assert pairs(work_dir, "--name", "short", "--length_alpha", alpha, "--rank_by", "implicit.avg") == 0
    assert main.main(["export", str(work_dir), "--format", "scored", "--output", str(tmp_path / "out"), "--name",
                      "short"]) == 0  # fmt: skip
    found = pq.read_schema(work_dir / "pairs/short.parquet").metadata.get(b"length_alpha", alpha)
    rows = [row for row in pq.read_table(tmp_path / "out/scored/scored.parquet").to_pylist() if row["avg_rank"]]
    by_reward = by_length = 0
    for idx in {row["idx"] for row in rows}:
        own = sorted((row for row in rows if row["idx"] == idx), key=lambda row: row["sample_index"])
        shown = [row["avg_rank"] for row in own]
        order = sorted(own, key=lambda row: float(found) * count_words(row["answer"]) - row["avg"])
        assert shown == [1 + order.index(row) for row in own]
        by_reward += shown == [1 + sorted(own, key=lambda row: -row["avg"]).index(row) for row in own]
        by_length += 1
    assert by_reward < by_length, "no place depends on the length"


def test_where_no_pair_is_kept_the_exit_code_is_4(work_dir, capsys):
    assert pairs(work_dir, "--name", "none", "--min_margin", 1000) == 4
    assert "no pair is kept; the lines above say where they were left out" in capsys.readouterr().err


def test_where_a_strategy_makes_no_pair_it_is_named(work_dir, capsys):
    assert pairs(work_dir, "--name", "none", "--strategy", "right_wrong", "--right", 1000) == 4
    said = "answers ranked, and strategy right_wrong pairs no two of a question (--right, --rank, --distance"
    assert said in capsys.readouterr().err


def test_exports_and_the_report_take_a_pairing_by_its_name(work_dir, tmp_path, capsys):
    assert pairs(work_dir, "--name", "wide", "--min_margin", 0.1) == 0
    kept = [row for row in rows_of(work_dir, "wide") if row["status"] == "kept"]
    assert main.main(["export", str(work_dir), "--format", "trl,scored", "--output", str(tmp_path / "out"), "--name",
                      "wide"]) == 0  # fmt: skip
    exported = pq.read_table(tmp_path / "out/trl/train.parquet").to_pylist()
    assert sorted((row["idx"], row["margin"]) for row in exported) == sorted(
        (row["idx"], row["margin"]) for row in kept
    )
    card = (tmp_path / "out/trl/README.md").read_text()
    assert "min_margin | 0.1" in card
    assert "--min_margin 0.1" in card
    report = (work_dir / "report/index.html").read_text() if (work_dir / "report/index.html").exists() else None
    assert main.main(["report", str(work_dir), "--name", "wide"]) == 0
    page = (work_dir / "report/wide/index.html").read_text()
    assert capsys.readouterr().out.endswith(f"{work_dir / 'report/wide/index.html'}\n")
    assert f"{len(kept)} pairs from" in page
    assert report is None or (work_dir / "report/index.html").read_text() == report


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "what is the pairing called? give --name NAME"),
        (["--name", "pairs"], '--name "pairs" is what the run\'s own pairs are called'),
        (["--name", "../x"], 'letters, digits, _ and -, 100 at most, got "../x"'),
        (["--name", "a/b"], 'got "a/b"'),
        (["--name", ""], 'got ""'),
        (["--name", "x", "--rank_by", "rule"], 'rank_by names "rule", which no source of reward of this run has'),
        (["--name", "x", "--rank_by", "implicit.summ"], "did you mean implicit.sum?; known: implicit.sum, "),
        (["--name", "x", "--rank_by", "implicit.sum, implicit.sum"], "rank_by names implicit.sum twice"),
        (["--name", "x", "--rank_by", "implicit.sum,"], 'rank_by names ""'),
        (["--name", "x", "--strategy", "best"], 'unknown strategy "best"; known: cross, best_worst'),
        (["--name", "x", "--strategy", "best_wurst"], "mu_2sigma; did you mean best_worst?"),
        (["--name", "x", "--strategy", "right_wrong"], "strategy right_wrong needs --right"),
        (["--name", "x", "--right", "1"], "right is for --strategy right_wrong"),
        (["--name", "x", "--strategy", "right_wrong", "--right", "1", "--length_alpha", "1"], "length_alpha changes"),
        (["--name", "x", "--min_margin", "2", "--max_margin", "1"], "min_margin 2.0 is above max_margin 1.0"),
        (["--name", "x", "--min_margin", "large"], "min_margin must be a number, got"),
        (["--name", "x", "--min_margin", ".nan"], "min_margin must be a finite number"),
        (["--name", "x", "--max_margin", ".inf"], "max_margin must be a finite number"),
        (["--name", "x", "--right", "yes"], "right must be a number"),
        (["--name", "x", "--length_alpha", "much"], 'length_alpha must be a number or auto, got "much"'),
        (["--name", "x", "--length_alpha", "inf"], "length_alpha must be a number or auto"),
        (["--name", "x", "--near_duplicates", "0"], "near_duplicates must be above 0 and at most 1, got 0.0"),
        (["--name", "x", "--near_duplicates", "1.5"], "near_duplicates must be above 0 and at most 1, got 1.5"),
        (["--name", "x", "--length_balance", "-1"], "length_balance must be at least 0, got -1.0"),
        (["--name", "x", "--length_balance", ".inf"], "length_balance must be a finite number"),
        (["--name", "x", "--max_pairs", "0"], "max_pairs must be at least 1, got 0"),
        (["--name", "x", "--max_pairs", "1.5"], "max_pairs must be a whole number"),
        (["--name", "x", "--rank", "0"], "rank must be at least 1"),
        (["--name", "x", "--rank", "none"], "rank must be a whole number"),
        (["--name", "x", "--temperature", "1"], "unrecognized arguments: --temperature 1"),
        (["--name", "x", "--min_margin"], "argument --min_margin: expected one argument"),
        (["--name", "x", "--min_margn", "1"], "unrecognized arguments: --min_margn 1; did you mean --min_margin?"),
        (["--name", "x", "--min_margin", "1e-1", "--max_margin", "-1e-1"], "min_margin 0.1 is above max_margin -0.1"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(finished, capsys, flags, message):
    before = sorted((finished / "pairs").iterdir())
    assert pairs(finished, *flags) == 2
    assert message in capsys.readouterr().err
    assert sorted((finished / "pairs").iterdir()) == before


def test_a_folder_that_is_no_finished_run_is_refused(work_dir, tmp_path, capsys):
    assert pairs(tmp_path / "nowhere", "--name", "x") == 2
    assert "no folder" in capsys.readouterr().err
    assert pairs(tmp_path, "--name", "x") == 2
    assert "it has no run.json" in capsys.readouterr().err
    units.unit_path(work_dir, "reward_logps", 1).unlink()
    assert pairs(work_dir, "--name", "x") == 3
    assert "reward_logps: 1" in capsys.readouterr().err
    (work_dir / "pairs/pairs.parquet").unlink()
    assert pairs(work_dir, "--name", "x") == 2
    assert "has no pairs/pairs.parquet yet: let the run finish stage 2 first" in capsys.readouterr().err


def test_pairs_of_an_earlier_version_are_refused_with_what_to_do(work_dir, capsys):
    path = work_dir / "pairs/pairs.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("margin"), path)
    assert pairs(work_dir, "--name", "x") == 2
    assert "made by an earlier version of this program; pair again" in capsys.readouterr().err


def test_a_damaged_unit_is_set_aside_and_told(work_dir, capsys):
    path = units.unit_path(work_dir, "reward_logps", 1)
    path.write_bytes(path.read_bytes()[:-9])
    assert pairs(work_dir, "--name", "x") == 3
    assert "the command of the run, given again, computes it again" in capsys.readouterr().err
    assert not (work_dir / "pairs/x.parquet").exists()


@pytest.mark.parametrize("command", [["export", "--format", "trl", "--output", "out"], ["report"]])
def test_a_pairing_that_is_not_there_is_refused_by_name(work_dir, capsys, command):
    assert main.main([command[0], str(work_dir), *command[1:], "--name", "pars"]) == 2
    assert f'"{work_dir}" has no pairing "pars"; did you mean pairs?; it has: pairs' in capsys.readouterr().err


@pytest.mark.slow
def test_no_torch_is_imported_and_no_dataset_is_needed_at_size(tmp_path):
    pairs_proof.prepare(tmp_path / "work", 60)
    # One process for all: none of them may import it.
    code = (
        "import json, sys; from data_engine.commands import main;"
        "codes = [main.main(['pairs', sys.argv[1], '--name', name, *flags])"
        " for name, flags in json.loads(sys.argv[2]).items()];"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'{heavy} {codes}' if heavy or any(codes) else 0)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "work"), json.dumps(pairs_proof.PAIRINGS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in pairs_proof.PAIRINGS:
        funnel = read_funnel(tmp_path / "work", name)
        assert (funnel.questions, funnel.answers) == (60, 600)
        assert funnel.kept > 5
    measured = pairs_proof.measure(tmp_path / "work", "cross", [])
    assert measured.kept == read_funnel(tmp_path / "work", "cross").kept
    assert measured.peak_bytes > 50e6
