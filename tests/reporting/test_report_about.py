"""What stands at the top of a report: which models, dataset and pairing it is about."""

import json
import os
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest
from stage2_world import make_world

from data_engine.preferences.pairs_metadata import read_funnel
from data_engine.reporting.compare import comparison_text
from data_engine.reporting.page import report_text
from data_engine.stages import RunStages

CONFIG = {
    "instruct_model_path": "models/seven",
    "instruct_model_revision": None,
    "reward_model_path": "org/after-dpo",
    "reward_model_revision": "v2",
    "dataset_path": "org/questions",
    "dataset_split": "train",
    "sample_k": 10,
    "limit": None,
}
RUN_FILE = {
    "config": CONFIG | {"limit": 8},
    "bound": {"sample_k": 6},
    "places": {"dataset_path": "/data/questions"},
    "models": {"instruct": {"family": "llava"}, "reward": {}},
    "versions": {"data_engine": "0.1.0"},
}


class About(HTMLParser):
    """The list at the top of a page: lines by name."""

    def __init__(self, text):
        super().__init__()
        self.rows, self._tag = {}, None
        self.feed(text[text.index('<dl class="about">') : text.index("</dl>")])

    def handle_starttag(self, tag, attrs):
        self._tag = tag

    def handle_endtag(self, tag):
        self._tag = None

    def handle_data(self, data):
        if self._tag == "dt":
            self.rows[data] = []
        elif self._tag == "dd":
            self.rows[list(self.rows)[-1]].append(data)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), num_questions=8)


def about(world, work_dir, run_file=None, **settings):
    world.publish(work_dir)
    funnel = world.pair(work_dir, **settings)
    if run_file is not None:
        (work_dir / "run.json").write_text(json.dumps(run_file))
    os.utime(work_dir / "pairs/pairs.parquet", (1_700_000_000, 1_700_000_000))
    rows = About(report_text(work_dir, world.questions(), funnel)).rows
    # What came of it stands before what it is about, see test_report_result.py.
    assert next(iter(rows)) == "Kept pairs"
    del rows["Kept pairs"]
    return rows


def test_models_dataset_and_pairing_are_named(world, tmp_path):
    assert about(world, tmp_path, RUN_FILE, min_margin=0.1, max_pairs=2, near_duplicates=0.9, length_alpha=0.02) == {
        "Instruct model": ["models/seven (llava)"],
        "Reward": ["implicit: reward model org/after-dpo (revision v2)"],
        # Where it was found last; what units are bound to, as another start may have set it.
        "Dataset": ["/data/questions (split train)"],
        "Questions": ["8 (limit 8), 6 answers each"],
        "Pairing": [
            "strategy cross, rank 2, distance 25, beta 0.1, near_duplicates 0.9, seed 0",
            "ranked by implicit.sum, implicit.avg",
        ],
        "Filters": ["min_margin 0.1, identical, per_idx (max_pairs 2), length_balance"],
        "Length alpha": ["0.02"],
        "Pairs written": ["2023-11-14 22:13 UTC, in a run of data_engine 0.1.0"],
    }


def test_each_source_of_reward_is_told_with_what_it_asks_and_those_of_the_pairs_win(world, tmp_path):
    # The last start has other sources than that which made the pairs.
    config = CONFIG | {"rewards": "implicit", "rule": "rules.py:right", "answers": "given.jsonl"}
    sources = ("implicit", "contrast", "rule")
    world.publish(tmp_path)
    world.pair(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"config": config}))
    path = tmp_path / "pairs/pairs.parquet"
    table = pq.read_table(path)
    told = table.schema.metadata | {b"rewards": json.dumps(",".join(RunStages(sources=sources).sources)).encode()}
    pq.write_table(table.replace_schema_metadata(told), path)
    rows = About(report_text(tmp_path, world.questions(), read_funnel(tmp_path))).rows
    assert rows["Reward"] == [
        "implicit: reward model org/after-dpo (revision v2)",
        "contrast: instruct model",
        "rule: rules.py:right",
    ]
    assert rows["Questions"] == ["8, answers given by given.jsonl"]


def test_an_alpha_that_was_found_is_told(world, tmp_path):
    rows = about(world, tmp_path, length_alpha="auto")
    found = json.loads(pq.read_schema(tmp_path / "pairs/pairs.parquet").metadata[b"length_alpha"])
    assert rows["Length alpha"] == [f"auto, which came to {found:.6g}"]


def test_of_a_run_without_run_json_the_pairs_alone_are_told_of(world, tmp_path):
    rows = about(world, tmp_path)
    assert list(rows) == ["Reward", "Questions", "Pairing", "Filters", "Length alpha", "Pairs written"]
    assert rows["Length alpha"] == ["none"]
    assert rows["Pairs written"] == ["2023-11-14 22:13 UTC"]


def test_names_are_escaped(world, tmp_path):
    config = CONFIG | {"instruct_model_path": "</dl><script>x</script>"}
    assert about(world, tmp_path, {"config": config})["Instruct model"] == ["</dl><script>x</script>"]


def test_a_page_about_two_pairings_tells_of_both(world, tmp_path):
    about(world, tmp_path, RUN_FILE)
    (tmp_path / "pairs/pairs.parquet").rename(tmp_path / "pairs/wide.parquet")
    about(world, tmp_path, RUN_FILE, strategy="best_worst")
    pairings = tuple((name, read_funnel(tmp_path, name)) for name in ("pairs", "wide"))
    rows = About(comparison_text(tmp_path, world.questions(), pairings)).rows
    assert rows["Instruct model"] == ["models/seven (llava)"]
    common = [
        "ranked by implicit.sum, implicit.avg",
        "filters: identical, per_idx (max_pairs 3), length_balance",
        "length alpha: none",
        "pairs written: 2023-11-14 22:13 UTC, in a run of data_engine 0.1.0",
    ]
    assert rows["Pairing pairs"] == ["strategy best_worst, distance 25, beta 0.1, seed 0", *common]
    assert rows["Pairing wide"] == ["strategy cross, rank 2, distance 25, beta 0.1, seed 0", *common]
