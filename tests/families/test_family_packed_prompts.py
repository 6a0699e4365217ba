"""Several prompts of a model of transformers in one row of its decoder leave what each leaves alone, bit for bit."""

from types import SimpleNamespace

import internvl_folders
import pytest
import torch
from asked import ASKED
from families import FAMILIES, named
from prompts import assert_same_prefix, logits_noted, one_a_pass
from test_family_packed_tower import Flash
from test_family_positions import prompt
from test_family_waits import LEFT, on_meta
from torch import nn

from data_engine.models import load_model
from data_engine.models.auto.forward import packed_prompts
from data_engine.models.layers.attention import DoesNotFit
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.models.layers.prefix import Prefix, run_prefix, run_prefixes
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import packing
from data_engine.sampling.native.packing import Packing, rows_for
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.requests import PromptRequest
from data_engine.scoring import logprobs
from data_engine.seeds import seed_for

# What else there is in the decoder of a family whose prompts run one by one.
ALONE = {
    "aria": "experts",
    "kimi_k25": "experts",
    "qwen3_vl_moe": "experts",
    "glm4v_moe": "experts",
    "ernie4_5_vl_moe": "experts",
    "step3p7": "experts, and a window of 16 tokens",
    "deepseek_ocr2": "experts",
    "llama4": "experts",
    "llama4_beyond": "experts",
    "lfm2_vl": "a state from token to token",
    "qwen3_5_moe": "experts, and a state from token to token",
    "lfm3_vl": "a state from token to token",
    "qwen3_5": "a state from token to token",
    "minicpmv4_7": "a state from token to token",
    "minicpm_ocr": "a state from token to token",
    "mllama": "layers for image states",
    "chameleon": "pictures, which become tokens in it",
    "molmo2": "masks of its own: pictures are seen in both directions",
    "gemma3": "masks of its own: pictures are seen in both directions",
    "gemma4": "embeddings by layer, and masks of its own",
    "gemma3n": "embeddings by layer",
    "paligemma": "masks of its own: the prompt is seen in both directions",
    "paligemma2": "masks of its own: the prompt is seen in both directions",
    "aya_vision": "a window of 16 tokens, which hides some of a tiny prompt",
    "exaone4_5": "a window of 16 tokens, which hides some of a tiny prompt",
    "cohere2_vision": "a window of 16 tokens, which hides some of a tiny prompt",
    "mistral4": "experts",
    "mistral_large4": "experts, and an index of keys",
    "dots3_note": "experts, a window of 16 tokens, and an index of keys",
    "inkling2": "experts, a window of 16 tokens, and a state from token to token",
    "inkling_mm_model": "experts, a window of 16 tokens, and a state from token to token",
    "nemotron_h_omni": "experts, and a state from token to token",
    "cohere_compass": "a window of 16 tokens, which hides some of a tiny prompt",
    "qwen3_omni_moe_thinker": "experts",
    "gemma4_unified": "masks of its own: pictures are seen in both directions",
    "minimax_m3_vl": "keys chosen by an index",
    "qwen4_exp": "keys chosen by an index",
    "glm5_next": "keys chosen by an index",
    "muse_spark": "experts, and a window of 16 tokens",
}
PACKED = [name for name in FAMILIES if name not in ALONE]
# Not phi3: its rotary table follows the longest prompt. Not qwen3_moe: experts.
OWN = [
    pytest.param(kind, marks=() if kind == "qwen2" else pytest.mark.families)
    for kind in internvl_folders.ARCHITECTURES
    if kind not in ("phi3", "qwen3_moe")
]
K, PARAMS = 2, SamplingParams(temperature=1.0, top_k=20, max_new_tokens=6)


def loaded(checkpoints, name: str, dtype: str = "float32"):
    """On the CPU wherever the suite runs: a GPU promises no bits, and is measured."""
    return load_model("auto", str(checkpoints(name).folder), device="cpu", dtype=dtype)


def prompts_of(model, names=ASKED) -> list:
    """Several images, one, none, and turns before the question."""
    return [prompt(model, ASKED[name]) for name in names]


def run_all(model, prompts) -> list[Prefix]:
    """In one pass, filled up with zeros."""
    return run_prefixes(model, prompts, rows_for([one.length for one in prompts]))


def assert_each_as_alone(model, names=ASKED) -> None:
    assert model.packs_prompts
    prompts = prompts_of(model, names)
    for order in (prompts, prompts[::-1]):
        for found, one in zip(run_all(model, order), order, strict=True):
            assert_same_prefix(found, run_prefix(model, one))


@pytest.mark.parametrize("name", named(PACKED))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts_in_one_pass_leave_what_each_leaves_alone(checkpoints, name, dtype):
    assert_each_as_alone(loaded(checkpoints, name, dtype), checkpoints(name).asked())


@pytest.mark.parametrize("kind", OWN)
def test_so_do_those_of_internvls_own_layout(tmp_path, one_thread, kind):
    folder = internvl_folders.write(tmp_path / "model", kind)
    assert_each_as_alone(load_model(None, str(folder), device="cpu", dtype="float32"))


@pytest.mark.parametrize(
    ("own", "packs"),
    [
        ({}, True),
        ({"is_split": True}, False),
        ({"answers_in_rows": True}, False),
        ({"layers": [LayerKind(1, 8, 8), LayerKind(1, 8, 8, cross=True)]}, False),
        ({"decoder": nn.ModuleDict({"experts": nn.Linear(8, 8)})}, False),
    ],
)
def test_each_of_these_alone_keeps_prompts_apart(own, packs):
    """Most families that have one have another as well."""
    plain = {"is_split": False, "answers_in_rows": False, "layers": [LayerKind(1, 8, 8)], "cache_layers": [object()]}
    model = SimpleNamespace(**{**plain, "decoder": nn.ModuleDict({"mlp": nn.Linear(8, 8)}), **own})
    assert packed_prompts.may_pack(model) == packs


@pytest.mark.parametrize("name", named(ALONE))
def test_a_family_whose_rows_meet_runs_its_prompts_one_by_one(checkpoints, name):
    assert not loaded(checkpoints, name).packs_prompts


@pytest.mark.families
def test_a_rotary_table_by_the_longest_prompt_keeps_prompts_apart(tmp_path, one_thread):
    folder = internvl_folders.write(tmp_path / "model", "phi3")
    assert not load_model(None, str(folder), device="cpu", dtype="float32").packs_prompts


@pytest.mark.parametrize("name", named(PACKED))
def test_what_is_left_of_a_prompt_keeps_no_other_alive(checkpoints, name):
    model = loaded(checkpoints, name)
    for found in run_all(model, prompts_of(model, checkpoints(name).asked())):
        kept = [found.end.hidden_D, *(part for noted in found.layers.values() for part in noted[:2])]
        assert [part.untyped_storage().nbytes() for part in kept] == [part.nbytes for part in kept]


@pytest.mark.parametrize("name", named(PACKED))
def test_answers_are_those_of_prompts_that_run_one_at_a_time(checkpoints, name, monkeypatch):
    """By the steps of a GPU."""
    model = loaded(checkpoints, name)
    prompts = prompts_of(model, checkpoints(name).asked())
    requests = [PromptRequest(one, [seed_for(0, number, of) for of in range(K)]) for number, one in enumerate(prompts)]
    passes, run = [], packing.run_prefixes
    monkeypatch.setattr(packing, "run_prefixes", lambda m, some, rows: passes.append(len(some)) or run(m, some, rows))

    def answers():
        with logits_noted() as logits:
            return SamplingEngine(model, 2 * len(prompts), len(prompts), K, 400).sample(requests, PARAMS), logits

    found, logits = answers()
    full, rest = divmod(len(prompts), 4)
    # Fewer where they are long.
    assert passes == ([3, 1, 1] if name == "got_ocr2" else [4] * full + [rest])
    passes.clear()
    one_a_pass(monkeypatch)
    expected, their_logits = answers()
    assert passes == [1] * len(prompts)
    assert found == expected
    assert logits.keys() == their_logits.keys()
    assert all(torch.equal(one, their_logits[at]) for at, one in logits.items())


@pytest.mark.parametrize("name", named(PACKED))
def test_answers_behind_prompts_of_one_pass_are_scored_as_behind_each(checkpoints, name, monkeypatch):
    model = loaded(checkpoints, name)
    asked = [logprobs.Scored(one, [[65, 66, 67], [68]]) for one in prompts_of(model, checkpoints(name).asked())]
    expected = [logprobs.score_pass(model, [one])[0] for one in asked]
    monkeypatch.setattr(logprobs, "prompts_together", lambda model: 3)
    found = logprobs.score_pass(model, asked)
    for mine, own in zip(found, expected, strict=True):
        assert all(map(torch.equal, mine, own))


@pytest.mark.parametrize("name", named([name for name in PACKED if name not in LEFT]))
def test_a_pass_of_prompts_asks_the_device_for_nothing(checkpoints, name, monkeypatch):
    """On tensors without values, of which the host can read none; what it sends goes by `sent` alone."""
    Flash(monkeypatch)
    model = loaded(checkpoints, name, "bfloat16")
    prompts = prompts_of(model, checkpoints(name).asked())
    with on_meta(model, monkeypatch):
        ends = model.run_prompts(prompts, rows_for([one.length for one in prompts]))
    assert {end.hidden_D.device.type for end in ends} == {"meta"}


def test_a_decoder_that_is_handed_something_else_runs_its_prompts_one_by_one(checkpoints, monkeypatch):
    model = loaded(checkpoints, "qwen2_5_vl")
    prompts, run = prompts_of(model), model.run_forward

    def handed(prompt, cache):
        hook = lambda module, args, options: (args, options | {"per_layer_inputs": torch.zeros(1)})  # noqa: E731
        with model.decoder.register_forward_pre_hook(hook, with_kwargs=True, prepend=True):
            return run(prompt, cache)

    monkeypatch.setattr(model, "run_forward", handed)
    with pytest.raises(DoesNotFit, match="called with per_layer_inputs"):
        run_all(model, prompts)
    assert not model.packs_prompts
    many = Packing(model)
    monkeypatch.setattr(many, "agree", lambda lengths: True)
    assert many.run(prompts, 10**6) == []
    assert not many.may_go([61, 61], 10**6)
    assert many.may_go([61], 10**6)


def test_a_pass_that_leaves_other_numbers_is_not_taken(checkpoints, monkeypatch):
    """Such as positions that go on from one prompt to the next."""
    model, joined = loaded(checkpoints, "qwen2_5_vl"), packed_prompts._joined

    def counting_on(fronts, num_rows):
        given = joined(fronts, num_rows)
        return given | {"position_ids": torch.arange(num_rows).expand_as(given["position_ids"])}

    monkeypatch.setattr(packed_prompts, "_joined", counting_on)
    assert not model.packs_prompts


def test_nor_is_one_behind_which_answers_would_go_on_elsewhere(checkpoints, monkeypatch):
    model, checked = loaded(checkpoints, "qwen2_5_vl"), packed_prompts._checked
    monkeypatch.setattr(packed_prompts, "_checked", lambda *given: checked(*given)._replace(next_position=7))
    assert not model.packs_prompts


def test_memory_that_runs_out_in_the_trial_says_nothing_of_the_model(checkpoints, monkeypatch):
    model = loaded(checkpoints, "qwen2_5_vl")

    def full(fronts, num_rows):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(packed_prompts, "_joined", full)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        model.packs_prompts  # noqa: B018
