"""Adapters of models in InternVL's own layout, trained on its modules: packed ones are changed, and then split."""

import re
import shutil

import adapters
import internvl_folders
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_family_split import by_two_ranks

from data_engine.job.checkpoints import Checkpoint
from data_engine.models.auto.text.chat import Chat
from data_engine.models.auto.weights.loading import check_weights, load_weights
from data_engine.models.checkpoints.adapter_folder import laid_together, model_folder
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.questions.conversation import Conversation
from data_engine.store.file_hashes import hash_files

CPU = torch.device("cpu")
# As trainers name the modules of InternVL's remote code: packed ones of tower and decoder, experts, projector, head.
MATRICES = r"(attn\.qkv|attention\.wqkv|qkv_proj|gate_up_proj|[qv]_proj|up_proj|wo|w2|mlp1\.3|lm_head|output)\.weight$"
WHOLE = re.compile(r"mlp1\.(0|1)\.")


def write(folder, base, seed=3):
    """An adapter of those modules, and the base with what the formula makes of it, tensor by tensor."""
    before = load_file(base / "model.safetensors")
    pairs = adapters.matrices({name: value for name, value in before.items() if re.search(MATRICES, name)}, seed=seed)
    whole = {name: torch.full_like(value, 0.3) for name, value in before.items() if WHOLE.match(name)}
    assert {"vision_model", "language_model"} <= {name.split(".")[0] for name in pairs}
    assert len(whole) == 4
    stored = adapters.stored(pairs) | {f"base_model.model.{name}": value for name, value in whole.items()}
    adapters.write(folder, base, stored, modules_to_save=["mlp1.0", "mlp1.1"])
    merged = {name: adapters.added(before[name], *pair) for name, pair in pairs.items()}
    return folder, before | merged | whole


@pytest.mark.parametrize("kind", ["internlm2", "phi3", "qwen2", "qwen3_moe"])
def test_an_adapter_gives_the_weights_of_the_folder_merged_by_hand(tmp_path, kind):
    base = internvl_folders.write(tmp_path / "base", kind)
    adapter, merged = write(tmp_path / "adapter", base)
    by_hand = shutil.copytree(base, tmp_path / "merged")
    save_file(merged, by_hand / "model.safetensors", {"format": "pt"})
    folder = model_folder(str(adapter))
    check_weights(folder)
    found, expected, bare = (load_weights(one, CPU, torch.float32).state_dict() for one in (folder, by_hand, base))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    moved = {name for name in found if not torch.equal(found[name], bare[name])}
    assert {name for name in moved if "vision_tower.encoder.layer.0.attention.k_proj" in name}
    assert {name for name in moved if "language_model.layers.1." in name}
    # In half precision the sum is made in fp32 and cast once.
    halves = load_weights(folder, CPU, torch.bfloat16).state_dict()
    assert all(torch.equal(halves[name], expected[name].bfloat16()) for name, _ in found.items() if "_proj" in name)


def test_the_conversation_py_of_the_adapter_is_read_and_bound_in_the_place_of_the_bases(tmp_path):
    """The base says what 2 says, the adapter what 1.5 does."""
    base = internvl_folders.write(tmp_path / "base", "internlm2")
    adapter, _ = write(tmp_path / "adapter", base)
    before, of_base = Checkpoint.find(str(adapter)).fingerprint(hash_files), _asked(base)
    assert f"system\n{internvl_folders.EARLIER}<|im_end|>" in of_base
    laid_together.cache_clear()
    internvl_folders.write_conversations(adapter, "1.5")
    assert _asked(model_folder(str(adapter))) == of_base.replace(
        internvl_folders.EARLIER, "You are an AI assistant whose name is InternLM (书生·浦语)."
    )
    assert Checkpoint.find(str(adapter)).fingerprint(hash_files) != before


def _asked(folder):
    return Chat.load(folder)._template.render(Conversation.of("How many?", 0))


@pytest.mark.families
def test_two_ranks_that_share_models_with_adapters_answer_and_score_as_whole_ones(checkpoints, tmp_path):
    """In InternVL's own layout, and in transformers'."""
    folders = []
    for kind in ("internlm2", "qwen3_moe"):
        adapter, _ = write(tmp_path / f"{kind}-adapter", internvl_folders.write(tmp_path / kind, kind))
        folders.append(adapter)
    base = checkpoints("qwen2_5_vl").folder
    found = {name: value for name, value in load_file(base / "model.safetensors").items()
             if re.search(r"(q_proj|qkv|lm_head)\.weight$", name)}  # fmt: skip
    folders.append(adapters.write(tmp_path / "other", base, adapters.stored(adapters.matrices(found))))
    for line in by_two_ranks(folders):
        (ids, logps), (whole_ids, whole_logps) = line["split"], line["whole"]
        assert ids == whole_ids, line["folder"]
        for ours, theirs in zip(logps, whole_logps, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5), line["folder"]
        assert line["held"][0] > line["all"] / 2


MISFITS = {
    "transformers' names": (
        "model.language_model.layers.0.self_attn.q_proj", (64, 64), "changes model.language_model.layers.0.self_attn",
    ),
    "a part of a packed one": (
        "vision_model.encoder.layers.0.attn.q_proj", (32, 32), "changes vision_model.encoder.layers.0.attn.q_proj",
    ),
    "another width": (
        "vision_model.encoder.layers.0.attn.qkv", (90, 32), "is for a weight of shape [90, 32], which has shape [96, 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_an_adapter_of_other_modules_is_refused_by_the_check_and_by_loading(tmp_path, name):
    module, shape, told = MISFITS[name]
    base = internvl_folders.write(tmp_path / "base", "qwen2")
    pair = adapters.matrices({f"{module}.weight": torch.zeros(shape)})
    folder = model_folder(str(adapters.write(tmp_path / "adapter", base, adapters.stored(pair))))
    for act in (check_weights, lambda folder: load_weights(folder, CPU, torch.float32)):
        with pytest.raises(ModelError, match=re.escape(told)):
            act(folder)
