"""Attention of a decode step, in plain torch and as one operation, against one softmax a row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from answers import Options, chunks, keys_seen, one_token, window
from torch import Tensor
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from data_engine.models.answer_cache import RowStates, answer_cache, is_recurrent, repeated
from data_engine.models.attention import DoesNotFit, LayerCall, Noted
from data_engine.models.base import LayerKind, PromptEnd
from data_engine.models.head import Head
from data_engine.models.prefix import Prefix
from data_engine.sampling.backend import BackendSettings
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import backend
from data_engine.sampling.native.backend import uses_kernels
from data_engine.sampling.native.cpu_attention import EagerRows, Lanes, runs
from data_engine.sampling.native.kv_cache import KVCache
from data_engine.sampling.native.page_allocator import PAGE
from data_engine.sampling.native.paged_attention import FusedRows

# Rows out of order and ragged: of each its slot, and its tokens with the new one; of each slot its prefix's.
SLOTS, LENGTHS, PREFIXES = [2, 0, 2, 1, 0, 2], [300, 1, 7, 7, 8, 2], [5, 70, 31]
HEADS = 6
USUAL = LayerKind(2, 16, 16)
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0, -4.0])


def model_of(*kinds: LayerKind, cache_layers: Sequence[object] = ()) -> SimpleNamespace:
    """What the caches ask of a model."""
    cpu = torch.device("cpu")
    head = Head(torch.zeros(10, 4))
    return SimpleNamespace(device=cpu, dtype=torch.float32, layers=kinds, head=head, cache_layers=cache_layers)


@dataclass
class Step:
    """Caches full of noise, and what the layers of a step hand over."""

    caches: KVCache
    query: Tensor
    key: Tensor
    value: Tensor

    @classmethod
    def of(cls, model, layer: int, heads: int = HEADS) -> "Step":
        kind = model.layers[layer]
        caches = KVCache(model, len(SLOTS), 3, 320)
        caches.reserve(max(PREFIXES))
        generator = torch.Generator().manual_seed(0)
        for buffer in (*caches.suffixes(), *caches.prefix_keys, *caches.prefix_values):
            buffer.normal_(generator=generator)
        caches.slots_R[:], caches.lengths_R[:] = torch.tensor(SLOTS), torch.tensor(LENGTHS)
        caches.prefix_lengths_Q[:] = torch.tensor(PREFIXES)
        sizes = ((heads, kind.key_width), (kind.groups, kind.key_width), (kind.groups, kind.value_width))
        return cls(caches, *(torch.randn(6, number, 1, width, generator=generator) for number, width in sizes))

    def eager(self, options: Options, layer: int) -> Tensor:
        return self.layout().attend(self.call(options, layer))

    def layout(self) -> EagerRows:
        return EagerRows(self.caches, Lanes(SLOTS, LENGTHS, self.query.device), PREFIXES, len(SLOTS))

    def call(self, options: Options, layer: int) -> LayerCall:
        return options.call(self.query, self.key, self.value, layer)

    def wanted(self, options: Options, layer: int) -> Tensor:
        """Each row with a copy of its prefix, its new token at the end."""
        out, caches = [], self.caches
        for row, (slot, length) in enumerate(zip(SLOTS, LENGTHS, strict=True)):
            keys, values = (
                torch.cat([prefix[layer][slot, :, : PREFIXES[slot]], own[layer][row, :, : length - 1], new[row]], 1)
                for prefix, own, new in (
                    (caches.prefix_keys, caches.suffix_keys, self.key),
                    (caches.prefix_values, caches.suffix_values, self.value),
                )
            )
            seen = keys_seen(keys.shape[1] - 1, options)
            out.append(one_token(self.query[row, :, 0], keys[:, seen], values[:, seen], options))
        return torch.stack(out)[:, :, None].float()


def in_pages_of(paged: KVCache, made: KVCache, layer: int) -> None:
    """The same contents in pages, handed out from the last to the first; those that no length reaches stay page 0."""
    paged.reserve(made.prefix_tokens)
    paged.state_5R[:], paged.prefix_lengths_Q[:] = made.state_5R, made.prefix_lengths_Q
    paged.prefix_keys[layer][:], paged.prefix_values[layer][:] = made.prefix_keys[layer], made.prefix_values[layer]
    free = list(range(1, paged.num_pages))
    for row, length in enumerate(made.lengths_R.tolist()):
        for number in range(-(-length // PAGE)):
            paged.pages_RC[row, number] = page = free.pop()
            own = slice(number * PAGE, min((number + 1) * PAGE, made.suffix_tokens))
            for pool, whole in ((paged.suffix_keys, made.suffix_keys), (paged.suffix_values, made.suffix_values)):
                part = whole[layer][row, :, own]
                pool[layer][page, :, : part.shape[1]] = part


@pytest.mark.parametrize("family", ["instruct", "omni_instruct"])
def test_a_step_attends_as_one_softmax_over_prefix_and_suffix(family, request):
    """Both layouts, with and without grouped-query heads."""
    model = request.getfixturevalue(family)
    step = Step.of(model, 1, model.decoder.config.num_attention_heads)
    wanted, call = step.wanted(Options(), 1), step.call(Options(), 1)
    paged = KVCache(model, len(SLOTS), 3, 320, paged=True)
    in_pages_of(paged, step.caches, 1)
    fused = FusedRows(paged, 3).attend(call)
    torch.testing.assert_close(step.layout().attend(call), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused, wanted, rtol=1e-5, atol=1e-5)
    made, key, value = step.caches, step.key, step.value
    for row, length in enumerate(LENGTHS):
        assert torch.equal(made.suffix_keys[1][row, :, length - 1], key[row, :, 0])
        assert torch.equal(made.suffix_values[1][row, :, length - 1], value[row, :, 0])
        page, place = paged.pages_RC[row, (length - 1) // PAGE], (length - 1) % PAGE
        assert torch.equal(paged.suffix_keys[1][page, :, place], key[row, :, 0])
        assert torch.equal(paged.suffix_values[1][page, :, place], value[row, :, 0])


def test_rows_of_similar_length_make_a_run():
    """Padding of 128 tokens is cheaper than another product: 4 rows x 32 are, 5 rows x 32 are not."""
    assert runs([7, 7, 7]) == [(0, 3, 7, False)]
    assert runs([100, 68, 68, 68, 68]) == [(0, 5, 100, True)]
    assert runs([100, 68, 68, 68, 68, 68]) == [(0, 5, 100, True), (5, 6, 68, False)]
    assert runs([1, 400, 400]) == [(0, 1, 1, False), (1, 3, 400, False)]


@pytest.mark.parametrize(
    ("options", "width", "value_width"),
    [
        # Of some rows it hides the whole prefix, of some a part of it, of one nothing.
        (window(6), 16, 16), (window(40), 16, 16), (chunks(16), 16, 16), (window(40), 24, 8),
        (Options(softcap=2.0), 16, 16), (Options(sinks=SINKS), 16, 16), (Options(), 24, 8),
        (replace(window(40), softcap=2.0, sinks=SINKS), 24, 8),
    ],
    ids=["window 6", "window 40", "chunks 16", "window, 24/8", "softcap", "sinks", "24/8", "all of them"],
)  # fmt: skip
def test_a_layer_that_does_more_is_one_softmax_over_what_it_sees(options, width, value_width):
    step = Step.of(model_of(LayerKind(2, width, value_width)), 0)
    found = step.eager(options, 0)
    torch.testing.assert_close(found, step.wanted(options, 0), rtol=1e-5, atol=1e-5)
    if options != Options():
        assert float((found - step.wanted(Options(), 0)).abs().max()) > 0.05, "the option changes nothing here"


def test_layers_of_different_windows_share_a_step():
    """One without, two of one kind, one of another, in the order in which a decoder mixes them; lengths go on."""
    step = Step.of(model_of(*[USUAL] * 4), 0)
    kinds = [window(6), Options(), window(6), window(40)]
    layout, masks = step.layout(), {}
    for layer, options in enumerate(kinds):
        call = step.call(options, layer)
        # transformers makes one mask for all layers of a kind.
        call = replace(call, mask=masks.setdefault(options.local, call.mask))
        torch.testing.assert_close(layout.attend(call), step.wanted(options, layer), rtol=1e-5, atol=1e-5)
    assert len(layout._biases) == 2


def test_the_kernels_refuse_what_they_do_not_know():
    step = Step.of(model_of(USUAL), 0)
    paged = KVCache(model_of(USUAL), len(SLOTS), 3, 320, paged=True)
    in_pages_of(paged, step.caches, 0)
    layout = FusedRows(paged, 3)
    for options in (window(6), Options(softcap=2.0), Options(sinks=SINKS)):
        with pytest.raises(DoesNotFit, match="kernels do not know what layer 0 does"):
            layout.attend(step.call(options, 0))
    layout.caches = KVCache(model_of(LayerKind(2, 16, 16, cross=True)), len(SLOTS), 3, 320, paged=True)
    with pytest.raises(DoesNotFit, match="kernels do not know what layer 0 does"):
        layout.attend(step.call(Options(), 0))
    layout.caches = paged
    # 128 prefix tokens and 320 of a suffix are the most that a sequence can have here.
    assert paged.prefix_tokens == 128
    with pytest.raises(DoesNotFit):
        layout.attend(step.call(window(447), 0))
    torch.testing.assert_close(
        layout.attend(step.call(window(448), 0)), step.wanted(Options(), 0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (USUAL, True),
        (replace(USUAL, window=500), True),
        (replace(USUAL, window=499), False),
        (replace(USUAL, usual=False), False),
        (replace(USUAL, value_width=8), False),
        (replace(USUAL, cross=True), False),
    ],
)
def test_the_kernels_are_taken_where_they_know_each_layer(monkeypatch, kind, known):
    """In sequences of up to 500 tokens, on a device that has them; one layer that they do not know is enough."""
    model = model_of(USUAL, kind)
    model.max_positions = 500
    assert not uses_kernels(model)
    monkeypatch.setattr(backend, "use_triton", lambda weight: True)
    assert uses_kernels(model) is known
    settings = BackendSettings(model, SamplingParams(), 10, 16, 4)
    assert backend.make(settings)._decoder.samples_per_prompt == (10 if known else None)
    # The calls of a split model are agreed on one by one.
    assert backend.make(replace(settings, split=True))._decoder.samples_per_prompt is None


def prefix_of(length: int, layers: dict[int, Noted], cache_layers: Sequence[object] = (), more: int = 0) -> Prefix:
    return Prefix(length, layers, PromptEnd(torch.zeros(4), length + more, cache_layers))


def noted(groups: int, length: int, width: int, **rest: object) -> Noted:
    return Noted(torch.randn(groups, length, width), torch.randn(groups, length, width), **rest)


@pytest.mark.parametrize("options", [Options(), Options(sinks=SINKS)], ids=["plain", "sinks"])
def test_a_layer_that_looks_at_image_states_keeps_nothing_of_an_answer(options):
    """Of slot 0 two states of 5 are hidden; slot 1 has another number of them than slot 2."""
    kind = LayerKind(2, 16, 16, cross=True)
    step = Step.of(model_of(USUAL, kind), 0)
    hidden = torch.tensor([[0.0, -torch.inf, 0.0, 0.0, -torch.inf]])
    states = [noted(2, 5, 16, cross=True, bias=hidden), noted(2, 3, 16, cross=True), noted(2, 9, 16, cross=True)]
    for slot, state in enumerate(states):
        step.caches.store(slot, prefix_of(PREFIXES[slot], {0: noted(2, PREFIXES[slot], 16), 1: state}))
    assert [len(buffers[1]) for buffers in (step.caches.suffix_keys, step.caches.prefix_values)] == [0, 0]
    # The keys that such a layer hands over are those of image states, of whichever question.
    call = options.call(step.query, *(part[None] for part in states[1][:2]), 1)
    found = step.layout().attend(call)
    for row, slot in enumerate(SLOTS):
        seen = [0, 2, 3] if slot == 0 else list(range(states[slot].keys.shape[1]))
        keys, values = (part[:, seen] for part in states[slot][:2])
        wanted = one_token(step.query[row, :, 0], keys, values, options).float()
        torch.testing.assert_close(found[row, :, 0], wanted, rtol=1e-5, atol=1e-5)


def test_layers_that_share_keys_have_one_buffer():
    """As in Gemma 3n: layer 2 uses the keys and values of layer 0, and is handed them."""
    model = model_of(USUAL, LayerKind(1, 24, 8), LayerKind(2, 16, 16, same_as=0))
    assert [kind.values_per_token for kind in model.layers] == [2 * (16 + 16), 1 * (24 + 8), 0]
    step = Step.of(model, 2)
    assert len(step.caches.suffixes()) == 4
    layout = step.layout()
    for layer in (0, 2):
        found = layout.attend(step.call(Options(), layer))
        torch.testing.assert_close(found, step.wanted(Options(), 0), rtol=1e-5, atol=1e-5)
    # Also once the buffers moved, and with what a prompt noted of both.
    longer = {0: noted(2, 200, 16), 1: noted(1, 200, 24), 2: noted(2, 200, 16)}
    longer[1] = Noted(longer[1].keys, longer[1].values[..., :8])
    assert step.caches.store(1, prefix_of(200, longer))
    assert step.caches.prefix_keys[2] is step.caches.prefix_keys[0]
    assert torch.equal(step.caches.prefix_keys[2][1, :, :200], longer[0].keys)
    assert torch.equal(step.caches.prefix_values[1][1, :, :200], longer[1].values)


def state_layer(rows: int, value: float) -> LinearAttentionLayer:
    """As a prompt leaves it: a convolution's last 3 tokens of 2 channels, and a state of 4 x 5."""
    layer = LinearAttentionLayer()
    layer.update_conv_state(torch.full((rows, 2, 3), value))
    layer.update_recurrent_state(torch.full((rows, 4, 5), 10 * value))
    return layer


def test_recurrent_states_begin_as_their_prompts_left_them_and_move_with_their_rows():
    like = [DynamicLayer(), state_layer(1, 0.0)]
    model = model_of(USUAL, cache_layers=like)
    caches = KVCache(model, 4, 3, 8)
    for slot, value in ((0, 1.0), (2, 3.0)):
        layers = [DynamicLayer(), state_layer(1, value)]
        caches.store(slot, prefix_of(5, {0: noted(2, 5, 16)}, layers))
    caches.start(torch.tensor([3, 0, 2]), [2, 0, 2])
    conv, state = (kept[0] for kept in (caches.states.layers[1].conv_states, caches.states.layers[1].recurrent_states))
    assert caches.states.layers[0] is None
    assert conv[:, 0, 0].tolist() == [1, 0, 3, 3]
    assert state[:, 3, 4].tolist() == [10, 0, 30, 30]
    # A step of the first three rows updates their states where they lie, and no other.
    cache = caches.answer_cache(3, like)
    own = cache.layers[1]
    seen = own.update_conv_state(torch.full((3, 2, 1), 7.0))
    assert seen[:, 0].tolist() == [[1, 1, 1, 7], [0, 0, 0, 7], [3, 3, 3, 7]]
    own.update_recurrent_state(torch.tensor([11.0, 12.0, 13.0])[:, None, None].expand(3, 4, 5))
    assert conv[:, 0].tolist() == [[1, 1, 7], [0, 0, 7], [3, 3, 7], [3, 3, 3]]
    assert state[:, 0, 0].tolist() == [11, 12, 13, 30]
    caches.move(2, 0, 1)
    assert conv[:, 0].tolist() == [[3, 3, 7], [0, 0, 7], [3, 3, 7], [3, 3, 3]]
    assert state[:, 0, 0].tolist() == [13, 12, 13, 30]
    # A prompt's own states stay as they were, for the answers that begin later.
    caches.start(torch.tensor([1]), [2])
    assert (conv[1, 0, 0], state[1, 0, 0]) == (3, 30)


def test_copies_of_a_states_are_rows_of_their_own():
    """What scoring hands to the answers of a question: a state each, the prompt's left alone."""
    prompt = [DynamicLayer(), state_layer(1, 2.0)]
    assert [is_recurrent(layer) for layer in prompt] == [False, True]
    cache = answer_cache(prompt, repeated(prompt, 3), {})
    cache.layers[1].update_recurrent_state(torch.zeros(3, 4, 5))
    assert prompt[1].recurrent_states[0].tolist() == torch.full((1, 4, 5), 20.0).tolist()
    # Nothing is kept of keys and values, and nothing counted.
    assert (cache.layers[0].get_seq_length(), cache.layers[0].get_mask_sizes(2)) == (0, (2, 0))
    assert RowStates(prompt, 2).layers[1].conv_states[0].shape == (2, 2, 3)


def test_answers_go_on_where_their_prompts_say():
    """Positions need not be counted in tokens: two prompts of 9 tokens end at the positions 4 and 12."""
    caches = KVCache(model_of(USUAL), 3, 2, 8)
    for slot, more in ((0, -4), (1, 4)):
        caches.store(slot, prefix_of(9, {0: noted(2, 9, 16)}, more=more))
    assert caches.next_positions_Q.tolist() == [5, 13]
    assert caches.prefix_lengths_Q.tolist() == [9, 9]
