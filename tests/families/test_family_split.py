"""Models whose weights are divided over two ranks give what whole ones give, in every family that is not refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import internvl_folders
import pytest
from families import FAMILIES

from data_engine.models.auto import sizes
from data_engine.models.auto.splitting import check_split
from data_engine.models.registry import ModelError

HERE = Path(__file__).parent
# Layers whose number differs by prompt, or that keep a state.
REFUSED = {"mllama", "qwen3_5", "lfm2_vl"}
TAKEN = [name for name, family in FAMILIES.items() if family.fast and name not in REFUSED]


def torchrun(folders: list[Path]) -> list[dict]:
    """The lines that two ranks print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    inherited = filter(None, [os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *inherited])}
    done = subprocess.run(
        [*command, str(HERE / "split_ranks.py"), *map(str, folders)],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.families
def test_split_models_answer_and_score_as_whole_ones(checkpoints, tmp_path):
    folders = [checkpoints(name).folder for name in TAKEN if not FAMILIES[name].missing()]
    # Weights that rank 0 splits and puts together as it reads them.
    folders += [internvl_folders.write(tmp_path / kind, kind) for kind in ("internlm2", "qwen3_moe")]
    lines = torchrun(folders)
    assert len(lines) == 2 * len(folders)
    for line in lines:
        assert line["why"] is None
        (ids, logps), (whole_ids, whole_logps) = line["split"], line["whole"]
        assert ids == whole_ids, line["folder"]
        off = max(abs(one - other) for ours, theirs in zip(logps, whole_logps, strict=True)
                  for one, other in zip(ours, theirs, strict=True))  # fmt: skip
        # Most are equal to the last bit; a tied head lies elsewhere in memory, and is multiplied in other steps.
        assert off < 1e-5, line["folder"]
        every, share = line["held"]
        # An odd number is filled up by one; what stays whole are embeddings and a few weights that their owner reads.
        assert every / 2 <= share <= every / 2 + 100
        assert every > line["all"] / 2


@pytest.mark.families
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_others_are_refused_by_what_their_layers_are(checkpoints, name):
    kind = "for image states" if name == "mllama" else "with a recurrent state"
    with pytest.raises(ModelError, match=f"has layers {kind}: such models are not split over ranks"):
        check_split(checkpoints(name).folder)


def test_a_model_whose_layers_cannot_be_seen_without_weights_is_not_split(checkpoints, monkeypatch, caplog):
    """Its layers might keep states, and ranks would wait for each other for ever."""

    def fails(config):
        raise RuntimeError("no such operation on the device meta")

    sizes._measured.cache_clear()
    monkeypatch.setattr(sizes, "_run_on_meta", fails)
    folder = checkpoints("qwen2_5_vl").folder
    with pytest.raises(ModelError, match="has layers of which it is not known what they keep"):
        check_split(folder)
    # 3 layers, 2 heads of keys and of values, 16 wide.
    assert sizes.cache_sizes(folder) == (3 * 2 * 2 * 16, 0)
    assert "no such operation on the device meta" in caplog.text
    sizes._measured.cache_clear()
