"""The plan that `validate` tells, against figures by hand and against what a finished run has written."""

import json
import re
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_files import noise, png, read
from validated import words

from data_engine.commands import main
from data_engine.config import RunConfig
from data_engine.errors import BadRow
from data_engine.models import load_model
from data_engine.planning import heavy
from data_engine.planning.found import FirstRows, Found
from data_engine.planning.measure import Measured, extrapolate, line, processor_seconds, shared
from data_engine.planning.plan import RunPlan, empty_shards, idle_ranks, plan_of
from data_engine.planning.showing import measured_lines, plan_lines
from data_engine.planning.sizes import bytes_by_stage
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import open_questions
from data_engine.questions.given_answers import check_answers
from data_engine.schemas import IMAGE

NUM = 20
PICTURE = png(noise((90, 60), 80))


@pytest.fixture
def job(goldens, tmp_path) -> dict[str, str]:
    """20 questions in units of 8: three units, of 8, 8 and 4."""
    table = pa.table({
        "idx": list(range(NUM)), "question": ["What is it?"] * NUM,
        "image": pa.array([{"bytes": PICTURE, "path": None}] * NUM, IMAGE),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "q.parquet")
    flags = {f"{role}_model_path": str(goldens / "llava" / role) for role in ("instruct", "reward")}
    return flags | {
        "dataset_path": str(tmp_path / "q.parquet"), "work_dir": str(tmp_path / "work"), "device": "cpu",
        "unit_size": "8", "sample_k": "2", "rank": "1", "max_new_tokens": "4", "threads": "1",
    }  # fmt: skip


def told(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert main.main(["validate", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_units_tokens_and_bytes_are_those_by_hand(job, goldens, capsys):
    plan = told(capsys, *words(job, num_shards="2", shard_index="1"))["plan"]
    sampled, logps, *_ = plan["stages"]
    # Of three units, shard 1 of 2 has the second: 8 questions with 2 answers of at most 4 tokens.
    assert (sampled["units"], sampled["published"], sampled["questions"], sampled["answer_tokens"]) == (1, 0, 8, 64)
    # 16 answers: 64 bytes, and 4 tokens of 6 bytes of text and 4 of the id; 8192 for the file.
    assert sampled["bytes"] == 16 * (64 + 4 * 10) + 8192
    assert logps["bytes"] == 16 * (64 + 4 * 4) + 8192
    # 1 pair a question: rank 1. Two texts of 4 tokens, 256 bytes of numbers, the question and the picture.
    by_name = {stage["name"]: stage["bytes"] for stage in plan["stages"]}
    texts = 2 * 4 * 6 + 256
    assert by_name["pairs"] == NUM * texts
    assert by_name["dataset"] == NUM * (texts + len("What is it?") + len(PICTURE))
    # In the report each of the 20 pairs has 600 bytes, its tokens 18 each, and a thumbnail of 22 kB.
    assert by_name["report"] == 500_000 + NUM * (600 + 2 * 4 * (6 + 12)) + NUM * 22_000
    assert plan["total_bytes"] == sum(by_name.values())
    model = load_model(None, str(goldens / "llava/instruct"), device="cpu")
    prompt = model.prompt(Conversation.of("What is it?", 1), [noise((90, 60), 80)], False, 64)
    assert sampled["prompt_tokens"] == 8 * prompt.length


def test_a_question_of_several_pictures_has_the_bytes_of_all(job, tmp_path, capsys):
    cell = {"bytes": PICTURE, "path": None}
    images = pa.array([[cell], [cell] * 2], pa.list_(IMAGE))
    pq.write_table(pa.table({"idx": [0, 1], "question": ["What is it?"] * 2, "images": images}), tmp_path / "q.parquet")
    stages = {stage["name"]: stage["bytes"] for stage in told(capsys, *words(job))["plan"]["stages"]}
    assert stages["dataset"] == 2 * (2 * 4 * 6 + 256 + len("What is it?") + 1.5 * len(PICTURE))


def test_questions_that_the_model_does_not_take_do_not_shorten_the_mean_prompt(job, capsys, monkeypatch):
    def count(question, images):
        if question.idx % 2:
            raise BadRow("two pictures")
        return 100

    monkeypatch.setattr(heavy._Look, "_prompt_counter", lambda self, role: count)
    stages = {stage["name"]: stage for stage in told(capsys, *words(job))["plan"]["stages"]}
    assert stages["sampled_answer"]["prompt_tokens"] == NUM * 100


def test_pairs_of_right_and_wrong_answers_stay_below_their_bound(job):
    """Of six answers, three right ones with three wrong ones make the most: nine candidates."""
    plan = plan_of(found_of(job, rewards="rule", rule="contains", strategy="right_wrong", right=1.0, sample_k=6), 1)
    sizes = {stage.name: stage.bytes for stage in plan.stages}
    assert sizes["pairs"] >= NUM * 9 * (2 * 4 * 6 + 256)
    # A rule reads texts, and no model tokens.
    [rule] = [stage for stage in plan.stages if stage.name == "rule"]
    assert (rule.questions, rule.prompt_tokens, rule.answer_tokens) == (NUM, None, None)
    # The report shows the picture of a question once, however many of its pairs it shows.
    assert sizes["report"] == 500_000 + NUM * 6**2 * (600 + 2 * 4 * (6 + 12)) + NUM * 22_000


def test_given_answers_count_as_many_and_as_long_as_they_are(job, tmp_path):
    """Three a question, whatever sample_k and max_new_tokens say: two texts of 6 bytes each, and 7 ids without text."""
    with open(tmp_path / "given.jsonl", "w") as file:
        for idx in range(NUM):
            for answer in ({"answer": "Ein Ö"}, {"answer": "A cat."}):
                file.write(json.dumps({"idx": idx, **answer}) + "\n")
            file.write(json.dumps({"idx": idx, "token_ids": [1, 2, 3, 4, 5, 6, 7]}) + "\n")
    found = found_of(job, answers=str(tmp_path / "given.jsonl"))
    found.given = check_answers(found.config.answers, found.questions)
    plan = plan_of(found, 1)
    sampled, logps, *_ = plan.stages
    # Texts of 6 bytes, each with an end token, and the ids.
    assert logps.answer_tokens == NUM * (7 + 7 + 7)
    assert logps.bytes == NUM * (3 * 64 + (7 + 7 + 7) * 4) + 3 * 8192
    # Ids alone have no text yet: six bytes for each token of the file.
    text = NUM * (6 + 6) + NUM * (7 + 7 + 7) * 6
    assert sampled.bytes == NUM * (3 * 64 + (7 + 7 + 7) * 4) + text + 3 * 8192
    # Nine pairs of three answers, of whose texts each has a third of a question's.
    found.config = replace(found.config, rewards="rule", rule="contains", strategy="right_wrong", right=1.0)
    assert dict(bytes_by_stage(found))["pairs"] == 9 * (2 * text // 3 + NUM * 256)


def found_of(job, **changed) -> Found:
    """As the checks find the flags of a job, with others in their place."""
    config = RunConfig(**{name: value if value.startswith("/") or name == "device" else int(value)
                          for name, value in job.items()} | changed)  # fmt: skip
    return Found(config, questions=open_questions(config), first_rows=FirstRows(1, ()))


def test_a_critics_verdicts_are_as_long_as_its_template_lets_them_be(job, tmp_path):
    """Whatever the answers may be: 4 tokens here."""
    template = tmp_path / "template.yaml"
    template.write_text("prompt: '{question} {answer}'\nnumber: '(1)'\nmax_new_tokens: 100\n")
    for path, most in ((str(template), 100), (None, 512)):
        plan = plan_of(found_of(job, rewards="critic", critic_model_path="/judge", critic_template=path), 1)
        [critic] = [stage for stage in plan.stages if stage.name == "critic"]
        assert critic.bytes == NUM * 2 * (64 + most * 6) + 3 * 8192


def test_a_report_has_40_mb_at_most(job):
    """Its 20 pairs would have 72."""
    plan = plan_of(found_of(job, max_new_tokens=100_000), 1)
    assert plan.stages[-1].name == "report"
    assert plan.stages[-1].bytes == 40_000_000


def test_a_finished_run_stays_below_the_bounds_and_its_units_are_subtracted(job, tmp_path, capsys):
    before = told(capsys, *words(job))["plan"]
    assert main.main(["run", *words(job)]) in (0, 4)
    after = told(capsys, *words(job))["plan"]
    work = tmp_path / "work"
    for then, now in zip(before["stages"][:3], after["stages"][:3], strict=True):
        assert (then["units"], then["published"]) == (3, 0)
        assert (now["units"], now["published"], now["questions"], now["bytes"]) == (0, 3, 0, 0)
        written = sum(path.stat().st_size for path in (work / then["name"]).glob("*.parquet"))
        # Three small files are mostly footers, which the bound of 8192 bytes a file is for.
        assert then["bytes"] / 4 < written <= then["bytes"]
    report = {stage["name"]: stage["bytes"] for stage in before["stages"]}["report"]
    assert (work / "report/index.html").stat().st_size <= report
    tokens = sum(len(row["token_ids"]) for row in read(work / "sampled_answer"))
    assert NUM * 2 <= tokens <= before["stages"][0]["answer_tokens"] == NUM * 2 * 4


def test_idle_ranks_are_told_to_lower_a_size_only_while_no_unit_has_it(job, tmp_path):
    config = RunConfig(**{name: value if value.startswith("/") or name == "device" else int(value)
                          for name, value in job.items()})  # fmt: skip
    found = Found(config, questions=open_questions(config))
    assert idle_ranks(found, 3) is None
    assert idle_ranks(found, 5) == "5 ranks have 3 units to share: 2 will be idle; lower --unit_size"
    (tmp_path / "work/sampled_answer").mkdir(parents=True)
    (tmp_path / "work/sampled_answer/unit-00000.parquet").touch()
    assert idle_ranks(found, 5) == "5 ranks have 3 units to share: 2 will be idle"


def test_more_shards_than_units_are_told_and_whether_this_one_has_none(job, tmp_path):
    """3 units: of 5 shards, those of numbers 3 and 4 have none."""
    config = RunConfig(**{name: value if value.startswith("/") or name == "device" else int(value)
                          for name, value in job.items()})  # fmt: skip
    found = Found(config, questions=open_questions(config))
    assert [empty_shards(found, 3, shard) for shard in range(3)] == [None] * 3
    told, mend = "5 shards have 3 units to share: shards 3 to 4 have nothing to compute", "; use fewer shards"
    assert empty_shards(found, 5, 2) == empty_shards(found, 5) == f"{told}{mend}, or lower --unit_size"
    assert empty_shards(found, 5, 4) == f"{told} (this is shard 4){mend}, or lower --unit_size"
    assert "4 shards have 3 units to share: shard 3 has nothing to compute; use" in empty_shards(found, 4)
    # Pairs are made of all units, whatever the shard.
    found.config = replace(config, continue_from_stage=2)
    assert empty_shards(found, 5, 4) is None
    found.config = config
    (tmp_path / "work/sampled_answer").mkdir(parents=True)
    (tmp_path / "work/sampled_answer/unit-00000.parquet").touch()
    assert empty_shards(found, 5, 4) == f"{told} (this is shard 4){mend}"


def test_a_run_of_a_shard_without_units_warns_of_it(job, capsys):
    assert main.main(["run", *words(job, num_shards="5", shard_index="4", stop_after_stage="1")]) == 0
    assert "shards 3 to 4 have nothing to compute (this is shard 4)" in capsys.readouterr().err


def test_ranks_take_units_in_turn_and_load_each_model_once():
    work = [("sample", "a", [1.0] * 5), ("score", "b", [1.0] * 2)]
    # Both load for 2 s, then one computes 3 units, until 5, the other 2, until 4. Of the next model, which takes 1 s
    # to load, that one computes a unit from 4 to 6, the first from 5 to 7.
    assert shared(work, {"a": 2.0, "b": 1.0}, 2) == [5.0, 7.0]
    # One after another: 2 + 5, then 1 + 2.
    assert shared(work, {"a": 2.0, "b": 1.0}, 1) == [7.0, 10.0]
    # A stage ends with its last unit, though a later one is done before.
    assert shared([("sample", "", [5.0, 1.0])], {}, 2) == [5.0]
    # A stage without a model, such as a rule, leaves the one that is loaded where it is.
    assert shared([("sample", "a", [1.0]), ("rule", "", [1.0]), ("score", "a", [1.0])], {"a": 5.0}, 1) == [
        6.0,
        7.0,
        8.0,
    ]


def test_parts_of_a_unit_tell_a_whole_one_by_the_line_through_them():
    assert line([(2, 5.0), (4, 9.0)]) == pytest.approx((2.0, 1.0))
    # More for less is noise: the larger one counts, without a constant.
    assert line([(2, 5.0), (4, 4.0)]) == (1.0, 0.0)
    # So is less than nothing for no question.
    assert line([(2, 1.0), (4, 8.0)]) == (2.0, 0.0)
    measured = Measured(0, 0, {}, 8, {"s": [(2, 5.0), (4, 9.0)]}, {}, {}, {}, 0, 0, 0, 0)
    assert measured.unit_s("s", 8) == pytest.approx(17.0)
    # Whole units are taken as they are.
    whole = Measured(0, 0, {}, 4, {"s": [(2, 5.0), (4, 9.0), (4, 11.0)]}, {}, {}, {}, 0, 0, 0, 0)
    assert whole.unit_s("s", 4) == 10.0
    assert whole.unit_s("s", 2) == 5.0
    # What was extrapolated is less certain than whole units that took the same.
    alike = replace(whole, units={"s": [(4, 9.0), (4, 9.0)]})
    assert measured.spread("s") > alike.spread("s") > 0


def test_hours_count_all_ranks_until_the_job_ends_and_one_rank_has_one_column(job):
    """Units of 8, 8 and 4 questions at 60 s a question; two ranks share them, and rank 0 pairs for half an hour."""
    config = RunConfig(**{name: value if value.startswith("/") or name == "device" else int(value)
                          for name, value in job.items()})  # fmt: skip
    found = Found(config, questions=open_questions(config), heavy={"device": "cuda"})
    names = ("sampled_answer", "instruct_logps", "reward_logps")
    measured = Measured(
        0.0, 180.0, {}, 8, {name: [(8, 480.0)] * 2 for name in names}, dict.fromkeys(names, ""),
        dict.fromkeys(names) | {"sampled_answer": 51.5}, dict.fromkeys(names, 0.0), 1800.0, NUM, 0.0, 0.0,
    )  # fmt: skip
    two, one = (extrapolate(found, measured, ranks, 0.0) for ranks in (2, 1))
    # The first rank samples 8 and 4 questions, until 720 s. The other one has begun to score then: 8 and 4, until
    # 1200 s, as the first one scores 8. Of the third stage each has 8, and one of them 4 more, until 1920 s.
    assert [line["device_seconds"] for line in two["stages"]] == [2 * 180, 2 * 720, 2 * 480, 2 * 720, 2 * 1800]
    assert (two["device_seconds"], one["device_seconds"]) == (2 * (180 + 1920 + 1800), 180 + 3600 + 1800)
    # Units that took the same may differ by a tenth all the same.
    assert two["seconds_range"] == pytest.approx([0.9 * 3900, 1.1 * 3900])
    assert [cells(line) for line in measured_lines(two)[:-1]] == [
        ["measured", "2 ranks", "1 rank", "GPU-hours", "tokens an answer"],
        ["start", "3 min", "3 min", "0.100"],
        ["sampled_answer", "12 min", "20 min", "0.400", "51.5"],
        ["instruct_logps", "8 min", "20 min", "0.267"],
        ["reward_logps", "12 min", "20 min", "0.400"],
        ["pairs and report", "30 min", "30 min", "1.000"],
        ["in all", "1 h 5 min", "1 h 33 min", "2.167"],
    ]
    heading, *_, whole, _ = measured_lines(one)
    assert cells(heading) == ["measured", "1 rank", "GPU-hours", "tokens an answer"]
    assert cells(whole) == ["in all", "1 h 33 min", "1.550"]


def test_what_each_question_and_each_rank_adds_and_how_far_units_differ_are_in_the_figures(job, monkeypatch):
    """12 questions of 20 are left: a unit of 8 took 480 s once and 560 s once."""
    config = RunConfig(**{name: value if value.startswith("/") or name == "device" else int(value)
                          for name, value in job.items()})  # fmt: skip
    found = Found(replace(config, stop_after_stage=2), questions=open_questions(config), heavy={"device": "cpu"})
    names = ("sampled_answer", "instruct_logps", "reward_logps")
    measured = Measured(
        10.0, 20.0, {"instruct": 5.0, "reward": 15.0}, 8, {name: [(8, 480.0), (8, 560.0)] for name in names},
        dict.fromkeys(names, ""), dict.fromkeys(names), dict.fromkeys(names, 0.0), 100.0, 12, 2.5, 30.0,
    )  # fmt: skip
    told = extrapolate(found, measured, 1, 6.0)
    # 1.4 times 10 s of libraries, 20 s of planning and 6 s of checks; 100 s for 12 questions and 8 more at 2.5 s.
    assert [line["seconds"] for line in told["stages"]] == pytest.approx([40.0, *[20 * 65.0] * 3, 120.0])
    # Two standard errors of 60 and 70 s a question are 10 s of 65; of start and end, a tenth is not known.
    off = 3900 * 10 / 65 + 16
    assert told["seconds_range"] == pytest.approx([4060 - off, 4060 + off])
    # Each rank imports, plans, loads both models and decodes: 80 s. Of the libraries, launcher and check take 9.5 s.
    monkeypatch.setattr(time, "process_time", lambda: 7.0)
    for ranks in (1, 3):
        assert processor_seconds(found, measured, ranks) == pytest.approx(3900 + ranks * 80 + 7 + 9.5 + 120)


def test_the_plan_tells_how_the_models_lie_in_memory():
    told = "zero3 auto: each rank holds a whole model (1.0 GB of weights ...)"
    assert plan_lines(RunPlan([], 20, 8, 1, 0, 10**9, {"told": told}))[-2:] == [
        "units of 8 questions; 1.0 GB are free where work_dir is", told
    ]  # fmt: skip


def cells(line: str) -> list[str]:
    return re.split(r" {2,}", line)


def test_a_disk_that_is_or_may_be_too_small_is_told_with_what_is_missing(job, tmp_path, capsys, monkeypatch):
    def answer(free: int) -> dict:
        capsys.readouterr()
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
        main.main(["validate", "--json", *words(job)])
        return json.loads(capsys.readouterr().out)

    # Three stages of three units, a block of 4096 bytes each.
    [problem] = answer(6_000)["problems"]
    assert problem["message"].endswith(
        "the units of this run take 36.9 kB at the very least, 6.0 kB are free on the file system of "
        f'"{tmp_path}": 30.9 kB are missing; make room, or choose another work_dir'
    )
    most = sum(stage["bytes"] for stage in answer(10**12)["plan"]["stages"])
    found = answer(most - 1000)
    assert found["problems"] == []
    [warning] = [text for text in found["warnings"] if "may be written" in text]
    assert warning.endswith(f'are free on the file system of "{tmp_path}": up to 1.0 kB are missing')
    assert not [text for text in answer(most)["warnings"] if "may be written" in text]
