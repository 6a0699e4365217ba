"""What layers of other models do beside plain attention, in a scoring pass: windows, softcaps, sinks, image states."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from answers import Options, check_on, chunks, dense, drawn, laid_out, one_token, question, window
from torch import Tensor
from transformers import masking_utils

from data_engine.models.layers.attention import DoesNotFit, LayerCall, Seen
from data_engine.scoring import answers_attention
from data_engine.scoring.answers_attention import AnswersBehindPrefixes
from data_engine.scoring.logprobs import _Rows

HEADS = (6, 2)
# Sinks that take a small and a large share.
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0, -4.0])


@pytest.fixture(autouse=True)
def with_flash(monkeypatch):
    """As on a GPU in half precision; none of these layers may take flash attention, which knows nothing of them."""
    monkeypatch.setattr(answers_attention, "has_flash", lambda *a: True)
    monkeypatch.setattr(answers_attention, "flash", lambda *a: pytest.fail("flash attention was taken"))


@pytest.mark.parametrize(
    "options",
    [
        # Of the three questions, one, two, or all are shorter than the window, and the shortest hides the whole prefix.
        window(5), window(16), window(40), chunks(8), chunks(60),
        Options(softcap=2.0), Options(sinks=SINKS), replace(window(16), softcap=2.0, sinks=SINKS),
    ],
    ids=["window 5", "window 16", "window 40", "chunks 8", "chunks 60", "softcap", "sinks", "all of them"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_is_one_softmax_over_what_it_sees(options, dtype):
    """Both where the model is in fp32, and where it is not; keys and values of one width."""
    questions = [question(50, (7, 1, 30), 2), question(9, (4,), 2), question(3, (11, 2), 2)]
    parts = drawn(questions, HEADS)
    found = laid_out(questions, parts, options, dtype)
    torch.testing.assert_close(found, dense(questions, parts, options), rtol=0, atol=1e-5)
    usual = dense(questions, parts, Options())
    assert float((found - usual).abs().max()) > 0.05, "the option changes nothing here"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [Options(softcap=50.0), replace(window(16), softcap=50.0), replace(window(40), softcap=50.0, sinks=SINKS)],
)
def test_in_half_precision_scores_and_sums_are_not_rounded(options, dtype):
    """With a softcap, CPU goes the way of a GPU, which has no other for these layers."""
    questions = [question(50, (7, 1, 30), 2, 64, 64), question(9, (4,), 2, 64, 64)]
    check_on(questions, drawn(questions, HEADS, 64, 64), options, torch.device("cpu"), dtype)


def test_keys_and_values_may_differ_in_width():
    questions = [question(20, (3, 5), 2, 24, 8), question(9, (4,), 2, 24, 8)]
    parts = drawn(questions, HEADS, 24, 8)
    found = laid_out(questions, parts, Options())
    assert found.shape == (1, 6, 12, 8)
    torch.testing.assert_close(found, dense(questions, parts, Options()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [window(64), chunks(64)], ids=["window", "chunks"])
def test_a_window_that_hides_nothing_is_none(options, monkeypatch):
    """The longest sequence of the two has 64 tokens: the layer may take flash attention."""
    questions = [question(50, (14, 3), 2), question(9, (4,), 2)]
    parts = drawn(questions, HEADS)
    taken = []
    monkeypatch.setattr(answers_attention, "flash", lambda query, *a: taken.append(1) or (query, query[..., 0].T))
    laid_out(questions, parts, options)
    assert len(taken) == 2
    # One token more, and it hides one.
    questions = [question(50, (15, 2), 2), question(9, (4,), 2)]
    laid_out(questions, parts, options)
    assert len(taken) == 2


@pytest.mark.parametrize("sinks", [None, SINKS], ids=["no sinks", "sinks"])
@pytest.mark.parametrize("hidden", [(), (0, 3)], ids=str)
def test_a_layer_that_looks_at_image_states_sees_those_of_its_question_alone(hidden, sinks):
    """Of 7 and 4 states; some of them may be hidden, as those of padding are. The answer itself is not seen."""
    bias = torch.zeros(1, 7).index_fill_(1, torch.tensor(hidden, dtype=torch.long), -torch.inf)
    questions = [
        question(20, (3, 5), 2, cross=True, states=7, bias=bias if hidden else None),
        question(9, (4,), 2, cross=True, states=4),
    ]
    options = Options(sinks=sinks)
    parts = drawn(questions, HEADS)
    found = laid_out(questions, parts, options)[0]
    number, seen = 0, [[state for state in range(7) if state not in hidden], list(range(4))]
    for one, states in zip(questions, seen, strict=True):
        keys, values, *_ = one.prefix.layers[0]
        for _ in range(sum(one.lengths)):
            wanted = one_token(parts[0][0, :, number], keys[:, states], values[:, states], options).float()
            torch.testing.assert_close(found[:, number], wanted, rtol=0, atol=1e-5)
            number += 1
    assert number == found.shape[1]


@pytest.mark.parametrize("options", [Options(), window(6), Options(sinks=SINKS)], ids=["plain", "window", "sinks"])
def test_answers_as_rows_are_answers_in_a_row(options, instruct, monkeypatch):
    """The layout of models with recurrent states, whose answers are rows of one length: three of 5 tokens."""
    monkeypatch.setattr(answers_attention, "has_flash", lambda *a: False)
    one = question(20, (5, 5, 5), 2)
    parts = drawn([one], HEADS)
    # [1, H, 3 x 5, D] -> [3, H, 5, D]
    rows = [part[0].unflatten(1, (3, 5)).transpose(0, 1) for part in parts]
    found = _Rows(one, instruct).attend(options.call(*rows))
    wanted = dense([one], parts, options)[0].unflatten(1, (3, 5)).transpose(0, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 6, 4096])
def test_a_sliding_window_is_known_by_its_function(tokens):
    assert Seen(masking_utils.sliding_window_causal_mask_function(tokens), tokens).sliding == tokens


def _others(tokens: int) -> dict[str, Callable]:
    """Functions that are no sliding window of that many tokens, some of which look like it."""
    sliding, causal = masking_utils.sliding_window_causal_mask_function, masking_utils.causal_mask_function
    window = masking_utils.sliding_window_overlay(tokens)
    padding = masking_utils.padding_mask_function(torch.ones(1, 100, dtype=torch.bool))
    return {
        "another window": sliding(tokens + 1),
        "causal": causal,
        "no causal one": window,
        "chunks": masking_utils.chunked_causal_mask_function(tokens, torch.zeros(1, dtype=torch.long)),
        "both directions": masking_utils.sliding_window_bidirectional_mask_function(tokens),
        "with padding": masking_utils.and_masks(sliding(tokens), padding),
        "with blocks": masking_utils.or_masks(sliding(tokens), lambda batch, head, query, key: query < 5),
        "either": masking_utils.or_masks(window, causal),
        "by hand": lambda batch, head, query, key: (key > query - tokens) & (key <= query),
    }


@pytest.mark.parametrize("name", _others(6))
def test_no_other_mask_is_taken_for_a_sliding_window(name):
    """That of a model's own is not either: what it goes by is not known."""
    assert Seen(_others(6)[name], 6).sliding is None


def test_a_mask_without_a_window_slides_not():
    assert Seen(masking_utils.causal_mask_function, None).sliding is None


def test_a_mask_of_another_kind_without_a_window_may_hide_something_in_any_sequence():
    """As one by which the tokens of a picture see each other does."""
    assert not Seen(_others(6)["with blocks"], None).sees_all(1)
    assert Seen(masking_utils.causal_mask_function, None).sees_all(10**6)


def test_a_mask_is_described_once_for_all_layers(monkeypatch):
    """What a token does not see of its prefix is worked out once, whatever the number of layers."""
    questions, counted, bias = [question(50, (7, 30), 2)], [], Seen.bias
    monkeypatch.setattr(
        Seen, "bias", lambda seen, queries, keys: counted.append(keys.shape) or bias(seen, queries, keys)
    )
    questions[0].prefix.layers[1] = questions[0].prefix.layers[0]
    layout = AnswersBehindPrefixes(questions, torch.device("cpu"), torch.float32)
    call = window(5).call(*drawn(questions, HEADS))
    for layer in (0, 1):
        layout.attend(replace(call, layer=layer))
    assert counted.count((1, 50)) == 1


def test_a_mask_that_the_model_made_itself_does_not_fit():
    questions = [question(20, (3, 5), 2)]
    call: LayerCall = Options().call(*drawn(questions, HEADS))
    layout = AnswersBehindPrefixes(questions, torch.device("cpu"), torch.float32)
    mask: Tensor = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    with pytest.raises(DoesNotFit, match="masks of its own"):
        layout.attend(replace(call, mask=mask))
