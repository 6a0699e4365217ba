"""Models whose weights are divided over two ranks give what whole ones give, in every family that is not refused."""

import json
import os
import shutil
import sys
from pathlib import Path

import internvl_folders
import pytest
from families import FAMILIES

from data_engine.models.auto import sizes
from data_engine.models.auto.weights.splitting import check_split
from data_engine.models.checkpoints.json_files import ModelError

sys.path.append(str(Path(__file__).parents[1] / "distributed"))

import fork_server
from jobs import forked_world

HERE = Path(__file__).parent
# By what their layers are.
REFUSED = {
    "mllama": "for image states",
    **dict.fromkeys(("ernie4_5_vl_moe", "gemma3n", "chameleon"), "that a text alone does not call"),
    **dict.fromkeys(("step3p7", "minimax_m3_vl", "qwen4_exp", "glm5_next"), "of which it is not known what they keep"),
    **dict.fromkeys(
        (
            "qwen3_5",
            "qwen3_5_moe",
            "minicpmv4_7",
            "minicpm_ocr",
            "lfm2_vl",
            "lfm3_vl",
            "nemotron_h_omni",
        ),
        "with a recurrent state",
    ),
}
TAKEN = [name for name, family in FAMILIES.items() if family.fast and name not in REFUSED]


# A further fork server, whose ranks find what processors of some families need.
INHERITED = filter(None, [os.environ.get("PYTHONPATH")])
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *INHERITED])}
SERVER = fork_server.Server({**os.environ, **ENVIRONMENT}, first=["torchvision_names"])


def by_two_ranks(folders: list[Path]) -> list[dict]:
    """By each rank for each folder: the rank, what the split model gave it, and what the whole one gives it."""
    ranks = forked_world(2, "split_ranks", [str(folder) for folder in folders], server=SERVER, **ENVIRONMENT)
    output, _ = ranks.communicate(timeout=900)
    assert ranks.returncode == 0, output[-3000:]
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    whole = {line["folder"]: line["whole"] for line in lines if "whole" in line}
    split = [line for line in lines if "split" in line]
    assert sorted((line["folder"], line["rank"]) for line in split) == sorted(
        (str(folder), rank) for folder in folders for rank in (0, 1)
    )
    # Two answers to each of two questions by rank 0, to the first by rank 1; three scored texts a question.
    for line in split:
        ids, logps = whole[line["folder"]]
        line["whole"] = [ids[: (4, 2)[line["rank"]]], logps[: (6, 3)[line["rank"]]]]
    return split


@pytest.mark.families
def test_split_models_answer_and_score_as_whole_ones(checkpoints, tmp_path):
    folders = [checkpoints(name).folder for name in TAKEN if not FAMILIES[name].missing()]
    # Weights that rank 0 splits and puts together as it reads them.
    folders += [internvl_folders.write(tmp_path / kind, kind) for kind in ("internlm2", "qwen3_moe")]
    for line in by_two_ranks(folders):
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


@pytest.mark.parametrize("name", ["qwen2_5_vl"])
def test_a_head_that_was_trained_apart_from_the_embeddings_stays_apart(checkpoints, tmp_path, name):
    """As peft leaves it: config.json still says that the two are one, and the files hold both."""
    folder = shutil.copytree(checkpoints(name).folder, tmp_path / name)
    told = json.loads((folder / "config.json").read_text())
    text = told["text_config"] | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(told | {"tie_word_embeddings": True, "text_config": text}))
    for line in by_two_ranks([folder]):
        (ids, logps), (whole_ids, whole_logps) = line["split"], line["whole"]
        assert ids == whole_ids
        assert [one for each in logps for one in each] == pytest.approx(
            [one for each in whole_logps for one in each], abs=1e-5
        )


@pytest.mark.families
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_others_are_refused_by_what_their_layers_are(checkpoints, name):
    with pytest.raises(ModelError, match=f"has layers {REFUSED[name]}: such models are not split over ranks"):
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
    assert sizes.cache_sizes(folder) == (3 * 2 * 2 * 16, 0, 0)
    assert "no such operation on the device meta" in caplog.text
    sizes._measured.cache_clear()
