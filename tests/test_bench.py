"""The benchmark does the work that it times, and the engine's share of it is right."""

import json

import pytest

from data_engine import bench
from data_engine.bench_ways import WAYS, Sizes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result() -> dict:
    return bench.run(Sizes(k=2, questions=2, answer_tokens=5, new_tokens=3, rounds=2), threads=1)


def test_every_way_is_timed_in_every_round(result):
    assert set(result["seconds"]) == set(WAYS)
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in result["seconds"].values())


def test_engine_and_transformers_agree_on_the_model_that_is_timed(result):
    assert result["largest_difference_nat"] < 1e-4


def test_the_prefix_holds_576_image_tokens(result):
    assert 576 < result["sizes"]["prefix_tokens"] < 700


def test_a_ratio_is_the_quotient_of_two_rates(result):
    rates, ratios = result["tokens_a_second"], result["engine_is_faster_by"]
    assert ratios["padded batch"] == rates["engine, scoring"] / rates["padded batch"]
    assert ratios["generate, one question"] == rates["engine, sampling"] / rates["generate, one question"]
    assert len(ratios) == 4


def test_each_way_counts_the_tokens_it_was_given(tmp_path):
    sizes = Sizes(k=2, questions=3, answer_tokens=5, new_tokens=3)
    made = bench.Bench(tmp_path, sizes)
    counted = {name: way() for name, way in made.ways.items()}
    assert counted == {
        "engine, scoring": 3 * 2 * 5,
        "one at a time, twice": 2 * 5,
        "padded batch": 2 * 5,
        "engine, sampling": 3 * 2 * 3,
        # Two questions are enough for a rate.
        "generate, one question": 2 * 2 * 3,
        "generate, all questions": 3 * 2 * 3,
    }


def test_the_table_names_every_way_and_the_json_holds_the_same(result, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "run", lambda sizes, threads: result)
    assert bench.main(["--quick", "--output", str(tmp_path / "new" / "bench.json")]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in WAYS)
    assert json.loads((tmp_path / "new" / "bench.json").read_text()) == result
