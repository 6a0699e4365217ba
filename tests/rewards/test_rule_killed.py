"""What the machine did to a rule is tried again by the next start; what the rule did stays."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
from export_world import square
from given_rule import rule_file, scores

from data_engine.store import units


def test_a_question_whose_rule_the_system_killed_is_asked_again_by_the_next_start(given, tmp_path, capsys):
    """As the kernel does where memory is short."""
    short, asked = tmp_path / "short of memory", tmp_path / "asked"
    body = (
        "import os, signal\n"
        "def f(row, answers):\n"
        f"    open({str(asked)!r}, 'a').write(f'{{row[\"idx\"]}}\\n')\n"
        f"    if row['idx'] == 2 and os.path.exists({str(short)!r}): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    if row['idx'] == 3: 1 / 0\n"
        "    return [len(answer) for answer in answers]\n"
    )
    rule, work = f"{rule_file(tmp_path, body)}:f", tmp_path / "work"
    short.touch()
    assert given(rule) == 0
    killed = {"idx": 2, "reason": "the rule was killed, most often for want of memory, 2 times", "missing": True}
    raised = {"idx": 3, "reason": "f raised ZeroDivisionError: division by zero (line 5)", "missing": False}
    assert list(units.left_out(work)) == [killed | {"stage": "rule", "unit": 0}, raised | {"stage": "rule", "unit": 1}]
    assert set(scores(work)) == {1}
    short.unlink()
    asked.unlink()
    capsys.readouterr()
    assert given(rule) == 0
    told = "unit 0 of rule will be computed again: row 2 failed then for what the machine did; the old one is in"
    assert told in capsys.readouterr().err
    assert list(units.left_out(work)) == [raised | {"stage": "rule", "unit": 1}]
    assert scores(work) == {1: [15, 15, 11, 9], 2: [15, 21, 15, 17]}
    # Its unit is not computed again.
    assert "3" not in asked.read_text().split()


def test_a_question_whose_picture_is_away_is_asked_again_by_a_rule_which_sees_none(given, tmp_path):
    dataset, failing = tmp_path / "seen.parquet", tmp_path / "the disk fails"
    rows = [{"idx": idx, "question": "How many?", "image": f"{idx}.png"} for idx in (1, 2)]
    pq.write_table(pa.Table.from_pylist(rows), dataset)
    for idx in (1, 2):
        (tmp_path / f"{idx}.png").write_bytes(square("red"))
    lines = [json.dumps({"idx": idx, "answer": text}) for idx in (1, 2) for text in ("a", "bb")]
    (tmp_path / "seen.jsonl").write_text("\n".join(lines))
    body = (
        "import errno, os\n"
        "def f(row, answers):\n"
        f"    if row['idx'] == 2 and os.path.exists({str(failing)!r}): raise OSError(errno.EIO, 'Input/output error')\n"
        "    return [len(answer) for answer in answers]\n"
    )
    flags = {"answers": str(tmp_path / "seen.jsonl"), "image_root": str(tmp_path), "stop_after_stage": 1}
    rule = f"{rule_file(tmp_path, body)}:f"
    failing.touch()
    assert given(rule, dataset, **flags) == 0
    assert set(scores(tmp_path / "work")) == {1}
    failing.unlink()
    (tmp_path / "2.png").unlink()
    assert given(rule, dataset, **flags) == 0
    assert scores(tmp_path / "work") == {1: [1, 2], 2: [1, 2]}
