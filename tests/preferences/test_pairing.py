"""Stage 2 as a whole: published units in, pairs.parquet, funnel and dataset out."""

import json
import math
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage2_world import MARKERS, dataset_rows, digest, make_world, pairs_rows, picture

from data_engine import build_pairs, schemas
from data_engine.errors import IncompleteError, UserError
from data_engine.exports.base import Written
from data_engine.of_pairing import pairs_file
from data_engine.pipeline import pair
from data_engine.preferences import candidates, filters
from data_engine.preferences.pairs_metadata import read_funnel
from data_engine.preferences.word_count import count_words
from data_engine.store import units


def expected_pairs(rows, rank=2, distance=25, beta=0.1, seed=0):
    """The same result by plain sums over the whole table at once."""
    rewarded = []
    for row in rows:
        # The files hold float32.
        reward, instruct = (np.float32(row[name]).astype(float).tolist() for name in ("reward", "instruct"))
        difference = [r - p for r, p in zip(reward, instruct, strict=True)]
        total = beta * sum(difference)
        answer = {name: row[name] for name in ("idx", "sample_index", "answer")}
        rewarded.append(answer | {"sum": total, "avg": total / len(difference)})
    pairs = build_pairs(rewarded, rank, distance, count_words, markers=MARKERS)
    return list(zip(pairs, filters.statuses(pairs, seed), strict=True))


def key(row):
    return row["idx"], row["chosen_index"], row["rejected_index"]


def test_pairs_and_statuses_are_those_of_all_rows_taken_together(world, work_dir):
    world.pair(work_dir)
    expected = expected_pairs(world.rows)
    rows = pairs_rows(work_dir)
    assert [(*key(row), row["status"]) for row in rows] == [
        (one.idx, one.chosen_index, one.rejected_index, status) for one, status in expected
    ]
    assert {"kept", "per_idx", "length_balance"} == {row["status"] for row in rows}
    for row, (one, _) in zip(rows, expected, strict=True):
        assert (row["chosen"], row["rejected"]) == (one.chosen, one.rejected)
        assert row["chosen_sum"] == pytest.approx(one.chosen_sum, abs=1e-12)
        assert row["rejected_avg"] == pytest.approx(one.rejected_avg, abs=1e-12)
        assert row["chosen_words"] == count_words(row["chosen"])


def test_the_dataset_holds_the_kept_pairs_with_the_question_and_image_of_their_idx(world, work_dir):
    world.pair(work_dir)
    kept = [row for row in pairs_rows(work_dir) if row["status"] == "kept"]
    rows = dataset_rows(work_dir)
    assert len(rows) == len(kept) > 20
    assert sorted((row["idx"], row["chosen"], row["rejected"]) for row in rows) == sorted(
        (row["idx"], row["chosen"], row["rejected"]) for row in kept
    )
    for row in rows:
        number = int(row["idx"][1:])
        assert row["question"] == f"What is in picture {number}?"
        assert row["image"] == {"bytes": picture(number), "path": f"{number}.png"}


def test_the_funnel_counts_every_question_answer_and_pair_once(world, work_dir):
    funnel = world.pair(work_dir)
    statuses = Counter(row["status"] for row in pairs_rows(work_dir))
    assert (funnel.questions, funnel.quarantined, funnel.answers) == (30, 0, 180)
    assert funnel.answers == funnel.ranked + sum(funnel.not_ranked.values())
    assert funnel.candidate_pairs == statuses.total()
    assert funnel.dropped == {name: statuses[name] for name in filters.FILTERS}
    assert funnel.written == statuses["kept"] == len(dataset_rows(work_dir))
    assert read_funnel(work_dir) == funnel


def test_the_funnel_prints_as_an_aligned_table(world, work_dir):
    lines = world.pair(work_dir).table().splitlines()
    assert lines[0].split() == ["questions", "30"]
    assert lines[-1].startswith("written ")
    assert "  dropped by per_idx" in "\n".join(lines)
    assert len({len(line) for line in lines}) == 1


def test_defects_1_12_and_13_rows_are_matched_by_idx_and_sample_index_and_never_by_place(world, work_dir, tmp_path):
    world.pair(work_dir)
    world.publish(tmp_path / "shuffled", order=random.Random(5).shuffle)
    world.pair(tmp_path / "shuffled")
    assert digest(tmp_path / "shuffled/dataset") == digest(work_dir / "dataset")
    assert digest(tmp_path / "shuffled/pairs") == digest(work_dir / "pairs")


def test_the_size_of_the_units_does_not_show_in_the_dataset(world, work_dir, tmp_path):
    world.pair(work_dir)
    other = make_world(tmp_path / "other", unit_size=7)
    other.publish(tmp_path / "work-7")
    other.pair(tmp_path / "work-7")
    assert len(other.units()) != len(world.units())
    assert digest(tmp_path / "work-7/dataset") == digest(work_dir / "dataset")
    assert digest(tmp_path / "work-7/pairs") == digest(work_dir / "pairs")


def test_the_pairs_held_in_memory_before_they_are_written_do_not_show_in_the_result(
    world, work_dir, tmp_path, monkeypatch
):
    world.pair(work_dir)
    world.publish(tmp_path / "other")
    monkeypatch.setattr(candidates, "BUFFER_ROWS", 10)
    world.pair(tmp_path / "other")
    assert pq.read_metadata(tmp_path / "other/pairs/pairs.parquet").num_row_groups > 3
    assert pairs_rows(tmp_path / "other") == pairs_rows(work_dir)
    assert digest(tmp_path / "other/dataset") == digest(work_dir / "dataset")


def test_defect_32_the_dataset_depends_on_the_seed_setting_and_on_no_global_random_state(world, work_dir):
    random.seed(1)
    world.pair(work_dir)
    first = digest(work_dir / "dataset")
    random.seed(2)
    np.random.seed(3)
    world.pair(work_dir)
    assert digest(work_dir / "dataset") == first
    world.pair(work_dir, seed=1)
    assert digest(work_dir / "dataset") != first


def test_pairing_again_with_other_settings_leaves_nothing_of_the_former(world, work_dir, tmp_path):
    world.pair(work_dir, seed=4, rank=3)
    (work_dir / "dataset/stale.parquet").write_bytes(b"")
    world.pair(work_dir)
    world.publish(tmp_path / "fresh")
    world.pair(tmp_path / "fresh")
    assert digest(work_dir) == digest(tmp_path / "fresh")


def test_pairs_carry_the_settings_that_made_them(world, work_dir):
    world.pair(work_dir, rank=3, distance=9, beta=0.5, seed=8)
    metadata = pq.read_schema(work_dir / "pairs/pairs.parquet").metadata
    assert json.loads(metadata[b"settings"]) == {"rank": 3, "distance": 9, "beta": 0.5, "seed": 8}


def test_pairs_have_the_columns_of_their_record(world, work_dir):
    world.pair(work_dir)
    assert pq.read_schema(work_dir / "pairs/pairs.parquet").equals(schemas.pairs(pa.string()))


def test_defect_31_an_integer_idx_keeps_its_type_and_groups_its_answers(tmp_path):
    world = make_world(tmp_path, idx=pa.array(range(100, 130), pa.int64()))
    world.publish(tmp_path / "work")
    world.pair(tmp_path / "work")
    assert pq.read_schema(tmp_path / "work/dataset/dpo_dataset.parquet").field("idx").type == pa.int64()
    assert pq.read_schema(tmp_path / "work/pairs/pairs.parquet").field("idx").type == pa.int64()
    assert [key(row) for row in pairs_rows(tmp_path / "work")] == [
        (one.idx, one.chosen_index, one.rejected_index) for one, _ in expected_pairs(world.rows)
    ]


def test_missing_units_are_listed_by_stage(world, work_dir):
    for stage, gone in (("sampled_answer", (1,)), ("reward_logps", (0, 2, 3))):
        for unit in gone:
            units.unit_path(work_dir, stage, unit).unlink()
    with pytest.raises(IncompleteError) as error:
        world.pair(work_dir)
    assert "sampled_answer: 1\n" in str(error.value)
    assert "reward_logps: 0, 2-3\n" in str(error.value)
    assert "instruct_logps" not in str(error.value)
    assert not (work_dir / "dataset").exists()


def test_fewer_answers_an_empty_unit_and_quarantined_questions_are_counted_and_shift_nothing(tmp_path):
    world = make_world(tmp_path, num_questions=24)
    whole = expected_pairs(world.rows)
    # Unit 1 (q008 to q015) has nothing, q003 lost an answer, q005 all of them.
    gone = {f"q{number:03d}" for number in range(8, 16)} | {"q005"}
    world.rows = [r for r in world.rows if r["idx"] not in gone and (r["idx"], r["sample_index"]) != ("q003", 2)]
    # q005 is left out by two stages, and counts once; of unit 1 the pictures are missing.
    broken = [(f"q{number:03d}", "gone") for number in range(8, 16)]
    left_out = {("sampled_answer", 0): [("q005", "broken")], ("reward_logps", 0): [("q005", "broken too")]}
    world.publish(tmp_path / "work", left_out=left_out, missing={("sampled_answer", 1): broken})
    funnel = world.pair(tmp_path / "work")
    assert (funnel.questions, funnel.quarantined, funnel.answers) == (24, 9, 15 * 6 - 1)
    untouched = [p for p, _ in whole if p.idx not in gone | {"q003"}]
    found = [key(row) for row in pairs_rows(tmp_path / "work") if row["idx"] != "q003"]
    assert found == [(one.idx, one.chosen_index, one.rejected_index) for one in untouched]


@pytest.mark.parametrize(("status", "stays"), [("kept", True), ("per_idx", False)])
def test_a_dataset_stays_where_a_new_one_would_lose_a_question_that_it_has(tmp_path, status, stays):
    rows = [{"idx": "a", "status": status}, {"idx": "b", "status": "kept"}]
    pairs_file(tmp_path).parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), pairs_file(tmp_path))
    gone = Written(1, without_source=frozenset({"a"}), first_gone="idx 'a': no file")
    if stays:
        with pytest.raises(UserError, match=r"would lack the pairs of 1 question .*, as of idx 'a': no file"):
            pair._require_sources(tmp_path, gone)
    else:
        pair._require_sources(tmp_path, gone)


def test_a_question_that_cannot_be_read_any_more_takes_its_kept_pairs_alone(tmp_path):
    """Of four candidates of each question, one is beyond --max_pairs, whatever becomes of its picture."""
    texts = ("one", "two", "six", "ten", "big")
    rows = [{"idx": idx, "sample_index": at, "answer": text, "sum": -at, "avg": -at}
            for idx in "ab" for at, text in enumerate(texts)]  # fmt: skip
    table = candidates.CandidateTable(tmp_path / "candidates.parquet", schemas.pairs(pa.string()), 0)
    with table:
        for idx in "ab":
            table.add(idx, build_pairs([row for row in rows if row["idx"] == idx], rank=2))
    table.filter_dataset()
    before = table.counts()
    assert (before["kept"], before["per_idx"]) == (6, 2)
    table.drop(frozenset("b"))
    assert {name: count for name, count in table.counts().items() if count} == {"kept": 3, "per_idx": 2, "no_source": 3}


def test_defects_7_8_and_14_answers_that_cannot_rank_are_counted_by_reason(tmp_path):
    world = make_world(tmp_path, num_questions=8)
    first = world.rows[:6]
    first[0]["answer"] = ""
    first[1]["answer"] = "a cat</s>"
    first[2]["instruct"][0] = math.nan
    first[3]["answer"] = first[4]["answer"]
    second = world.rows[6:12]
    for row in second[1:]:
        row["reward"] = row["instruct"] = []
    world.publish(tmp_path / "work")
    funnel = world.pair(tmp_path / "work", debug=True)
    assert funnel.not_ranked == {"empty": 1, "marker": 1, "duplicate": 1, "non_finite": 6, "alone": 1}
    assert funnel.ranked == 8 * 6 - 10
    pairs = [row for row in pairs_rows(tmp_path / "work") if row["idx"] in ("q000", "q001")]
    assert {(row["idx"], row["chosen_index"], row["rejected_index"]) for row in pairs} <= {
        ("q000", 3, 5),
        ("q000", 5, 3),
    }
    debug = json.loads((tmp_path / "work/debug/rewards.json").read_text(), parse_constant=pytest.fail)
    assert [row["not_ranked"] for row in debug[:6]] == ["empty", "marker", "non_finite", None, "duplicate", None]
    assert debug[2]["sum"] is None


def test_answers_that_one_model_did_not_score_are_counted_and_never_rank(world, work_dir):
    path = units.unit_path(work_dir, "reward_logps", 0)
    whole = units.read_sealed(path)
    units.write_sealed(whole.table.slice(2), path, whole.facts)
    funnel = world.pair(work_dir)
    assert funnel.not_ranked == {"not_scored": 2}


def test_models_with_different_tokenizers_are_paired_by_sums_and_means(tmp_path):
    world = make_world(tmp_path)
    for row in world.rows:
        row["reward"] = [*row["reward"], -0.25]
    world.publish(tmp_path / "work")
    with pytest.raises(ValueError, match=r"unit 0, idx 'q000', sample_index 0: both models must have scored the same"):
        world.pair(tmp_path / "work")
    world.pair(tmp_path / "work", same_tokenizer=False, debug=True)
    row = json.loads((tmp_path / "work/debug/rewards.json").read_text())[0]
    reward, instruct = np.float32(world.rows[0]["reward"]), np.float32(world.rows[0]["instruct"])
    assert row["avg"] == pytest.approx(0.1 * (reward.mean(dtype=float) - instruct.mean(dtype=float)))
    assert row["sum"] == pytest.approx(0.1 * (reward.sum(dtype=float) - instruct.sum(dtype=float)))
    assert (row["min"], row["last"]) == (None, None)


def test_an_answer_of_which_models_scored_different_tokens_is_named_behind_one_without_log_probs(tmp_path):
    world = make_world(tmp_path)
    world.rows[1]["reward"] = None
    world.rows[3]["reward"] = [*world.rows[3]["reward"], -0.25]
    world.publish(tmp_path / "work")
    with pytest.raises(ValueError, match=r"unit 0, idx 'q000', sample_index 3: both models must have scored the same"):
        world.pair(tmp_path / "work")


def test_defect_18_the_debug_files_hold_what_their_names_say_as_strict_json(world, work_dir):
    world.pair(work_dir, debug=True)
    rewards = json.loads((work_dir / "debug/rewards.json").read_text(), parse_constant=pytest.fail)
    pairs = json.loads((work_dir / "debug/pairs.json").read_text(), parse_constant=pytest.fail)
    assert pairs == pairs_rows(work_dir)
    assert [(row["idx"], row["sample_index"]) for row in rewards] == [
        (row["idx"], row["sample_index"]) for row in world.rows
    ]
    assert set(rewards[0]) == {
        *("idx", "sample_index", "answer", "sum", "avg", "min", "last", "sum_rank", "avg_rank", "not_ranked")
    }
    best = max(rewards[:6], key=lambda row: row["sum"])
    assert best["sum_rank"] == 1


def test_the_debug_file_ranks_by_what_is_left_of_rewards_behind_the_alpha(world, work_dir):
    world.pair(work_dir, debug=True, length_alpha=0.02)
    rows, differ = json.loads((work_dir / "debug/rewards.json").read_text()), 0
    for at in range(0, len(rows), 6):
        own = rows[at : at + 6]
        order = sorted(own, key=lambda row: 0.02 * len(row["answer"].split()) - row["sum"])
        assert [row["sum_rank"] for row in order] == [1, 2, 3, 4, 5, 6]
        differ += order != sorted(own, key=lambda row: -row["sum"])
    assert differ


def test_another_seed_keeps_other_pairs_of_the_same_candidates(world, work_dir):
    statuses, candidates = [], []
    for seed in (0, 1, 0):
        world.pair(work_dir, seed=seed, rank=3)
        rows = pairs_rows(work_dir)
        statuses.append([row["status"] for row in rows])
        candidates.append([(row["idx"], row["chosen_index"], row["rejected_index"]) for row in rows])
    assert candidates[0] == candidates[1]
    assert statuses[0].count("per_idx") == statuses[1].count("per_idx") > 0
    assert statuses[0] == statuses[2] != statuses[1]


def test_debug_changes_nothing_else(world, work_dir):
    world.pair(work_dir)
    before = digest(work_dir / "dataset"), digest(work_dir / "pairs")
    world.pair(work_dir, debug=True)
    assert (digest(work_dir / "dataset"), digest(work_dir / "pairs")) == before


def test_answers_to_a_question_of_another_dataset_are_refused(world, work_dir, tmp_path):
    other = make_world(tmp_path / "other", idx=[f"other-{number}" for number in range(30)])
    with pytest.raises(UserError, match="answers to idx 'q000', which is not among its questions"):
        other.pair(work_dir)


def test_defect_19_no_pair_at_all_gives_an_empty_dataset_and_a_warning(tmp_path, caplog):
    world = make_world(tmp_path, num_questions=3, num_answers=1)
    world.publish(tmp_path / "work")
    funnel = world.pair(tmp_path / "work")
    assert (funnel.candidate_pairs, funnel.written, funnel.not_ranked) == (0, 0, {"alone": 3})
    assert pq.read_table(tmp_path / "work/dataset/dpo_dataset.parquet").num_rows == 0
    assert pairs_rows(tmp_path / "work") == []
    assert "loaders refuse" in caplog.text
