"""The head of a reward model in the files of a checkpoint: where it may stand, and what is refused by name."""

import json
import re
import shutil

import judges
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_engine import load_model
from data_engine.models import check
from data_engine.models.auto.weights.value_head import ValueHead
from data_engine.models.checkpoints.checkpoint import content_files
from data_engine.models.checkpoints.json_files import ModelError

WIDTH = 64
HEAD = judges.head(WIDTH)
WEIGHT, BIAS = HEAD["v_head.summary.weight"], HEAD["v_head.summary.bias"]
HIDDEN = torch.arange(2 * WIDTH).reshape(2, WIDTH) / 100
CPU = torch.device("cpu")


@pytest.fixture
def plain(checkpoints):
    return checkpoints("internvl").folder


def apart(plain, to, tensors):
    """A checkpoint whose head lies in a file of its own, as in Skywork-VL-Reward-7B."""
    shutil.copytree(plain, to)
    save_file(tensors, to / "value_head.safetensors")
    return to


def test_a_head_gives_the_number_that_is_worked_out_by_hand():
    # 0.5 x 1 + 2 x -1 + 0.25 and 0 x 1 + 1 x -1 + 0.25
    head = ValueHead(torch.tensor([1.0, -1.0]), torch.tensor([0.25]))
    assert head(torch.tensor([[0.5, 2.0], [0.0, 1.0]])).tolist() == [-1.25, -0.75]
    # In fp32, whatever the model's numbers are: 1 + 2 ** -10 is none of bfloat16.
    head = ValueHead(torch.tensor([1 + 2**-10, 0.0]), torch.zeros(1))
    assert head(torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)).item() == 1 + 2**-10


@pytest.mark.parametrize(
    "place",
    ["among the weights", "in a file of its own", "in a file of the index", "of a sequence classifier", "in bfloat16"],
)
def test_a_head_is_read_where_trainers_save_it(plain, tmp_path, place):
    bias = 0.25
    if place == "in a file of its own":
        folder = apart(plain, tmp_path / "scalar", HEAD)
    elif place == "in a file of the index":
        folder = apart(plain, tmp_path / "scalar", HEAD)
        shard = (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        names = dict.fromkeys(load_file(shard), shard.name) | dict.fromkeys(HEAD, "value_head.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    elif place == "of a sequence classifier":
        folder, bias = judges.with_tensors(plain, tmp_path / "scalar", {"score.weight": WEIGHT}), 0.0
    elif place == "in bfloat16":
        halves = {name: value.bfloat16() for name, value in HEAD.items()}
        folder = judges.with_tensors(plain, tmp_path / "scalar", halves)
    else:
        folder = judges.with_tensors(plain, tmp_path / "scalar", HEAD)
    check.check_weights(folder, "auto", headed=True)
    found = ValueHead.load(folder, WIDTH, CPU)(HIDDEN)
    weight = WEIGHT.bfloat16().float() if place == "in bfloat16" else WEIGHT
    torch.testing.assert_close(found, HIDDEN @ weight[0] + bias)


def test_a_run_is_bound_to_a_head_in_a_file_of_its_own(plain, tmp_path):
    folder = apart(plain, tmp_path / "scalar", HEAD)
    assert folder / "value_head.safetensors" in content_files(folder)


REFUSED = {
    "none": (
        {},
        "has no head of a reward model: expected v_head.summary.weight and v_head.summary.bias, or score.weight",
    ),
    "half": ({"v_head.summary.weight": WEIGHT}, "has v_head.summary.weight, but no v_head.summary.bias"),
    "too narrow": (
        HEAD | {"v_head.summary.weight": WEIGHT[:, :60]},
        "weight v_head.summary.weight in .* has shape [1, 60]: the head of a reward model gives one number of a "
        "hidden state, here [1, 64]",
    ),
    "two numbers": ({"score.weight": WEIGHT.expand(2, -1).clone()}, "weight score.weight in .* has shape [2, 64]"),
    "twice": (HEAD | {"score.weight": WEIGHT}, "has two heads, v_head.summary.weight and score.weight: remove one"),
    "packed": ({"score.weight": WEIGHT.to(torch.int32)}, "weight score.weight in .* is stored as I32"),
    "another kind": (
        HEAD | {"v_head.dense.weight": WEIGHT},
        "holds v_head.dense.weight, which neither the model nor the head of a reward model",
    ),
}


def pattern(told: str) -> str:
    return ".*".join(map(re.escape, told.split(".*")))


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_cannot_be_used_is_an_error_by_name_before_and_while_it_is_loaded(plain, tmp_path, name):
    tensors, told = REFUSED[name]
    folder = judges.with_tensors(plain, tmp_path / "scalar", tensors)
    with pytest.raises(ModelError, match=pattern(told)):
        check.check_weights(folder, "auto", headed=True)
    with pytest.raises(ModelError, match=pattern(told)):
        load_model("auto", str(folder), device="cpu", headed=True)


@pytest.mark.parametrize(
    ("inside", "outside", "told"),
    [
        (HEAD, HEAD, "v_head.summary.bias stands in two files"),
        ({}, HEAD | {"v_head.other": BIAS.clone()}, "unexpected weight v_head.other in"),
    ],
)
def test_a_file_of_its_own_must_hold_the_head_alone_and_the_only_one(plain, tmp_path, inside, outside, told):
    folder = judges.with_tensors(plain, tmp_path / "scalar", inside)
    save_file(outside, folder / "value_head.safetensors")
    with pytest.raises(ModelError, match=told):
        check.check_weights(folder, "auto", headed=True)


def test_the_output_layer_alone_may_be_missing_and_of_a_reward_model_alone(plain, tmp_path):
    folder = judges.with_tensors(plain, tmp_path / "scalar", HEAD, ("lm_head.weight",))
    check.check_weights(folder, "auto", headed=True)
    with pytest.raises(ModelError, match=r"lacks lm_head\.weight"):
        check.check_weights(folder, "auto")
    inner = next(name for name in load_file(folder / "model.safetensors") if name.endswith("q_proj.weight"))
    lacking = judges.with_tensors(folder, tmp_path / "lacking", {}, (inner,))
    with pytest.raises(ModelError, match=r"lacks .*q_proj\.weight"):
        check.check_weights(lacking, "auto", headed=True)


def test_weights_that_a_model_does_not_use_are_told(plain, tmp_path, caplog):
    """Those of a reward model's head, where it is to answer."""
    folder = judges.with_tensors(plain, tmp_path / "scalar", HEAD)
    load_model(None, str(folder), device="cpu", dtype="float32")
    told = "holds weights that the model does not use: v_head.summary.bias, v_head.summary.weight"
    assert [one for one in caplog.messages if "not use" in one] == [f"{folder} {told}"]
