"""Runs whose judge is asked about several aspects of an answer: a column of rewards each, by one pass of the judge."""

import json
import re
import shlex
import shutil

import pyarrow.parquet as pq
import pytest
from run_files import hostile_rows, read, write
from shown import ASPECTS, ROOT, SHOWN

from data_engine.commands import export, main, pairs, report
from data_engine.errors import UserError, UserErrors
from data_engine.flag_files import each_path
from data_engine.job import model_holder, worker
from data_engine.pipeline import judge as judging
from data_engine.pipeline.export import read_metadata
from data_engine.preferences.pairs_metadata import metadata_of

ASKED = {
    "faithful": "Q: {question}\nA: {answer}\nIs it true of the image?",
    "helpful": "Q: {question}\nA: {answer}\nDoes it help?",
    "safe": "Harmless? Q: {question} A: {answer}",
}


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path / "questions.parquet", [row for row in hostile_rows() if row[0] in ("good", "palette")])


@pytest.fixture
def paths(tmp_path) -> dict[str, str]:
    for name, text in ASKED.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return {name: str(tmp_path / f"{name}.txt") for name in ASKED}


@pytest.fixture
def start(config, questions, goldens, tmp_path):
    """Starts a run of the source yesno in a folder of the test's."""

    def run(template: str | None, folder: str = "work", **more: object) -> int:
        flags = {"rewards": "yesno", "reward_model_path": None, "yesno_model_path": str(goldens / "llava/reward")}
        flags |= {"yesno_template": template, "work_dir": str(tmp_path / folder), "rank": 2, "distance": 1000}
        return worker.run(config(questions, **flags | more))

    return run


def listed(paths: dict[str, str], *names: str) -> str:
    return ",".join(f"{name}={paths[name]}" for name in names or paths)


def test_each_aspect_has_the_numbers_of_a_run_that_asks_about_it_alone(start, paths, tmp_path):
    assert start(listed(paths, "safe", "faithful", "helpful"), export="scored") == 0
    found = read(tmp_path / "work/yesno")
    assert list(found[0]) == ["idx", "sample_index", "score_faithful", "score_helpful", "score_safe"]
    scored = {(row["idx"], row["sample_index"]): row for row in read(tmp_path / "work/exports/scored")}
    for name, path in paths.items():
        assert start(path, name) == 0
        alone = read(tmp_path / name / "yesno")
        assert len({row["score"] for row in alone}) > 4
        assert [row[f"score_{name}"] for row in found] == pytest.approx([row["score"] for row in alone], abs=1e-5)
        for row in found:
            assert scored[row["idx"], row["sample_index"]][f"yesno_{name}"] == row[f"score_{name}"]
    # They rank in the order of the flag.
    settings = read_metadata(tmp_path / "work")["settings"]
    assert settings["rank_by"] == "yesno.safe,yesno.faithful,yesno.helpful"
    rows = read(tmp_path / "work/pairs")
    assert {row["margin"] for row in rows} == {row["chosen_yesno_safe"] - row["rejected_yesno_safe"] for row in rows}


@pytest.mark.parametrize("whole", [False, True])
def test_a_picture_is_run_once_for_all_aspects_where_prompts_share_it(start, paths, monkeypatch, whole):
    """Without a shared beginning, once for each answer and aspect."""
    if whole:
        monkeypatch.setattr(judging.JudgeScores, "whole", True)
    load, calls = model_holder.load_model, []

    def counting(name, path, **more):
        model = load(name, path, **more)
        if path.endswith("reward"):
            encoded = model.encode_images
            monkeypatch.setattr(model, "encode_images", lambda images: calls.append(len(images)) or encoded(images))
        return model

    monkeypatch.setattr(model_holder, "load_model", counting)
    monkeypatch.setattr(judging.JudgeScores, "check", lambda judged, work, found: None)
    assert start(listed(paths), sample_k=3, stop_after_stage=1) == 0
    assert sum(calls) == (2 * 3 * 3 if whole else 2)


def test_whole_prompts_have_the_numbers_of_shared_ones(start, paths, tmp_path, monkeypatch):
    assert start(listed(paths), "shared") == 0
    monkeypatch.setattr(judging.JudgeScores, "whole", True)
    assert start(listed(paths), "whole") == 0
    shared, whole = (read(tmp_path / name / "yesno") for name in ("shared", "whole"))
    assert len(shared) == len(whole) > 4
    for one, other in zip(shared, whole, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_an_aspect_is_bound_by_its_name_and_its_text(start, paths, tmp_path):
    assert start(listed(paths, "faithful", "helpful")) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/*/unit-*")}
    assert start(listed(paths, "helpful", "faithful")) == 0
    assert read_metadata(tmp_path / "work")["settings"]["rank_by"] == "yesno.helpful,yesno.faithful"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/*/unit-*")} == before
    was = "yesno_template was faithful [0-9a-f]{12}, helpful [0-9a-f]{12}, now "
    for names in (("faithful",), ("faithful", "helpful", "safe")):
        told = ", ".join(f"{name} [0-9a-f]{{12}}" for name in names)
        with pytest.raises(UserError, match=f"{was}{told}; units of yesno were computed with it.* or move "):
            start(listed(paths, *names))
    with pytest.raises(UserError, match=f"{was}[0-9a-f]{{12}}; "):
        start(paths["faithful"])
    (tmp_path / "helpful.txt").write_text("{question} {answer} Does it really help?")
    with pytest.raises(UserError, match=f"{was}faithful [0-9a-f]{{12}}, helpful [0-9a-f]{{12}}; "):
        start(listed(paths, "faithful", "helpful"))
    shutil.rmtree(tmp_path / "work/yesno")
    assert start(listed(paths)) == 0
    assert "score_safe" in read(tmp_path / "work/yesno")[0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("one=ONE,one=ONE", "yesno_template names one twice; give each file a name of its own"),
        ("my-name=ONE", 'yesno_template calls a file "my-name", which is part of the name of a column'),
        ("one=ONE,ONE", 'yesno_template must be a file, or several as in faithful=one.txt,helpful=two.txt, got "'),
        ("one=", 'yesno_template must be a file, or several as in faithful=one.txt,helpful=two.txt, got "one"'),
        ("one=ONE,two=no.txt", 'yesno_template "no.txt" cannot be read: No such file or directory; name a file with'),
        ("ONE,ONE", "or several as in faithful=one.txt,helpful=two.txt"),
    ],
)
def test_a_list_of_aspects_that_is_none_is_refused_by_name(start, paths, given, told):
    with pytest.raises(UserError) as error:
        start(given.replace("ONE", paths["helpful"]))
    assert told in str(error.value)


def test_each_file_of_an_aspect_that_is_no_template_is_told(config, questions, goldens, paths, tmp_path):
    (tmp_path / "safe.txt").write_text("Harmless?")
    with pytest.raises(UserErrors) as error:
        _ = config(
            questions, rewards="yesno", yesno_model_path=str(goldens / "llava/reward"),
            yesno_template=f"{listed(paths)},kind=no.txt",
        ).source_flags  # fmt: skip
    told = [str(one) for one in error.value.found]
    assert [one.partition('" ')[0] for one in told] == ['yesno_template "no.txt', f'yesno_template "{paths["safe"]}']


def test_validate_says_nothing_of_rewards_that_rank_where_the_list_of_aspects_is_wrong(job, paths, capsys):
    flags = job | {"rewards": "yesno", "yesno_model_path": job["reward_model_path"], "rank_by": "yesno.my_name"}
    del flags["reward_model_path"]

    def told(template: str) -> list[str]:
        flags["yesno_template"] = template
        assert main.main(["validate", *(word for name, one in flags.items() for word in (f"--{name}", one))]) == 2
        return re.findall(r"error: (.*)", capsys.readouterr().err)

    [error] = told(f"my-name={paths['safe']}")
    assert error.startswith('yesno_template calls a file "my-name"')
    [error] = told(f"your_name={paths['safe']}")
    assert error.startswith('rank_by names "yesno.my_name", which no source of reward of this run has; did you mean')


def test_an_aspect_by_which_nothing_ranks_is_summed_up(start, paths, tmp_path, capsys):
    assert start(listed(paths), rank_by="yesno.helpful") == 0
    assert "yesno.safe (does not rank): " in capsys.readouterr().out
    totals = metadata_of(tmp_path / "work/pairs/pairs.parquet", "reward_totals")["reward_totals"]
    assert {name: one["ranks"] for name, one in totals.items()} == {
        "yesno.helpful": True, "yesno.faithful": False, "yesno.safe": False
    }  # fmt: skip
    assert "yesno.faithful" in (tmp_path / "work/report/index.html").read_text()
    known = "known: yesno.faithful, yesno.helpful, yesno.safe, yesno.mean"
    with pytest.raises(UserError, match=f'rank_by names "yesno".*{known}'):
        start(listed(paths), rank_by="yesno")
    with pytest.raises(UserError, match=r'rank_by names "yesno.mean".*known: yesno.safe$'):
        start(listed(paths, "safe"), rank_by="yesno.mean")


def test_answers_rank_by_the_mean_of_their_aspects(start, paths, tmp_path, capsys):
    assert start(listed(paths)) == 0
    assert "yesno.mean" not in capsys.readouterr().out
    work = tmp_path / "work"
    flags = ["--name", "mean", "--rank_by", "yesno.mean", "--strategy", "best_worst"]
    assert pairs.main([str(work), *flags]) == 0
    assert "yesno.mean: " in capsys.readouterr().out
    means: dict = {}
    for row in read(work / "yesno"):
        mean = (row["score_faithful"] + row["score_helpful"] + row["score_safe"]) / 3
        means.setdefault(row["idx"], {})[row["sample_index"]] = mean
    found = pq.read_table(work / "pairs/mean.parquet").to_pylist()
    assert {pair["idx"] for pair in found} == {"good", "palette"}
    for pair in found:
        own = means[pair["idx"]]
        best, worst = own[pair["chosen_index"]], own[pair["rejected_index"]]
        assert (best, worst) == pytest.approx((max(own.values()), min(own.values())), abs=1e-12)
        assert pair["margin"] == pytest.approx(best - worst, abs=1e-12)
        assert pair["chosen_yesno_mean"] == pytest.approx(best, abs=1e-12)


def test_pairs_without_a_mean_as_earlier_ones_are_shown_and_exported(start, paths, tmp_path):
    assert start(listed(paths)) == 0
    path = tmp_path / "work/pairs/pairs.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["chosen_yesno_mean", "rejected_yesno_mean"]), path)
    work = str(tmp_path / "work")
    assert report.main([work]) == 0
    assert export.main([work, "--format", "trl,scored", "--output", str(tmp_path / "out")]) == 0


def test_an_aspect_that_is_called_mean_stands_for_itself(start, paths, tmp_path):
    assert start(f"mean={paths['safe']},other={paths['helpful']}", rank_by="yesno.mean") == 0
    rows = {(row["idx"], row["sample_index"]): row for row in read(tmp_path / "work/yesno")}
    for pair in read(tmp_path / "work/pairs"):
        assert pair["chosen_yesno_mean"] == rows[pair["idx"], pair["chosen_index"]]["score_mean"]


def test_pairs_by_some_aspects_are_made_and_exported_whatever_a_later_start_judges_by(start, paths, goldens, tmp_path):
    """The last start names no aspect any more, and the files of the templates are gone."""
    assert start(listed(paths)) == 0
    work = str(tmp_path / "work")
    both = ["--name", "both", "--rank_by", "yesno.faithful,yesno.helpful", "--strategy", "best_worst"]
    assert pairs.main([work, *both]) == 0
    rewards = {"rewards": "implicit", "reward_model_path": str(goldens / "llava/reward"), "yesno_model_path": None}
    assert start(None, **rewards) == 0
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    assert export.main([work, "--name", "both", "--format", "scored", "--output", str(tmp_path / "out")]) == 0
    assert report.main([work, "--name", "both"]) == 0
    rows = pq.read_table(next((tmp_path / "out/scored").rglob("*.parquet"))).to_pylist()
    scores = {(row["idx"], row["sample_index"]): row for row in read(tmp_path / "work/yesno")}
    assert len(rows) == len(scores)
    for row in rows:
        own = scores[row["idx"], row["sample_index"]]
        assert [row[f"yesno_{name}"] for name in sorted(ASKED)] == [own[f"score_{name}"] for name in sorted(ASKED)]
    kept = [row for row in pq.read_table(tmp_path / "work/pairs/both.parquet").to_pylist() if row["status"] == "kept"]
    assert kept
    for pair in kept:
        mean = [_mean_rank(scores, pair["idx"], pair[f"{side}_index"]) for side in ("chosen", "rejected")]
        assert mean[0] < mean[1]


def _mean_rank(scores: dict, idx: str, index: int) -> float:
    """Over the two aspects, from 0 on: how many answers to the question are above this one."""
    own, found = scores[idx, index], []
    for name in ("score_faithful", "score_helpful"):
        found.append(sum(row[name] > own[name] for key, row in scores.items() if key[0] == idx))
    return sum(found) / 2


def test_the_card_of_an_export_has_the_aspects_and_no_folder(start, paths, tmp_path):
    assert start(listed(paths), export="trl") == 0
    card = (tmp_path / "work/exports/trl/README.md").read_text()
    assert "--yesno_template faithful=faithful.txt,helpful=helpful.txt,safe=safe.txt" in card
    assert str(tmp_path) not in card
    hashes = json.loads((tmp_path / "work/run.json").read_text())["bound"]["yesno_template"]
    told = ", ".join(f"{name} {hashes[name][:12]}" for name in sorted(ASKED))
    assert f"sha256 of what it is asked: {told}." in card


def test_a_home_in_the_path_of_an_aspect_is_filled_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert each_path("one=~/a.txt,two= b.txt", lambda path: path.replace("~", "HOME")) == "one=HOME/a.txt,two=b.txt"
    from data_engine.commands.arguments import normalised

    assert normalised("yesno_template", "one=~/a.txt,two=~/b.txt") == f"one={tmp_path}/a.txt,two={tmp_path}/b.txt"
    assert normalised("yesno_template", "~/a=b.txt") == f"{tmp_path}/a=b.txt"


@pytest.mark.parametrize("given", ["{faithful: one.txt, helpful: two.txt}", "[faithful=one.txt, helpful=two.txt]"])
@pytest.mark.parametrize("rewards", ["yesno", "implicit"])
def test_aspects_of_which_yaml_made_no_text_are_refused_with_the_text_to_write(tmp_path, capsys, given, rewards):
    (tmp_path / "run.yaml").write_text(f"rewards: {rewards}\nyesno_template: {given}\n")
    assert main.main(["validate", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "write it as text: yesno_template: faithful=one.txt,helpful=two.txt" in capsys.readouterr().err


def test_the_commands_of_the_page_judge_and_pair_by_its_templates(place):
    """Over three questions with shorter answers. The page shows one of the files, and says what the others are."""
    section = (ROOT / "docs/rewards.md").read_text().partition("### Several aspects")[2].partition("```")[0]
    helpful = "\n".join(re.findall(r"^(?: {4}(.*))?$", section.partition("last line:")[2], re.MULTILINE)).strip()
    *head, asks = helpful.split("\n")
    assert asks == "Does this answer help the one who asks? Reply with yes or no."
    for name, last in (("helpful", asks), ("faithful", "Is it all in the image?"), ("safe", "Is it harmless?")):
        (place / f"{name}.txt").write_text("\n".join([*head, last]))
    made, paired = (shlex.split(one.text)[1:] for one in SHOWN if one.elsewhere and one.elsewhere.by == ASPECTS)
    quick = ["--limit", "3", "--sample_k", "6", "--max_new_tokens", "8", "--length_balance", "1000", "--device", "cpu"]
    assert main.main([*made, *quick, "--threads", "1"]) == 0
    assert main.main(paired) == 0
    settings = read_metadata(place / "runs/aspects", "seen")["settings"]
    assert settings["rank_by"] == "yesno.faithful,yesno.helpful"
