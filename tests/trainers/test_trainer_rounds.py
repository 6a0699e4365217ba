"""`data-engine loop` with a trainer of the field: rounds of answers, pairs and steps of TRL."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_llava
from bound_run import Run
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs/loop.md"


def texts_of(export: Path) -> list:
    """As `datasets` gives them: the columns of chosen and of rejected answers."""
    tables = [pq.read_table(file) for file in sorted(export.rglob("*.parquet"))]
    return [[one for table in tables for one in table[side].to_pylist()] for side in ("chosen", "rejected")]


def test_a_loop_trains_by_the_script_of_the_page(tmp_path):
    run = Run(tmp_path / "run").make()
    models = {role: tiny_llava.save(tmp_path / role, seed) for seed, role in enumerate(("instruct", "reward"))}
    script, folder = tmp_path / "train.py", tmp_path / "loop"
    [text] = re.findall(r"```python\n(# train\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    # On the CPU, and by steps that change a model of 0.6 M parameters.
    changed = text.replace("learning_rate=5e-7", "learning_rate=1e-2, use_cpu=True, bf16=False, report_to=[]")
    assert changed != text
    script.write_text(
        f'{changed}\nimport json\nprint("READ", json.dumps([rows[:][side] for side in ("chosen", "rejected")]))\n'
    )
    flags = {f"{role}_model_path": place for role, place in models.items()}
    flags |= {"dataset_path": run.folder / "questions.parquet", "image_root": run.folder / "pictures", "export": "trl"}
    flags |= {"sample_k": 4, "rank": 2, "distance": 1000, "max_new_tokens": 8, "threads": 1, "work_dir": folder}
    flags |= {"rounds": 2, "train": shlex.join([sys.executable, str(script), "{model}", "{exports}/trl", "{output}"])}
    done = subprocess.run(
        [sys.executable, "-m", "data_engine", "loop", *(f"--{name}={value}" for name, value in flags.items())],
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "NUM_PROCESSES": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    trained = [models["instruct"], *(folder / f"round-{number}/model" for number in (1, 2))]
    for before, after in itertools.pairwise(trained):
        weights = [load_file(place / "model.safetensors") for place in (before, after)]
        assert any(not np.array_equal(weights[0][name], value) for name, value in weights[1].items()), after
    # The second training read the rows of its own round, not those that `datasets` has kept of the first.
    written = [texts_of(folder / f"round-{number}/run/exports/trl") for number in (1, 2)]
    assert written[0] != written[1]
    logs = [(folder / f"round-{number}/train.log").read_text() for number in (1, 2)]
    assert [json.loads(re.search(r"READ (.*)", log)[1]) for log in logs] == written
