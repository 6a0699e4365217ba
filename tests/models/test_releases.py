"""A model that the release of transformers at hand computes wrongly, or cannot run, is refused with what mends it.

One that a newer release wrote is warned of.
"""

import json
import re
from pathlib import Path

import pytest
import transformers

from data_engine.models.auto import releases
from data_engine.models.auto.config import load_config
from data_engine.models.checkpoints.json_files import ModelError

NO_SOFTCAP = {"final_logit_softcapping": None}
GEMMA, GEMMA_2 = {"text_config": {"model_type": "gemma"}}, {"text_config": {"model_type": "gemma2"}}


@pytest.mark.parametrize(
    ("config", "faulty", "sound"),
    [
        ({"model_type": "llama4"}, ["5.24.0"], ["5.17.0", "5.23.0", "5.24.1", "5.25.0"]),
        ({"model_type": "step3p7"}, ["5.17.0", "5.22.2"], ["5.23.0.dev0", "5.23.0", "5.23.0.post1", "6.0"]),
        ({"model_type": "minicpmv4_6"}, ["5.17.0", "5.18.0", "5.18.9rc1"], ["5.19.0", "5.23.0"]),
        ({"model_type": "minimax_m3_vl"}, ["5.17.0", "5.22.2"], ["5.23.0", "5.24.0"]),
        ({"model_type": "muse_glimmer"}, ["5.17.0", "5.23.0"], ["5.24.0"]),
        ({"model_type": "paligemma", **GEMMA_2}, ["5.17.0", "5.22.2"], ["5.23.0"]),
        ({"model_type": "paligemma", **GEMMA}, [], ["5.17.0", "5.23.0"]),
        ({"model_type": "paligemma", "text_config": GEMMA_2["text_config"] | NO_SOFTCAP}, [], ["5.17.0"]),
        ({"model_type": "paligemma"}, [], ["5.17.0"]),
        ({"model_type": "vipllava", "vision_feature_layer": [-1, -2]}, ["5.22.2"], ["5.23.0"]),
        # Those of the published model, which 5.23 writes and older ones take.
        ({"model_type": "vipllava", "vision_feature_layer": [-2, -5, -8, -11, 6]}, [], ["5.17.0", "5.23.0"]),
        # As transformers wrote it before 5.23, and reads it until today.
        ({"model_type": "vipllava", "vision_feature_layers": [-1, -2]}, [], ["5.17.0", "5.23.0"]),
        ({"model_type": "llava"}, [], ["5.17.0", "5.23.0", "5.24.0"]),
        ({}, [], ["5.17.0", "5.24.0"]),
    ],
)
def test_a_fault_is_told_of_the_releases_and_models_that_have_it_alone(config, faulty, sound):
    where = Path("config.json")
    for release in faulty:
        with pytest.raises(ModelError, match=f"transformers {re.escape(release)} .*: pip install 'transformers[!>]"):
            releases.refuse_faulty(where, config, release)
    for release in sound:
        releases.refuse_faulty(where, config, release)


def test_the_model_is_refused_before_transformers_reads_it(tmp_path, monkeypatch):
    monkeypatch.setitem(releases.FAULTS, "llava_next", releases.Fault(">=5", "mixes up its tiles", ">=6"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_next", "text_config": "broken"}))
    with pytest.raises(ModelError, match=r"llava_next', and transformers .* mixes up its tiles: pip install '.*>=6'$"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("written_by", "release", "warned"),
    [
        ("5.24.0", "5.17.0", True),
        ("5.9.0", "5.17.0", False),
        ("5.10.0", "5.9.1", True),
        ("5.23.1", "5.23.0", True),
        ("5.23.0", "5.23.0", False),
        ("5.23.0.dev0", "5.23.0", False),
        ("4.57.1", "5.23.0", False),
        ("", "5.23.0", False),
        ("of our own", "5.23.0", False),
    ],
)
def test_a_checkpoint_that_a_newer_release_wrote_is_warned_of_once(caplog, tmp_path, written_by, release, warned):
    for _ in range(2):
        releases.warn_of_newer(tmp_path / "config.json", written_by, release)
    assert [written_by in line and release in line for line in caplog.messages] == [True] * warned


def test_the_version_is_that_of_config_json(caplog, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "transformers_version": "99.1.0"}))
    for _ in range(2):
        load_config(tmp_path)
    assert [line.split(" ", 1)[1] for line in caplog.messages] == [
        f"was written by transformers 99.1.0; this one, {transformers.__version__}, ignores what it does not know in "
        "it. To have all of it read: pip install 'transformers>=99.1.0'"
    ]


@pytest.mark.parametrize(
    ("written_by", "told"), [("99.1.0", "; 99.1.0 wrote it: pip install 'transformers>=99.1.0'"), ("5.0.0", "")]
)
def test_what_this_release_refuses_and_a_newer_one_wrote_is_told_with_that_one(tmp_path, written_by, told):
    config = {"model_type": "llava", "transformers_version": written_by, "text_config": {"model_type": "of_later"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load_config(tmp_path)
    message = str(caught.value)
    assert f"config.json is refused by transformers {transformers.__version__}: " in message
    assert ("pip install" in message) == bool(told)
    assert message.endswith(told)
