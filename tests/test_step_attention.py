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
from data_engine.sampling.native.kv_cache import KVCache, SlotBuffers
from data_engine.sampling.native.page_allocator import PAGE
from data_engine.sampling.native.page_pool import FIRST_ROOM, PagePool
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
    kept = {"layers": kinds, "cache_layers": cache_layers, "max_positions": 1000}
    return SimpleNamespace(device=cpu, dtype=torch.float32, head=head, **kept)


def in_buffers(model, num_rows: int, num_slots: int, suffix_tokens: int) -> KVCache:
    return KVCache(model, num_rows, num_slots, SlotBuffers(model, num_rows, num_slots, suffix_tokens))


def in_pool(model, num_rows: int, num_slots: int, suffix_tokens: int, num_pages: int) -> KVCache:
    return KVCache(model, num_rows, num_slots, PagePool(model, num_rows, num_slots, suffix_tokens, num_pages))


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
        caches = in_buffers(model, len(SLOTS), 3, 320)
        caches.kept.reserve(max(PREFIXES))
        generator = torch.Generator().manual_seed(0)
        for buffer in (*caches.kept.suffixes(), *caches.kept.prefix_keys, *caches.kept.prefix_values):
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
        out, caches = [], self.caches.kept
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


def in_pages_of(model, made: KVCache, layer: int) -> KVCache:
    """The same contents in a pool, its pages handed out from the last to the first; behind a length is page 0."""
    paged = in_pool(model, len(SLOTS), 3, 320, 15)
    pool, whole, free = paged.kept, made.kept, list(range(1, 16))
    paged.state_5R[:], paged.prefix_lengths_Q[:] = made.state_5R, made.prefix_lengths_Q
    for lines, lengths, parts in (
        (pool.pages_RC, LENGTHS, (whole.suffix_keys, whole.suffix_values)),
        (pool.prefix_pages_QB, PREFIXES, (whole.prefix_keys, whole.prefix_values)),
    ):
        for line, length in enumerate(lengths):
            for number in range(-(-length // PAGE)):
                lines[line, number] = page = free.pop()
                for cache, part in zip((pool.keys, pool.values), parts, strict=True):
                    own = part[layer][line, :, number * PAGE : (number + 1) * PAGE]
                    cache[layer][page, :, : own.shape[1]] = own
    return paged


@pytest.mark.parametrize("family", ["instruct", "omni_instruct"])
def test_a_step_attends_as_one_softmax_over_prefix_and_suffix(family, request):
    """Both layouts, with and without grouped-query heads."""
    model = request.getfixturevalue(family)
    step = Step.of(model, 1, model.decoder.config.num_attention_heads)
    wanted, call = step.wanted(Options(), 1), step.call(Options(), 1)
    paged = in_pages_of(model, step.caches, 1)
    fused = FusedRows(paged, 3).attend(call)
    torch.testing.assert_close(step.layout().attend(call), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused, wanted, rtol=1e-5, atol=1e-5)
    made, pool, key, value = step.caches.kept, paged.kept, step.key, step.value
    for row, length in enumerate(LENGTHS):
        assert torch.equal(made.suffix_keys[1][row, :, length - 1], key[row, :, 0])
        assert torch.equal(made.suffix_values[1][row, :, length - 1], value[row, :, 0])
        page, place = pool.pages_RC[row, (length - 1) // PAGE], (length - 1) % PAGE
        assert torch.equal(pool.keys[1][page, :, place], key[row, :, 0])
        assert torch.equal(pool.values[1][page, :, place], value[row, :, 0])


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
    model = model_of(USUAL)
    layout = FusedRows(in_pages_of(model, step.caches, 0), 3)
    for options in (window(6), Options(softcap=2.0), Options(sinks=SINKS)):
        with pytest.raises(DoesNotFit, match="kernels do not know what layer 0 does"):
            layout.attend(step.call(options, 0))
    cross = FusedRows(in_pool(model_of(LayerKind(2, 16, 16, cross=True)), len(SLOTS), 3, 320, 15), len(SLOTS))
    with pytest.raises(DoesNotFit, match="kernels do not know what layer 0 does"):
        cross.attend(step.call(Options(), 0))
    # No sequence gets longer than the model's 1,000 positions.
    with pytest.raises(DoesNotFit):
        layout.attend(step.call(window(999), 0))
    torch.testing.assert_close(
        layout.attend(step.call(window(1000), 0)), step.wanted(Options(), 0), rtol=1e-5, atol=1e-5
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
    assert [len(buffers[1]) for buffers in (step.caches.kept.suffix_keys, step.caches.kept.prefix_values)] == [0, 0]
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
    assert len(step.caches.kept.suffixes()) == 4
    layout = step.layout()
    for layer in (0, 2):
        found = layout.attend(step.call(Options(), layer))
        torch.testing.assert_close(found, step.wanted(Options(), 0), rtol=1e-5, atol=1e-5)
    # Also once the buffers moved, and with what a prompt noted of both.
    longer = {0: noted(2, 200, 16), 1: noted(1, 200, 24), 2: noted(2, 200, 16)}
    longer[1] = Noted(longer[1].keys, longer[1].values[..., :8])
    assert step.caches.store(1, prefix_of(200, longer))
    assert step.caches.kept.prefix_keys[2] is step.caches.kept.prefix_keys[0]
    assert torch.equal(step.caches.kept.prefix_keys[2][1, :, :200], longer[0].keys)
    assert torch.equal(step.caches.kept.prefix_values[1][1, :, :200], longer[1].values)


def state_layer(rows: int, value: float) -> LinearAttentionLayer:
    """As a prompt leaves it: a convolution's last 3 tokens of 2 channels, and a state of 4 x 5."""
    layer = LinearAttentionLayer()
    layer.update_conv_state(torch.full((rows, 2, 3), value))
    layer.update_recurrent_state(torch.full((rows, 4, 5), 10 * value))
    return layer


def test_recurrent_states_begin_as_their_prompts_left_them_and_move_with_their_rows():
    like = [DynamicLayer(), state_layer(1, 0.0)]
    model = model_of(USUAL, cache_layers=like)
    caches = in_buffers(model, 4, 3, 8)
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
    caches = in_buffers(model_of(USUAL), 3, 2, 8)
    for slot, more in ((0, -4), (1, 4)):
        caches.store(slot, prefix_of(9, {0: noted(2, 9, 16)}, more=more))
    assert caches.next_positions_Q.tolist() == [5, 13]
    assert caches.prefix_lengths_Q.tolist() == [9, 9]


def rows_of_pages(pool: PagePool, layer: int, lines: list[int], length: int) -> Tensor:
    """Keys [G, S, D] in order."""
    return torch.cat([pool.keys[layer][page] for page in lines], 1)[:, :length]


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
def test_a_prompt_lies_in_its_pages_in_order_and_in_no_other(length):
    caches = in_pool(model_of(USUAL), 2, 2, 8, 6)
    state, lines = noted(2, length, 16), [5, 2, 4][: -(-length // PAGE)]
    assert not caches.store(1, prefix_of(length, {0: state}), lines)
    assert caches.kept.prefix_pages_QB[1, : len(lines)].tolist() == lines
    assert torch.equal(rows_of_pages(caches.kept, 0, lines, length), state.keys)
    others = [page for page in range(7) if page not in lines]
    assert not caches.kept.keys[0][others].any()
    assert not caches.kept.values[0][others].any()
    assert caches.kept.values[0].count_nonzero() == state.values.count_nonzero()


def test_a_prompt_for_which_the_table_is_too_narrow_moves_the_table_and_not_the_pool():
    model = model_of(USUAL)
    model.max_positions = 10 * FIRST_ROOM
    caches = in_pool(model, 2, 2, 8, 100)
    pool = caches.kept
    room, before = FIRST_ROOM // PAGE, pool.keys[0].data_ptr()
    short = noted(2, 5, 16)
    assert not caches.store(0, prefix_of(5, {0: short}), [99])
    assert caches.store(1, prefix_of(FIRST_ROOM + 1, {0: noted(2, FIRST_ROOM + 1, 16)}), list(range(1, room + 2)))
    assert pool.keys[0].data_ptr() == before
    assert pool.prefix_pages_QB.shape == (2, 2 * room)
    assert pool.prefix_pages_QB[:, 0].tolist() == [99, 1]
    assert torch.equal(rows_of_pages(pool, 0, [99], 5), short.keys)
    # No longer than any prompt can be.
    model.max_positions = 100
    assert in_pool(model, 2, 2, 8, 100).kept.prefix_pages_QB.shape == (2, 1)
