"""Layers by torch.compile: the numbers of plain ones, one compiled layer for all of them and for all sizes."""

import copy

import pytest
import torch
from answers import plain_flash
from PIL import Image
from torch._dynamo.utils import counters

from data_engine.errors import UserError
from data_engine.models import load_model
from data_engine.models.layers import compiled_layers, cpu_linear
from data_engine.models.layers.compiled_layers import compile_layers, layers_of
from data_engine.models.layers.merged_linear import merge_linears
from data_engine.questions.conversation import Conversation
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.requests import PromptRequest
from data_engine.scoring import answers_attention
from data_engine.scoring.logprobs import Scored, score_pass

# torch.compile takes seconds to look at a layer for the first time.
pytestmark = pytest.mark.slow

ANSWERS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [7, 7]]


@pytest.fixture(scope="module")
def models(goldens):
    """The same model twice; the second with layers that torch traced and did not compile further."""
    torch._dynamo.reset()
    counters.clear()
    plain, traced = (load_model(None, str(goldens / "llava/instruct"), device="cpu") for _ in range(2))
    assert compile_layers(traced, backend="eager") is None
    return plain, traced


def prompt_of(model, photo):
    return model.prompt(Conversation.of("What is it?"), [photo], True, 64)


def sampled(model, photo, most):
    asked = [PromptRequest(prompt_of(model, photo), [number, number + 7, number + 11]) for number in range(3)]
    return SamplingEngine(model, 6, 4, most).sample(asked, SamplingParams(max_new_tokens=6))


@pytest.fixture
def photo():
    return Image.linear_gradient("L").convert("RGB")


def test_log_probs_are_those_of_plain_layers(models, photo):
    found = [score_pass(model, [Scored(prompt_of(model, photo), ANSWERS)])[0] for model in models]
    for plain, traced in zip(*found, strict=True):
        torch.testing.assert_close(traced, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("most", [None, 4])
def test_answers_are_those_of_plain_layers(models, photo, most):
    """By the path of a CPU, and by that of a GPU."""
    plain, traced = (sampled(model, photo, most) for model in models)
    assert traced == plain


def test_all_layers_and_sizes_share_what_was_compiled_when_the_model_was_loaded(models, photo):
    _, traced = models
    made = counters["stats"]["unique_graphs"]
    assert len(layers_of(traced)) == 2
    # Of a layer, and for either kind of pass: before its attention and behind it, cut at each product that is packed.
    assert made <= 24, made
    for answers in (ANSWERS, [[3, 4, 5, 6]], [list(range(3, 90))]):
        score_pass(traced, [Scored(prompt_of(traced, photo), answers)])
    for most in (None, 4):
        sampled(traced, photo, most)
    assert counters["stats"]["unique_graphs"] == made


def test_scoring_by_flash_attention_takes_what_was_compiled_when_the_model_was_loaded(models, photo, monkeypatch):
    """As on a GPU in half precision: what attention hands on has the strides of a tensor of its shape."""
    _, traced = models
    monkeypatch.setattr(answers_attention, "has_flash", lambda *given: True)
    monkeypatch.setattr(answers_attention, "flash", plain_flash)
    made = counters["stats"]["unique_graphs"]
    score_pass(traced, [Scored(prompt_of(traced, photo), ANSWERS)])
    assert counters["stats"]["unique_graphs"] == made


def test_another_layer_is_another_layer_of_the_same_kind_to_the_compiler(goldens, monkeypatch):
    """Eight forms of a function are compiled, the others not: 32 layers must not be 32 forms."""
    made = []
    for number in (1, 2):
        torch._dynamo.reset()
        counters.clear()
        model = load_model(None, str(goldens / "llava/instruct"), device="cpu")
        monkeypatch.setattr(compiled_layers, "layers_of", lambda model, number=number: layers_of(model)[:number])
        assert compile_layers(model, backend="eager") is None
        made.append(counters["stats"]["unique_graphs"])
    assert made[0] == made[1] > 4


def test_prompts_run_by_the_layers_as_they_are(models, photo):
    made = counters["stats"]["calls_captured"]
    ends = [model.run_prompt(prompt_of(model, photo)).hidden_D for model in models]
    assert torch.equal(*ends)
    assert counters["stats"]["calls_captured"] == made


def test_merged_products_are_compiled_with_the_layer(goldens, photo, monkeypatch):
    """As on a GPU, where weights are not packed."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(cpu_linear, "pack_linears", lambda *given, **options: None)
    model = load_model(None, str(goldens / "llava/instruct"), device="cpu")
    asked = [Scored(prompt_of(model, photo), ANSWERS)]
    [plain] = score_pass(model, asked)
    assert merge_linears(model.decoder) == 2 * len(layers_of(model))
    assert compile_layers(model, backend="eager") is None
    made = counters["stats"]["unique_graphs"]
    [found] = score_pass(model, asked)
    torch.testing.assert_close(torch.cat(found), torch.cat(plain), rtol=0, atol=1e-5)
    sampled(model, photo, 4)
    assert counters["stats"]["unique_graphs"] == made <= 8


def test_what_cannot_be_compiled_says_why(models):
    plain = copy.copy(models[0])
    plain.is_split = True
    before = [layer.forward for layer in layers_of(plain)]
    assert "split over the ranks" in compile_layers(plain)
    assert [layer.forward for layer in layers_of(plain)] == before


# torch's own, where it imports its compiler.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_every_part_of_a_layer_is_compiled_without_a_choice_by_measuring(goldens, monkeypatch):
    """A norm's sum would follow from what was the fastest on one GPU in one moment."""
    from torch._inductor import compile_fx, config

    found = []

    def compiled(graph, inputs, config_patches=None, **others):
        with config.patch(config_patches or {}):
            found.append(config.deterministic)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compile_fx, "compile_fx", compiled)
    assert compile_layers(load_model(None, str(goldens / "llava/instruct"), device="cpu")) is None
    assert len(found) > 4
    assert all(found)


# torch's own, where it imports its compiler.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_machine_that_cannot_compile_is_told_so(goldens, monkeypatch):
    from torch._inductor import config as inductor

    model = load_model(None, str(goldens / "llava/reward"), device="cpu")
    torch._dynamo.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", ("/nowhere/c++",))
    with pytest.raises(UserError, match="--compile_layers is set, and torch cannot compile on this machine"):
        compile_layers(model)
