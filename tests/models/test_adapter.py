"""Adapters merged by the families that read their weights themselves: what the formula gives, to the bit."""

import math
import re
import shutil

import adapters
import pytest
import torch
from folders import edit, replace_weights, weights

from data_engine.models import family_class
from data_engine.models.checkpoints.adapter import Adapter
from data_engine.models.checkpoints.adapter_folder import model_folder
from data_engine.models.native.llava import TOWER_NAMES
from data_engine.models.registry import family_of


@pytest.fixture(autouse=True)
def tower(request, goldens, tmp_path):
    """Copies of checkpoints find CLIP beside them, as the goldens do."""
    if "folder" not in request.fixturenames:
        (tmp_path / "openai").symlink_to(goldens / "llava/openai")


OTHERS = ("down_proj", "fc1", "out_proj")


def parameters(path, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """As they are loaded; load_model packs them in the end."""
    folder = model_folder(str(path))
    family = family_class(family_of(folder))
    return dict(family.load(folder, torch.device("cpu"), dtype)._modules.named_parameters())


def assert_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def whole(base, folder, changed):
    """A copy of the base with some weights replaced, in fp32."""
    shutil.copytree(base, folder)
    replace_weights(folder, {**weights(base), **changed})
    return folder


def adapted(found: dict[str, torch.Tensor], kinds=("q_proj", "v_proj")) -> dict[str, torch.Tensor]:
    """The weights of these modules, wherever they stand."""
    return {name: value for name, value in found.items() if re.search(rf"({'|'.join(kinds)})\.weight$", name)}


@pytest.mark.parametrize("kinds", [("q_proj", "v_proj"), OTHERS], ids=["the tower too", "others"])
@pytest.mark.parametrize("by_root", [False, True], ids=["", "rslora"])
def test_a_llava_in_its_original_layout(goldens, tmp_path, kinds, by_root):
    """The tower is caught as well, its last layer, of which no output is used, included."""
    base = goldens / "llava/reward"
    pairs = adapters.matrices(adapted(weights(base), kinds))
    assert any("vision_tower" in name for name in pairs)
    assert any("encoder.layers.2" in name for name in pairs)
    adapter = adapters.write(tmp_path / "adapter", base, adapters.stored(pairs), use_rslora=by_root)
    scale = adapters.ALPHA / (math.sqrt(adapters.RANK) if by_root else adapters.RANK)
    changed = {name: adapters.added(weights(base)[name], *pair, scale) for name, pair in pairs.items()}
    found = parameters(adapter)
    assert_same(found, parameters(whole(base, tmp_path / "whole", changed)))
    differing = [name for name, value in parameters(base).items() if not torch.equal(value, found[name])]
    assert len(differing) == len([name for name in pairs if "encoder.layers.2" not in name])


@pytest.mark.parametrize("theirs", ["language_model.model.", "model.language_model."], ids=["old", "new"])
@pytest.mark.parametrize("stored", ["language_model.model.", "model.language_model."], ids=["old base", "new base"])
def test_a_llava_in_the_layouts_of_transformers(folder, tmp_path, theirs, stored):
    """Adapters have the names of the transformers that trained them, whatever those in the base's files are."""
    to_transformers(folder, stored)
    base = weights(folder)
    pairs = adapters.matrices(adapted(base))
    names = {name: name.replace(stored, theirs) for name in pairs}
    tensors = adapters.stored({names[name]: pair for name, pair in pairs.items()})
    head = "language_model.lm_head" if theirs.startswith("language") else "lm_head"
    tensors[f"base_model.model.{head}.weight"] = torch.ones(1000, 64)
    adapter = adapters.write(tmp_path / "adapter", folder, tensors, modules_to_save=["lm_head"])
    changed = {name: adapters.added(base[name], *pair) for name, pair in pairs.items()}
    [ours] = [name for name in base if name.endswith("lm_head.weight")]
    expected = parameters(whole(folder, tmp_path / "whole", changed | {ours: torch.ones(1000, 64)}))
    assert_same(parameters(adapter), expected)


def to_transformers(folder, decoder: str) -> None:
    """The copy of the goldens' checkpoint in the layout of transformers, its tower inside."""
    import json

    from safetensors.torch import load_file

    head = "language_model." if decoder.startswith("language") else ""
    tower = folder.parent / "openai/clip-vit-large-patch14-336"
    renames = ((r"^model\.mm_projector\.0", "multi_modal_projector.linear_1"),
               (r"^model\.mm_projector\.2", "multi_modal_projector.linear_2"),
               (r"^lm_head", f"{head}lm_head"), (r"^model\.", decoder))  # fmt: skip
    found = {}
    for name, value in weights(folder).items():
        new = next((re.sub(old, new, name) for old, new in renames if re.search(old, name)), name)
        found[new] = value
    for name, value in load_file(tower / "model.safetensors").items():
        if TOWER_NAMES.match(name):
            found[f"vision_tower.vision_model.{TOWER_NAMES.sub('', name)}"] = value
    raw, vision = json.loads((folder / "config.json").read_text()), json.loads((tower / "config.json").read_text())
    edit(folder / "config.json", text_config={**raw, "model_type": "llama"},
         vision_config=vision.get("vision_config", vision), model_type="llava")  # fmt: skip
    (folder / "model.safetensors.index.json").unlink()
    replace_weights(folder, found)


def test_an_omnilmm_its_tower_and_resampler_included(goldens, tmp_path):
    base = goldens / "omnilmm/instruct"
    pairs = adapters.matrices(adapted(weights(base), ("q_proj", "qkv", "kv_proj", "lm_head")))
    assert len(pairs) == 2 + 3 + 1 + 1
    adapter = adapters.write(tmp_path / "adapter", base, adapters.stored(pairs))
    changed = {name: adapters.added(weights(base)[name], *pair) for name, pair in pairs.items()}
    assert_same(parameters(adapter), parameters(whole(base, tmp_path / "whole", changed)))


@pytest.mark.parametrize("by_root", [False, True], ids=["", "rslora"])
def test_ranks_and_factors_by_patterns_of_modules(goldens, tmp_path, by_root):
    base = goldens / "llava/reward"
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight",
             "model.layers.0.self_attn.v_proj.weight", "model.layers.1.mlp.up_proj.weight")  # fmt: skip
    found = {name: weights(base)[name] for name in names}
    # The first pattern that fits counts; one that has only a part of a module's name does not.
    ranks = {"layers.1.self_attn.q_proj": 7, "q_proj": 2, "proj": 40}
    alphas = {r"model.layers.\d.self_attn.v_proj": 9.5, "^up_proj": 11}
    each = dict(zip(names, ((2, 5), (7, 5), (3, 9.5), (3, 5)), strict=True))
    pairs = {name: adapters.matrices({name: found[name]}, each[name][0])[name] for name in names}
    settings = {"rank_pattern": ranks, "alpha_pattern": alphas, "use_rslora": by_root}
    adapter = adapters.write(tmp_path / "adapter", base, adapters.stored(pairs), **settings)
    scales = {name: alpha / (math.sqrt(rank) if by_root else rank) for name, (rank, alpha) in each.items()}
    changed = {name: adapters.added(found[name], *pairs[name], scales[name]) for name in names}
    assert_same(parameters(adapter), parameters(whole(base, tmp_path / "whole", changed)))


def test_a_pattern_may_have_the_name_that_a_module_has_in_the_model_now(goldens, tmp_path):
    """Releases of transformers that rename modules save an adapter's tensors under the former names."""
    base = goldens / "llava/reward"
    name = "model.layers.0.self_attn.q_proj.weight"
    stored = adapters.stored(adapters.matrices({name: weights(base)[name]}, 2))
    patterns = {"rank_pattern": {"decoder.layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"decoder.*": 7}}
    adapter = adapters.write(tmp_path / "adapter", base, stored, **patterns)
    renamed = name.replace("model.", "decoder.")
    [change] = Adapter.of(model_folder(str(adapter))).changes({renamed: (64, 64)}, lambda _: renamed).values()
    assert change.scale == 7 / 2


def test_modules_that_were_trained_whole_and_tables_of_embeddings(goldens, tmp_path):
    """As peft names them, and as trainers of the original LLaVA save a projector: in a file of its own."""
    base = goldens / "llava/reward"
    table = weights(base)["model.embed_tokens.weight"]
    # [rank, ids] and [width, rank]: the product is the table on its side.
    a, b = adapters.matrices({"table": table.T})["table"]
    projector, bias, norm = torch.randn(64, 64), torch.randn(64), torch.randn(64)
    tensors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": a,
        "base_model.model.model.embed_tokens.lora_embedding_B": b,
        "base_model.model.model.mm_projector.2.weight": projector,
        "base_model.model.model.norm.modules_to_save.weight": norm,
    }
    adapter = adapters.write(tmp_path / "adapter", base, tensors, modules_to_save=["mm_projector.2", "norm"])
    torch.save({"base_model.model.model.mm_projector.2.bias": bias}, adapter / "non_lora_trainables.bin")
    changed = {
        "model.embed_tokens.weight": adapters.added(table.T, a, b).T.contiguous(), "model.norm.weight": norm,
        "model.mm_projector.2.weight": projector, "model.mm_projector.2.bias": bias,
    }  # fmt: skip
    assert_same(parameters(adapter), parameters(whole(base, tmp_path / "whole", changed)))


def test_embeddings_and_head_that_peft_saved_with_the_weights_below_their_matrices(goldens, tmp_path):
    """It does so wherever one of them is among target_modules. The sum is made on what is saved, not on the base's."""
    base = goldens / "llava/reward"
    found = weights(base)
    table, head = found["model.embed_tokens.weight"] + 1, found["lm_head.weight"] - 1
    (a, b), (head_a, head_b) = adapters.matrices({"table": table.T, "head": head}).values()
    model = "base_model.model"
    tensors = {
        f"{model}.model.embed_tokens.base_layer.weight": table, f"{model}.lm_head.base_layer.weight": head,
        f"{model}.model.embed_tokens.lora_embedding_A": a, f"{model}.model.embed_tokens.lora_embedding_B": b,
        f"{model}.lm_head.lora_A.weight": head_a, f"{model}.lm_head.lora_B.weight": head_b,
    }  # fmt: skip
    adapter = adapters.write(tmp_path / "adapter", base, tensors, target_modules=["embed_tokens", "lm_head"])
    changed = {
        "model.embed_tokens.weight": adapters.added(table.T, a, b).T.contiguous(),
        "lm_head.weight": adapters.added(head, head_a, head_b),
    }
    assert_same(parameters(adapter), parameters(whole(base, tmp_path / "whole", changed)))


def test_the_sum_is_in_fp32_and_cast_once(goldens, tmp_path):
    base = goldens / "llava/reward"
    pairs = adapters.matrices(adapted(weights(base)))
    half = {name: (a.bfloat16(), b.bfloat16()) for name, (a, b) in pairs.items()}
    adapter = adapters.write(tmp_path / "adapter", base, adapters.stored(half))
    changed = {name: adapters.added(weights(base)[name], *pair) for name, pair in half.items()}
    expected = parameters(whole(base, tmp_path / "whole", changed), torch.bfloat16)
    assert all(value.dtype == torch.bfloat16 for value in expected.values())
    assert_same(parameters(adapter, torch.bfloat16), expected)


def test_an_adapter_in_a_bin_and_one_whose_tensors_carry_its_name(goldens, tmp_path):
    base = goldens / "llava/reward"
    pairs = adapters.matrices(adapted(weights(base)))
    tensors = adapters.stored(pairs)
    expected = parameters(adapters.write(tmp_path / "one", base, tensors))
    adapter = adapters.write(tmp_path / "other", base, {})
    (adapter / "adapter_model.safetensors").unlink()
    named = {name.replace(".weight", ".default.weight"): value for name, value in tensors.items()}
    torch.save(named, adapter / "adapter_model.bin")
    assert_same(parameters(adapter), expected)


def test_the_files_of_the_base_stay_as_they_are(goldens, tmp_path):
    base = shutil.copytree(goldens / "llava/reward", tmp_path / "base")
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    pairs = adapters.matrices(adapted(weights(base)))
    parameters(adapters.write(tmp_path / "adapter", base, adapters.stored(pairs)))
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before
