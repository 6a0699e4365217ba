"""The kernel for grouped decode attention, against one softmax a row in fp64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data_engine_kernels import LayerCaches, RowIndex, Special, layouts, members_of, reference
from data_engine_kernels.layouts import USUAL
from data_engine_kernels.work_list import DEFAULT, Launch

pytestmark = pytest.mark.gpu
# Tokens of a part of the prefix and of a page, so that tiny caches have several.
SMALL, PAGE = Launch(split=32, own=16), 16
SCALE = 0.3


@pytest.fixture
def kernel(device):
    from data_engine_kernels import attention_triton

    return attention_triton


def problem(
    heads: int,
    groups: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    slots: tuple[int, ...] = (2, 0, 2, -1, 0),
    suffix_lengths: tuple[int, ...] = (1, 40, 14, 0, 32),
    prefix_lengths: tuple[int, ...] = (66, 10, 32),
    most: int = 3,
    page: int = PAGE,
) -> tuple[Tensor, LayerCaches, RowIndex]:
    """By default: two questions of two rows, an idle row, an unread prefix, and lengths about a part's end."""
    generator = torch.Generator().manual_seed(heads * width)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, width, generator=generator).to(device, dtype)

    # One page more than the longest row and the longest prefix need, and pages in any order; nobody has the last one.
    own, prefix = (-(-max(lengths) // page) + 1 for lengths in (suffix_lengths, prefix_lengths))
    order = torch.randperm(len(slots) * own + len(prefix_lengths) * prefix, generator=generator).to(device)
    pools = (randn(len(order) + 1, groups, page) for _ in range(2))
    index = torch.tensor(slots, device=device)
    lengths = [torch.tensor(some, device=device, dtype=torch.int32) for some in (suffix_lengths, prefix_lengths)]
    members = members_of(index, len(prefix_lengths), most)
    pages = order[: len(slots) * own].view(-1, own), order[len(slots) * own :].view(-1, prefix)
    return randn(len(slots), heads), LayerCaches(*pools), RowIndex(index, *lengths, members, *pages)


def in_order(pool: Tensor, pages: Tensor, length: int) -> Tensor:
    """Tokens [G, S, D], page by page."""
    return torch.cat([pool[page] for page in pages.tolist()], 1)[:, :length]


def exact(query: Tensor, caches: LayerCaches, rows: RowIndex, special: Special = USUAL) -> Tensor:
    """One row and head at a time: softmax over the tokens that it sees, in a row; the new token is the last of them."""
    out = torch.zeros(query.shape, dtype=torch.float64, device=query.device)
    shared = query.shape[1] // caches.keys.shape[1]
    for row, slot in enumerate(rows.slots.tolist()):
        prefix, own = int(rows.prefix_lengths[slot]) if slot >= 0 else 0, int(rows.suffix_lengths[row])
        keys_GTD, values_GTD = (
            torch.cat([in_order(pool, rows.prefix_pages[slot], prefix), in_order(pool, rows.pages[row], own)], 1)
            for pool in (caches.keys.double(), caches.values.double())
        )
        keys_GTD, values_GTD = (part[:, -(special.window or prefix + own + 1) :] for part in (keys_GTD, values_GTD))
        for head in range(query.shape[1] if keys_GTD.shape[1] else 0):
            keys, values = keys_GTD[head // shared], values_GTD[head // shared]
            scores = keys @ query[row, head].double() * SCALE
            if special.softcap:
                scores = special.softcap * (scores / special.softcap).tanh()
            out[row, head] = scores.softmax(0) @ values
    return out


def check_special(kernel, made: tuple[Tensor, LayerCaches, RowIndex], special: Special) -> None:
    """Weights are rounded, and the result; so it is off by two roundings of what it would be of positive values."""
    query, caches, rows = made
    found = kernel.grouped_decode_attention(*made, SCALE, special, SMALL)
    error = (found.double() - exact(*made, special)).abs()
    roundings = 0 if query.dtype == torch.float32 else torch.finfo(query.dtype).eps
    allowed = 2e-6 + roundings * exact(query, LayerCaches(caches.keys, caches.values.abs()), rows, special)
    assert bool((error <= allowed).all()), f"off by {float((error / allowed).max()):.2f} times what is allowed"


def check(kernel, made: tuple[Tensor, LayerCaches, RowIndex], launch: Launch = SMALL) -> None:
    expected = exact(*made)
    found = kernel.grouped_decode_attention(*made, SCALE, launch=launch)
    assert found.dtype == made[0].dtype
    error = (found.double() - expected).abs()
    own = (reference.grouped_decode_attention(*made, SCALE).double() - expected).abs()
    # On average no worse than the eager path; the worst number may be rounded the other way at the end.
    assert float(error.mean()) <= float(own.mean()) + 1e-6
    rounding = torch.finfo(found.dtype).eps / 2 * float(expected.abs().max())
    assert float(error.max()) <= float(own.max()) + rounding + 1e-6


@pytest.mark.parametrize(
    ("heads", "groups", "width", "dtype"),
    [
        (1, 1, 64, torch.float32),
        (1, 1, 64, torch.bfloat16),
        (6, 2, 80, torch.bfloat16),
        (4, 1, 96, torch.float32),
        (2, 2, 128, torch.bfloat16),
        (18, 1, 16, torch.float32),
        (18, 1, 16, torch.bfloat16),
    ],
)
def test_it_is_one_softmax_over_prefix_and_suffix(kernel, device, heads, groups, width, dtype):
    check(kernel, problem(heads, groups, width, dtype, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_more_queries_than_a_tile_holds_take_several(kernel, device, dtype):
    slots = (0, 1, 0, 0, 0, 0)
    check(kernel, problem(14, 1, 64, dtype, device, slots, (3,) * 6, (40, 17), most=5))


def test_parts_of_several_pages(kernel, device):
    """Suffixes too; the last part has one page of three."""
    check(kernel, problem(4, 2, 64, torch.bfloat16, device), Launch(split=48, own=48))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_row_with_parts_as_long_as_in_earnest(kernel, device, dtype):
    made = problem(2, 1, 64, dtype, device, (0,), (600,), (700,), most=1, page=128)
    check(kernel, made, DEFAULT)


@pytest.mark.parametrize("lengths", [(32, 16), (33, 17), (31, 15), (64, 32)], ids=str)
def test_lengths_about_the_ends_of_parts_and_pages(kernel, device, lengths):
    """Idle rows and empty slots between the others; of the slots with rows, one has no tokens."""
    prefix, own = lengths
    slots, suffixes, prefixes = (3, -1, 0, 3, -1, 2), (own, 3, own, 2 * own, 0, own), (prefix, prefix, 0, 2 * prefix)
    check(kernel, problem(4, 2, 16, torch.float32, device, slots, suffixes, prefixes))


# The second row has 66 tokens of a prefix and 40 of its own, in parts of 32 and 16: these windows begin behind all of
# the prefix, at its end, before it, about the end of its second part and of its first, and nowhere.
@pytest.mark.parametrize("window", [1, 7, 16, 40, 41, 42, 43, 73, 74, 75, 106, 107])
def test_a_window_is_one_softmax_over_the_last_tokens(kernel, device, window):
    made = problem(3, 1, 16, torch.float32, device, prefix_lengths=(10, 66, 66), slots=(0, 2, 2, -1, 0))
    check_special(kernel, made, Special(window))


@pytest.mark.parametrize("window", [7, 43, 75])
def test_a_window_and_a_softcap_go_together(kernel, device, window):
    made = problem(6, 2, 80, torch.bfloat16, device, prefix_lengths=(10, 66, 66), slots=(0, 2, 2, -1, 0))
    check_special(kernel, made, Special(window))
    check_special(kernel, made, Special(window, softcap=2.0))


def test_a_window_of_one_token_gives_that_tokens_value(kernel, device):
    """All parts of a row but one are empty."""
    query, caches, rows = problem(4, 2, 64, torch.float32, device)
    found = kernel.grouped_decode_attention(query, caches, rows, SCALE, Special(window=1), SMALL)
    for row, length in enumerate(rows.suffix_lengths.tolist()):
        page = rows.pages[row, (length - 1) // PAGE]
        value = caches.values[page, :, (length - 1) % PAGE] if length else torch.zeros_like(caches.values[0, :, 0])
        assert torch.equal(found[row], value.repeat_interleave(2, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_window_that_hides_nothing_changes_no_bit(kernel, device, dtype):
    """The longest sequence has 106 tokens."""
    made = problem(3, 1, 16, dtype, device)
    for softcap in (None, 3.0):
        plain = kernel.grouped_decode_attention(*made, SCALE, Special(softcap=softcap), SMALL)
        for window in (106, 10_000):
            found = kernel.grouped_decode_attention(*made, SCALE, Special(window, softcap), SMALL)
            assert torch.equal(found, plain)
        assert not torch.equal(kernel.grouped_decode_attention(*made, SCALE, Special(105, softcap), SMALL), plain)


@pytest.mark.parametrize("softcap", [0.1, 2.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_softcap_bends_the_scores(kernel, device, dtype, softcap):
    """Scores of up to 6, and of up to 6,000, where tanh is 1."""
    query, caches, rows = problem(6, 2, 80, dtype, device)
    check_special(kernel, (query, caches, rows), Special(softcap=softcap))
    check_special(kernel, (query * 1000, caches, rows), Special(softcap=softcap))


@pytest.mark.parametrize("programs", [1, 7, 10_000])
def test_bits_do_not_depend_on_the_number_of_programs(kernel, device, programs):
    """As many as there can be parts, or fewer, each of which computes several; of several tiles, some without rows."""
    slots = (0, 1, 0, 0, -1, 0)
    made = problem(14, 2, 64, torch.bfloat16, device, slots, (3, 40, 17, 16, 0, 1), (40, 17, 80), most=12)
    expected = kernel.grouped_decode_attention(*made, SCALE, launch=SMALL)
    launch = replace(SMALL, programs=programs)
    assert torch.equal(kernel.grouped_decode_attention(*made, SCALE, launch=launch), expected)


def test_the_list_of_parts_is_made_for_the_first_layer_alone(kernel, device, monkeypatch):
    query, caches, rows = problem(4, 2, 64, torch.float32, device)
    made, build = [], layouts.work_list
    monkeypatch.setattr(layouts, "work_list", lambda *given: made.append(given) or build(*given))
    for _ in range(3):
        kernel.grouped_decode_attention(query, caches, rows, SCALE, launch=SMALL)
    assert len(made) == 1


def test_addresses_are_aligned_for_any_number_of_rows_so_that_one_binary_serves_all(kernel, device, monkeypatch):
    """Triton compiles another one for a pointer that is no multiple of 16: 5 rows x 5 parts x 4 bytes are none."""
    given = []

    class Launched:
        def __getitem__(self, grid):
            return lambda *tensors, **options: given.extend(one for one in tensors if isinstance(one, Tensor))

    for name in ("parts_kernel", "merge_kernel"):
        monkeypatch.setattr(kernel, name, Launched())
    query, caches, rows = problem(1, 1, 64, torch.float32, device, prefix_lengths=(16, 10, 12), page=16)
    kernel.grouped_decode_attention(query, caches, rows, SCALE, launch=SMALL)
    assert len(given) > 15
    assert [tuple(one.shape) for one in given if one.data_ptr() % 16] == []


def test_one_token_is_its_own_value(kernel, device):
    query, caches, rows = problem(4, 2, 64, torch.float32, device, (-1,), (1,), (4,), most=1)
    found = kernel.grouped_decode_attention(query, caches, rows, SCALE, launch=SMALL)
    assert torch.equal(found, caches.values[rows.pages[:, 0], :, 0].repeat_interleave(2, 1))


def test_scores_far_from_zero_change_nothing(kernel, device):
    query, caches, rows = problem(2, 1, 64, torch.float32, device)
    # Scores of -1e4 to 1e4, most weights 0: whichever part has the largest score has it all.
    check(kernel, (query * 1000, caches, rows))


def test_a_row_that_sees_nothing_gets_zeros(kernel, device):
    made = problem(2, 1, 64, torch.bfloat16, device, (0, -1, 0), (0, 0, 2), (0,))
    found = kernel.grouped_decode_attention(*made, SCALE, launch=SMALL)
    assert not found[:2].any()
    assert found[2].any()


def test_no_rows_give_nothing(kernel, device):
    query, caches, rows = problem(2, 1, 64, torch.float32, device)
    rows = replace(rows, slots=rows.slots[:0], suffix_lengths=rows.suffix_lengths[:0], pages=rows.pages[:0])
    assert kernel.grouped_decode_attention(query[:0], caches, rows, SCALE).shape == (0, 2, 64)


@pytest.mark.parametrize("special", [USUAL, Special(7), Special(43, 2.0)], ids=str)
def test_what_lies_behind_a_length_is_not_read(kernel, device, special):
    query, caches, rows = problem(3, 1, 80, torch.bfloat16, device)
    clean = kernel.grouped_decode_attention(query, caches, rows, SCALE, special, SMALL)
    seen = torch.zeros(len(caches.keys), PAGE, dtype=torch.bool, device=device)
    for lengths, lines in ((rows.suffix_lengths, rows.pages), (rows.prefix_lengths, rows.prefix_pages)):
        for length, pages in zip(lengths.tolist(), lines.tolist(), strict=True):
            for token in range(length):
                seen[pages[token // PAGE], token % PAGE] = True
    for pool in (caches.keys, caches.values):
        pool.transpose(1, 2)[~seen] = torch.nan
    assert torch.equal(kernel.grouped_decode_attention(query, caches, rows, SCALE, special, SMALL), clean)


def test_a_second_run_gives_the_same_bits(kernel, device):
    made = problem(3, 1, 80, torch.bfloat16, device)
    assert torch.equal(*(kernel.grouped_decode_attention(*made, SCALE, launch=SMALL) for _ in range(2)))


@pytest.mark.parametrize("special", [USUAL, Special(30), Special(43, 2.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_rows_beside_a_row_do_not_change_its_bits(kernel, device, dtype, special):
    query, caches, rows = problem(3, 1, 64, dtype, device)
    whole = kernel.grouped_decode_attention(query, caches, rows, SCALE, special, SMALL)
    # Other places, another number of the slot, other company, more room, pages elsewhere.
    elsewhere = torch.randperm(len(caches.keys), generator=torch.Generator().manual_seed(1)).to(device)
    moved = LayerCaches(caches.keys[elsewhere], caches.values[elsewhere])
    for kept, new_slot in (((4, 2, 1), {0: 2, 2: 1}), ((2,), {2: 0})):
        order = torch.tensor(kept, device=device)
        old_slot = {new: old for old, new in new_slot.items()}
        sources = torch.tensor([old_slot.get(slot, 1) for slot in range(3)], device=device)
        slots = torch.tensor([new_slot[slot] for slot in rows.slots[order].tolist()], device=device)
        room = torch.zeros(3, 4, dtype=torch.long, device=device)
        pages = rows.pages[order], torch.cat([rows.prefix_pages[sources], room], 1)
        lengths = rows.suffix_lengths[order], rows.prefix_lengths[sources]
        index = RowIndex(slots, *lengths, members_of(slots, 3, 3), *(elsewhere.argsort()[some] for some in pages))
        found = kernel.grouped_decode_attention(query[order], moved, index, SCALE, special, SMALL)
        assert torch.equal(found, whole[order])


def test_caches_may_lie_in_any_order_but_keys_and_values_alike(kernel, device):
    query, caches, rows = problem(2, 2, 64, torch.float32, device)
    whole = kernel.grouped_decode_attention(query, caches, rows, SCALE, launch=SMALL)
    # Tokens outermost, rows and pages spread out.
    turned = LayerCaches(*(pool.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3) for pool in vars(caches).values()))
    spread = torch.stack([query, query], 1)[:, 0]
    wide = RowIndex(*(torch.stack([part, part], -1)[..., 0] for name, part in vars(rows).items() if name != "_work"))
    assert torch.equal(kernel.grouped_decode_attention(spread, turned, wide, SCALE, launch=SMALL), whole)
    mixed = replace(caches, keys=turned.keys)
    with pytest.raises(ValueError, match="must share their strides"):
        kernel.grouped_decode_attention(query, mixed, rows, SCALE)
    with pytest.raises(ValueError, match="one dtype"):
        kernel.grouped_decode_attention(query.bfloat16(), caches, rows, SCALE)
    with pytest.raises(ValueError, match="parts pages"):
        kernel.grouped_decode_attention(query, caches, rows, SCALE, launch=Launch(split=24, own=16))
