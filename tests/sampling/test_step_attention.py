"""Attention of a decode step, in plain torch and as one operation, against one softmax a row."""

from dataclasses import dataclass, replace

import pytest
import torch
from answers import Options, chunks, keys_seen, one_token, window
from step_caches import USUAL, in_buffers, in_pool, model_of, noted, prefix_of
from torch import Tensor

from data_engine.models.layers.attention import DoesNotFit, LayerCall
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.models.layers.noting import Noted
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
# What models add to the score of a key that is not seen.
LEAST = torch.finfo(torch.float32).min
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0, -4.0])


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


@pytest.mark.parametrize(
    "options", [window(1), window(6), window(40), window(128), Options(softcap=2.0), replace(window(40), softcap=2.0)],
    ids=["window 1", "window 6", "window 40", "window 128", "softcap", "window 40, softcap"],
)  # fmt: skip
def test_the_kernels_are_told_of_windows_and_softcaps(options):
    step = Step.of(model_of(USUAL), 0)
    found = FusedRows(in_pages_of(model_of(USUAL), step.caches, 0), 3).attend(step.call(options, 0))
    torch.testing.assert_close(found, step.wanted(options, 0), rtol=1e-5, atol=1e-5)
    assert float((found - step.wanted(Options(), 0)).abs().max()) > 0.05, "the option changes nothing here"


def test_the_kernels_refuse_what_they_do_not_know():
    step = Step.of(model_of(USUAL), 0)
    model = model_of(USUAL)
    layout = FusedRows(in_pages_of(model, step.caches, 0), 3)
    for options in (
        chunks(6),
        Options(sinks=SINKS),
        replace(window(6), sinks=SINKS),
        replace(window(6), function=None),
    ):
        with pytest.raises(DoesNotFit, match="kernels do not know what layer 0 does"):
            layout.attend(step.call(options, 0))
    cross = FusedRows(in_pool(model_of(LayerKind(2, 16, 16, cross=True)), len(SLOTS), 3, 320, 15), len(SLOTS))
    with pytest.raises(DoesNotFit, match="kernels do not know what layer 0 does"):
        cross.attend(step.call(Options(sinks=SINKS), 0))
    # No sequence gets longer than the model's 1,000 positions.
    with pytest.raises(DoesNotFit):
        layout.attend(step.call(chunks(999), 0))
    torch.testing.assert_close(
        layout.attend(step.call(chunks(1000), 0)), step.wanted(Options(), 0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (USUAL, True),
        (replace(USUAL, window=500), True),
        (replace(USUAL, window=499), False),
        (replace(USUAL, window=499, slides=True), True),
        (replace(USUAL, sinks=True), False),
        (replace(USUAL, value_width=8), False),
        (LayerKind(2, 512, 512), True),
        (LayerKind(2, 520, 520), False),
        (replace(USUAL, cross=True), True),
        (replace(USUAL, cross=True, weighs=True), False),
        (replace(USUAL, cross=True, sinks=True), False),
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
    assert backend.make(settings)._engine.samples_per_prompt == (10 if known else None)
    # The calls of a split model are agreed on one by one.
    assert backend.make(replace(settings, split=True))._engine.samples_per_prompt is None


@pytest.mark.parametrize("options", [Options(), Options(sinks=SINKS)], ids=["plain", "sinks"])
def test_a_layer_that_looks_at_image_states_keeps_nothing_of_an_answer(options):
    """Of slot 0 two states of 5 are hidden; slot 1 has another number of them than slot 2."""
    kind = LayerKind(2, 16, 16, cross=True)
    step = Step.of(model_of(USUAL, kind), 0)
    hidden = torch.tensor([[0.0, -torch.inf, 0.0, 0.0, LEAST]])
    states = [noted(2, 5, 16, cross=True, bias=hidden), noted(2, 3, 16, cross=True), noted(2, 9, 16, cross=True)]
    paged = in_pages_of(model_of(USUAL, kind), step.caches, 0)
    for slot, state in enumerate(states):
        prefix = prefix_of(PREFIXES[slot], {0: noted(2, PREFIXES[slot], 16), 1: state})
        step.caches.store(slot, prefix)
        paged.store(slot, prefix, [1])
    assert [len(buffers[1]) for buffers in (step.caches.kept.suffix_keys, step.caches.kept.prefix_values)] == [0, 0]
    # The keys that such a layer hands over are those of image states, of whichever question.
    call = options.call(step.query, *(part[None] for part in states[1][:2]), 1)
    wanted = []
    for row, slot in enumerate(SLOTS):
        seen = [0, 2, 3] if slot == 0 else list(range(states[slot].keys.shape[1]))
        keys, values = (part[:, seen] for part in states[slot][:2])
        wanted.append(one_token(step.query[row, :, 0], keys, values, options).float())
    found = step.layout().attend(call)
    torch.testing.assert_close(found[:, :, 0], torch.stack(wanted), rtol=1e-5, atol=1e-5)
    if options.sinks is None:
        layout, before = FusedRows(paged, 3), [pool.clone() for pool in paged.kept.suffixes()]
        torch.testing.assert_close(layout.attend(call)[:, :, 0], torch.stack(wanted), rtol=1e-5, atol=1e-5)
        assert all(map(torch.equal, paged.kept.suffixes(), before))


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
