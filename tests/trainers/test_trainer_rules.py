"""The rules that the loaders of RLAIF-V, InternVL and LLaVA-NeXT ask for. PyPI has none of them: their own loaders are
run by hand, by `check_rlaif_v.py`, `check_internvl.py` and `check_llava_next.py` with --checkout.
"""

import json

import pyarrow.parquet as pq
import pytest
import spoilt
from turned_pictures import turned

FORMATS = [("rlaif_v", "rlaif-v"), ("rlaif_v", "rlaif-v-logps"), ("internvl", "internvl-mpo"),
           ("llava_next", "llava-next")]  # fmt: skip


@pytest.mark.parametrize(("trainer", "name"), FORMATS)
def test_an_export_keeps_the_rules(check, num_rows, trainer, name):
    code, figures = check(trainer, name)
    assert code == 0, figures
    assert figures["rows"] == num_rows(name) > 0


def without_a_column(folder):
    (path,) = folder.glob("*.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["rejected"]), path)


def renamed(folder):
    (path,) = folder.glob("*.parquet")
    path.rename(folder / "dpo_dataset_withlogp.parquet")


def with_its_own_marker(rows):
    rows[0]["question"] += "<image>"


def as_the_camera_stored_it(rows):
    [row] = {row["question"]: row for row in rows if row["question"] == "Which side is up?"}.values()
    row["image"]["bytes"] = turned(6, "JPEG, Intel")


def with_two_markers(rows):
    rows[0]["question"] += "<image><image><image>"


def with_its_picture_last(rows):
    rows[0]["prompt"] = rows[0]["prompt"].removeprefix("<image>\n") + "<image>"


def without_answer(rows):
    del rows[0]["answer"]


def short_logps(rows):
    values = json.loads(rows[0]["logps"])
    (values["logps"] if isinstance(values, dict) else values)[2][20:] = []
    rows[0]["logps"] = json.dumps(values)


def another_length(folder):
    meta = json.loads((folder / "meta.json").read_text())
    next(iter(meta.values()))["length"] += 1
    (folder / "meta.json").write_text(json.dumps(meta))


SPOILT = {
    "a column is missing": ("rlaif-v", without_a_column, "has no column rejected"),
    "a name of files with log-probs": ("rlaif-v", renamed, "is not a name for a file without log-probs"),
    "a marker in a question": ("rlaif-v", spoilt.parquet_rows(with_its_own_marker), "a question holds <image>"),
    "a picture that must be turned": ("rlaif-v", spoilt.parquet_rows(as_the_camera_stored_it), "(48, 64), expected"),
    "log-probs that are too short": ("rlaif-v-logps", spoilt.parquet_rows(short_logps), "do not reach over"),
    "a missing picture": ("internvl-mpo", spoilt.picture_missing, "a picture cannot be opened"),
    "another length": ("internvl-mpo", another_length, "length is"),
    "a question before its picture": ("llava-next", spoilt.listed(with_its_picture_last), "does not stand before"),
    "no column that is counted": ("llava-next", spoilt.listed(without_answer), "answer is None"),
    "two markers in a line": ("internvl-mpo", spoilt.lines(with_two_markers), "times <image> in the question"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_export_is_refused(check, spoil, what):
    name, change, reason = SPOILT[what]
    code, wrong = check(dict(map(reversed, FORMATS))[name], name, spoil(name, change))
    assert code == 1
    assert reason in wrong
