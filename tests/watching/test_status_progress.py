"""What is read of a run, look after look: its ranks and what they do, the pace, and only what is new."""

import json
import os
from dataclasses import replace

import pytest
from watched_run import FAR, GONE, ME, NOW, STAGES, Looks, busy_run, claim, finish, log, make_run, started, unit_line

from data_engine.store import units
from data_engine.store.units import published
from data_engine.watching import log_lines
from data_engine.watching.as_json import as_json


def states(progress) -> dict[int, str]:
    return {rank.rank: rank.state for rank in progress.ranks}


# Ranks.


def test_a_rank_is_told_by_its_claim_its_log_and_its_process(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    processes = {0: ME, 1: GONE, 2: FAR, 3: FAR, 4: ME, 5: FAR, 6: ME, 7: ME, 8: ME, 9: ME}
    for rank, process in processes.items():
        log(tmp_path, process, rank, started(NOW - 500, process, rank))
    claim(tmp_path, ME, 0, "sampled_answer", 12, NOW - 2)
    claim(tmp_path, FAR, 2, "sampled_answer", 13, NOW - 3)
    claim(tmp_path, FAR, 3, "sampled_answer", 14, NOW - 61)
    log(tmp_path, ME, 4, unit_line(NOW - 100))
    for rank, code in ((6, 75), (7, 1), (8, 0), (9, 4)):
        log(tmp_path, ME, rank, {"time": NOW - 90, "rank": rank, "exit_code": code})
    found = Looks(tmp_path).at()
    assert states(found) == {
        0: "working", 1: "dead", 2: "working", 3: "stalled", 4: "waiting", 5: "silent", 6: "stopped", 7: "failed",
        8: "finished", 9: "finished",
    }  # fmt: skip
    # Those that need a look come first.
    assert [rank.rank for rank in found.ranks][:4] == [7, 1, 3, 5]
    working = {rank.rank: rank for rank in found.ranks}[2]
    assert (working.host, working.stage, working.units, working.age_s) == ("node7", "sampled_answer", (13,), 3.0)


def test_a_rank_of_a_start_with_another_source_of_reward_is_told_with_its_stage(tmp_path):
    """run.json has the sources of the start that opened it last, here those of a run without a judge."""
    make_run(tmp_path, 40, dict.fromkeys(STAGES, 40))
    log(tmp_path, ME, 0, started(NOW - 500, ME, 0))
    touched = claim(tmp_path, ME, 0, "yesno", 3, NOW - 2)
    claim(tmp_path, ME, 0, "pairing", 0, NOW - 2)
    looks = Looks(tmp_path)
    found = looks.at()
    assert [(stage.name, stage.done) for stage in found.stages] == [*((name, 40) for name in STAGES), ("yesno", 0)]
    assert [(rank.state, rank.stage, rank.units) for rank in found.ranks] == [("working", "yesno", (3,))]
    assert found.pairs == "waiting"
    touched.unlink()
    assert [stage.name for stage in looks.at().stages] == list(STAGES)


def test_a_rank_of_which_a_touch_was_seen_lives_although_its_clock_is_far_behind(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    log(tmp_path, FAR, 0, started(NOW - 9000, FAR, 0))
    path = claim(tmp_path, FAR, 0, "sampled_answer", 12, NOW - 3600)
    looks = Looks(tmp_path)
    assert states(looks.at(0)) == {0: "stalled"}
    os.utime(path, (NOW - 3595, NOW - 3595))
    assert states(looks.at(5)) == {0: "working"}
    # Its last touch was seen at second 5.
    assert states(looks.at(60)) == {0: "working"}
    assert states(looks.at(66)) == {0: "stalled"}


def test_a_clock_that_is_set_does_not_change_a_rank(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    claim(tmp_path, FAR, 0, "sampled_answer", 12, NOW - 2)
    looks = Looks(tmp_path)
    assert states(looks.at(0)) == {0: "working"}
    assert states(looks.at(1, clock=NOW + 7200)) == {0: "working"}


def test_a_sign_of_a_clock_that_runs_ahead_is_of_this_moment(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    claim(tmp_path, FAR, 0, "sampled_answer", 12, NOW + 30)
    assert [rank.age_s for rank in Looks(tmp_path).at().ranks] == [0.0]


def test_what_is_left_of_an_earlier_start_is_not_shown(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    old, new = replace(GONE, pid=GONE.pid + 1), ME
    for rank in (0, 1):
        log(tmp_path, old, rank, started(NOW - 900, old, rank), unit_line(NOW - 800))
    log(tmp_path, new, 0, started(NOW - 100, new, 0), unit_line(NOW - 1))
    assert states(Looks(tmp_path).at()) == {0: "waiting"}


def test_a_rank_that_failed_before_the_first_line_of_another_is_shown(tmp_path):
    """Both begin at NOW - 110, after an earlier start; the other one takes 10 s to import its libraries."""
    make_run(tmp_path, 40, {"sampled_answer": 12})
    for rank, process in ((0, replace(GONE, pid=GONE.pid + 1)), (1, replace(GONE, pid=GONE.pid + 2))):
        log(tmp_path, process, rank, started(NOW - 900, process, rank, age_s=10), {"time": NOW - 300, "exit_code": 75})
    log(tmp_path, GONE, 0, started(NOW - 106, GONE, 0, age_s=4), {"time": NOW - 105, "exit_code": 1})
    log(tmp_path, ME, 1, started(NOW - 100, ME, 1, age_s=10), unit_line(NOW - 70))
    found = Looks(tmp_path).at()
    assert [(rank.rank, rank.pid, rank.state) for rank in found.ranks] == [
        (0, GONE.pid, "failed"),
        (1, ME.pid, "waiting"),
    ]
    # The next start has one rank.
    again = replace(ME, pid=ME.pid + 1)
    log(tmp_path, ME, 1, {"time": NOW - 60, "exit_code": 75})
    log(tmp_path, again, 0, started(NOW - 40, again, 0, age_s=10), {"time": NOW - 30, "exit_code": 0})
    assert [(rank.rank, rank.state) for rank in Looks(tmp_path).at().ranks] == [(0, "finished")]


def test_the_end_of_one_shard_is_shown_while_another_goes_on(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    log(tmp_path, GONE, 0, started(NOW - 900, GONE, 0, (0, 2)), {"time": NOW - 800, "exit_code": 1})
    log(tmp_path, ME, 0, started(NOW - 100, ME, 0, (1, 2)), unit_line(NOW - 1))
    assert [(rank.shard, rank.state) for rank in Looks(tmp_path).at().ranks] == [
        ((0, 2), "failed"),
        ((1, 2), "waiting"),
    ]


def test_a_start_that_is_divided_otherwise_takes_the_place_of_all_shards_before_it(tmp_path):
    make_run(tmp_path, 40, {"sampled_answer": 12})
    for shard, process in ((0, GONE), (1, replace(GONE, pid=GONE.pid + 1))):
        log(tmp_path, process, 0, started(NOW - 900, process, 0, (shard, 2)), {"time": NOW - 800, "exit_code": 1})
    log(tmp_path, ME, 0, started(NOW - 100, ME, 0, (0, 3)), unit_line(NOW - 1))
    assert [(rank.shard, rank.state) for rank in Looks(tmp_path).at().ranks] == [((0, 3), "waiting")]


def test_rank_0_pairs_once_all_units_are_there(tmp_path):
    make_run(tmp_path, 1, dict.fromkeys(STAGES, 1))
    log(tmp_path, ME, 0, started(NOW - 100, ME, 0), unit_line(NOW - 50))
    log(tmp_path, FAR, 1, started(NOW - 100, FAR, 1), unit_line(NOW - 50), {"time": NOW - 40, "exit_code": 0})
    found = Looks(tmp_path).at()
    assert states(found) == {0: "pairing", 1: "finished"}
    assert (found.pairs, found.is_done) == ("ready", False)


def test_pairs_of_an_earlier_start_are_not_those_that_another_one_is_about_to_make(tmp_path):
    make_run(tmp_path, 1, {})
    finish(tmp_path)
    log(tmp_path, GONE, 0, started(NOW - 900, GONE, 0), unit_line(NOW - 850), {"time": NOW - 800, "exit_code": 0})
    looks = Looks(tmp_path)
    assert (looks.at().pairs, looks.at().is_done) == ("written", True)
    # It reads the dataset, and has nothing to compute; then it pairs.
    log(tmp_path, ME, 0, started(NOW - 5, ME, 0))
    found = looks.at()
    assert (states(found), found.pairs, found.is_done) == ({0: "starting"}, "ready", False)
    pairing = claim(tmp_path, ME, 0, "pairing", 0, NOW - 2)
    found = looks.at()
    assert (states(found), found.pairs, found.is_done) == ({0: "pairing"}, "ready", False)
    assert states(looks.at(70)) == {0: "stalled"}
    pairing.unlink()
    log(tmp_path, ME, 0, {"time": NOW, "exit_code": 0})
    found = looks.at()
    assert (states(found), found.pairs, found.is_done) == ({0: "finished"}, "written", True)


# Pace.


def test_a_rank_that_died_counts_no_longer_for_the_pace(tmp_path):
    make_run(tmp_path, 100, {"sampled_answer": 4})
    log(tmp_path, GONE, 0, started(NOW - 50, GONE, 0), unit_line(NOW - 15), unit_line(NOW - 5))
    log(tmp_path, ME, 1, started(NOW - 50, ME, 1), unit_line(NOW - 12), unit_line(NOW - 2))
    stage = Looks(tmp_path).at().stages[0]
    # 96 units of 10 s on one rank.
    assert (stage.num_ranks, stage.pace.seconds_left(stage.left)) == (1, 960.0)


def test_a_rank_within_a_long_unit_keeps_its_stage_from_standing_still(tmp_path):
    make_run(tmp_path, 100, {"sampled_answer": 4})
    log(tmp_path, ME, 0, started(NOW - 900, ME, 0), unit_line(NOW - 600))
    assert Looks(tmp_path).at().stages[0].num_ranks == 0
    claim(tmp_path, ME, 0, "sampled_answer", 4, NOW - 1)
    assert Looks(tmp_path).at().stages[0].num_ranks == 1


def test_the_whole_time_left_shares_what_is_left_among_all_ranks_at_work(tmp_path):
    make_run(tmp_path, 10, {"sampled_answer": 10, "instruct_logps": 4})
    log(tmp_path, ME, 0, started(NOW - 90, ME, 0), unit_line(NOW - 3, "instruct_logps", 2.0))
    log(tmp_path, FAR, 1, started(NOW - 90, FAR, 1), unit_line(NOW - 3, "instruct_logps", 2.0))
    looks = Looks(tmp_path)
    # 6 units of 2 s on two ranks, and 10 of a stage of which nothing is known.
    assert (looks.at().seconds_left, looks.at().seconds_left_at_least) == (None, 6.0)
    log(tmp_path, ME, 0, unit_line(NOW - 1, "reward_logps", 1.0))
    assert looks.at().seconds_left == 11.0


def test_ranks_that_worked_on_a_stage_which_is_done_do_not_count_for_the_next(tmp_path):
    make_run(tmp_path, 10, {"sampled_answer": 9})
    for rank, process in enumerate((ME, FAR)):
        log(tmp_path, process, rank, started(NOW - 90, process, rank), unit_line(NOW - 3, seconds=2.0))
    looks = Looks(tmp_path)
    assert looks.at().num_working == 2
    (tmp_path / "sampled_answer/unit-00009.parquet").touch()
    for stage in STAGES[1:]:
        log(tmp_path, ME, 0, unit_line(NOW - 1, stage, 1.0))
    # 10 units of 1 s of each of the other two stages.
    found = looks.at(1)
    assert (found.num_working, found.seconds_left) == (1, 20.0)
    done = json.loads(as_json(found))["stages"][0]
    assert (done["ranks"], done["answers_per_s"], done["seconds_left"]) == (0, None, 0.0)


def test_warnings_of_all_ranks_are_in_the_order_of_their_time(tmp_path):
    make_run(tmp_path, 10, {"sampled_answer": 9})
    for rank, times in ((0, (NOW - 9, NOW - 3)), (1, (NOW - 6,))):
        for time in times:
            log(tmp_path, ME, rank, {"time": time, "rank": rank, "level": "warning", "message": f"at {NOW - time:g}"})
    assert [one.message for one in Looks(tmp_path).at().warnings] == ["at 9", "at 6", "at 3"]


# Looking again.


def test_later_looks_read_on_and_find_what_a_first_look_finds(tmp_path):
    make_run(tmp_path, 1000, {"sampled_answer": 1})
    looks, path = Looks(tmp_path), log(tmp_path, ME, 0, started(NOW - 900, ME, 0))
    for second in range(0, 420, 7):
        for unit in range(7):
            log(tmp_path, ME, 0, unit_line(NOW + second + unit, seconds=1.0 + unit))
        (tmp_path / f"sampled_answer/unit-{second + 1:05d}.parquet").touch()
        with open(path, "a") as file:
            # Half a line is read once it is whole.
            file.write('{"time": 1700000000.0, "level": "warn')
        assert looks.at(second + 7).warnings[second // 7 :] == ()
        with open(path, "a") as file:
            file.write(f'ing", "message": "warning {second}"}}\n')
        later, first = looks.at(second + 7), Looks(tmp_path).at(second + 7)
        assert replace(later, ranks=(), warnings=()) == replace(first, ranks=(), warnings=())
        assert [one.message for one in later.warnings] == [one.message for one in first.warnings]
    assert later.stages[0].done == 61
    assert later.num_warnings == 60
    assert [one.message for one in later.warnings] == [f"warning {second}" for second in range(70, 420, 7)]


def test_only_what_has_changed_is_read_again(tmp_path, monkeypatch):
    listed, opened = [], []
    monkeypatch.setattr(units, "published", lambda _, stage: listed.append(stage) or published(tmp_path, stage))

    def opening(path, mode):
        opened.append(os.path.basename(path)[:6])
        return open(path, mode)

    monkeypatch.setattr(log_lines, "open", opening, raising=False)
    looks = Looks(busy_run(tmp_path))
    looks.at()
    assert (listed, opened) == (list(STAGES), ["rank-0", "rank-1", "rank-2"])
    looks.at(1)
    (tmp_path / "instruct_logps/unit-00010.parquet").touch()
    log(tmp_path, FAR, 2, unit_line(NOW))
    assert looks.at(2).stages[1].done == 11
    assert (listed[3:], opened[3:]) == (["instruct_logps"], ["rank-2"])
    # A date may lie: every folder is listed again now and then.
    looks.at(100)
    assert listed[4:] == list(STAGES)


@pytest.mark.parametrize(
    "line",
    [
        '{"time": NaN, "stage": "sampled_answer", "seconds": 1, "answers": 1}',
        '{"time": 1, "stage": "sampled_answer", "seconds": Infinity, "answers": 1}',
        '{"time": 1, "stage": "sampled_answer", "seconds": 1, "answers": NaN}',
        '{"time": 1e30, "level": "warning", "message": "late"}',
        '{"time": 1, "level": "warning", "message": ' + "[" * 99999,
        '{"time": 1, "process": {"pid": -1}}',
        '{"time": 1, "exit_code": Infinity}',
        '{"time": {}, "exit_code": 1}',
        "\x00\x1b[2J",
    ],
)
def test_a_line_that_is_none_changes_nothing(tmp_path, line):
    make_run(tmp_path, 10, {"sampled_answer": 4})
    path = log(tmp_path, ME, 0, started(NOW - 50, ME, 0), unit_line(NOW - 1))
    before = Looks(tmp_path).at()
    with open(path, "a") as file:
        file.write(f"{line}\n")
    assert Looks(tmp_path).at() == before
