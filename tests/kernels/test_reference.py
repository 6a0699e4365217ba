"""The eager formulas against plain softmax."""

import pytest
import torch

from data_engine_kernels import LayerCaches, RowIndex, Special, members_of, reference


@pytest.mark.parametrize("rows", [0, 1, 5, 2500])
def test_token_logps_are_log_softmax_at_the_target(rows):
    generator = torch.Generator().manual_seed(rows)
    hidden, weight = torch.randn(rows, 16, generator=generator), torch.randn(97, 16, generator=generator)
    targets = torch.randint(0, 97, (rows,), generator=generator)
    expected = (hidden.double() @ weight.double().T).log_softmax(-1).gather(-1, targets[:, None])[:, 0].float()
    torch.testing.assert_close(reference.token_logps(hidden, weight, targets), expected, rtol=0, atol=1e-5)


def test_huge_logits_stay_finite():
    hidden, weight = torch.full((2, 4), 100.0), torch.eye(4) * 100
    assert reference.token_logps(hidden, weight, torch.tensor([0, 3])).tolist() == pytest.approx([-1.3862944] * 2)


@pytest.mark.parametrize("target", [-1, 97])
def test_a_target_outside_the_vocabulary_is_refused(target):
    with pytest.raises(ValueError, match=r"\[0, 97\)"):
        reference.token_logps(torch.zeros(1, 4), torch.zeros(97, 4), torch.tensor([target]))


def test_members_are_the_rows_of_each_slot_in_order():
    slots = torch.tensor([2, 0, -1, 2, 0, -1, -1, 2])
    assert members_of(slots, 4, 3).tolist() == [[1, 4, -1], [-1, -1, -1], [0, 3, 7], [-1, -1, -1]]
    assert members_of(torch.tensor([-1, -1, -1]), 1, 2).tolist() == [[-1, -1]]
    assert members_of(slots[:0], 1, 2).tolist() == [[-1, -1]]


def test_more_rows_in_a_slot_than_there_is_room_for_are_refused():
    with pytest.raises(RuntimeError, match="a slot has more than 2 rows"):
        members_of(torch.tensor([1, 1, 1]), 2, 2)


# The second row has 9 tokens of a prefix and 6 of its own, in pages of 3: a window of 6 hides the prefix, one of 7 does
# not, 12 begin with a page, 15 hide nothing.
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 6, 7, 12, 14, 15, 99])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_grouped_attention_is_one_softmax_over_prefix_and_suffix(heads, groups, window, softcap):
    generator = torch.Generator().manual_seed(heads)
    # Two pages of three tokens a row and three a prefix, anywhere.
    order = torch.randperm(20, generator=generator)
    pages, prefix_pages = order[:10].view(5, 2), order[10:19].view(3, 3)
    caches = LayerCaches(*(torch.randn(20, groups, 3, 8, generator=generator) for _ in range(2)))
    query = torch.randn(5, heads, 8, generator=generator)
    slots, own, prefix = torch.tensor([2, 0, 2, -1, 0]), torch.tensor([1, 6, 3, 2, 0]), torch.tensor([9, 4, 1])
    rows = RowIndex(slots, own, prefix, members_of(slots, 3, 2), pages, prefix_pages)
    found = reference.grouped_decode_attention(query, caches, rows, 0.5, Special(window, softcap))
    for row, slot in enumerate(slots.tolist()):
        seen = int(prefix[slot]) if slot >= 0 else 0
        keys, values = (
            torch.cat(
                [
                    torch.cat([pool[page] for page in prefix_pages[slot]], 1)[:, :seen],
                    torch.cat([pool[page] for page in pages[row]], 1)[:, : own[row]],
                ],
                1,
            )[:, -(window or 99) :].repeat_interleave(heads // groups, 0)
            for pool in (caches.keys, caches.values)
        )
        scores = (query[row, :, None] @ keys.transpose(1, 2)) * 0.5
        if softcap:
            scores = softcap * (scores / softcap).tanh()
        expected = scores.softmax(-1) @ values
        torch.testing.assert_close(found[row], expected[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_a_window_that_hides_nothing_changes_no_bit(softcap):
    generator = torch.Generator().manual_seed(0)
    caches = LayerCaches(*(torch.randn(6, 2, 4, 8, generator=generator) for _ in range(2)))
    slots, own, prefix = torch.tensor([0, 1, 0]), torch.tensor([3, 1, 4]), torch.tensor([7, 0])
    pages, prefix_pages = torch.tensor([[0], [1], [2]]), torch.tensor([[3, 4], [5, 5]])
    rows = RowIndex(slots, own, prefix, members_of(slots, 2, 2), pages, prefix_pages)
    query = torch.randn(3, 4, 8, generator=generator)
    plain = reference.grouped_decode_attention(query, caches, rows, 0.5, Special(softcap=softcap))
    for window in (11, 12, 1000):
        found = reference.grouped_decode_attention(query, caches, rows, 0.5, Special(window, softcap))
        assert torch.equal(found, plain)
    assert not torch.equal(reference.grouped_decode_attention(query, caches, rows, 0.5, Special(10, softcap)), plain), (
        "eleven tokens are the most that there are"
    )


def test_a_row_that_sees_nothing_gets_zeros():
    caches = LayerCaches(*(torch.ones(1, 1, 2, 4) for _ in range(2)))
    slots, none = torch.tensor([0]), torch.tensor([0])
    rows = RowIndex(slots, none, none, members_of(slots, 1, 1), none[:, None], none[:, None])
    assert not reference.grouped_decode_attention(torch.ones(1, 1, 4), caches, rows, 1.0).any()


@pytest.mark.parametrize("given", [{"window": 0}, {"window": -3}, {"softcap": 0.0}, {"softcap": -1.0}])
def test_a_window_or_softcap_that_is_none_is_refused(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} .*got {next(iter(given.values()))}"):
        Special(**given)


def test_scores_far_below_zero_change_nothing_where_there_is_no_prefix():
    caches = LayerCaches(*(torch.full((1, 1, 1, 4), number) for number in (-100.0, 3.0)))
    idle, one = torch.tensor([-1]), torch.tensor([1])
    rows = RowIndex(idle, one, one, members_of(idle, 1, 1), one[:, None] - 1, one[:, None] - 1)
    # One token is all of the softmax, however small exp(-400) is.
    assert reference.grouped_decode_attention(torch.ones(1, 1, 4), caches, rows, 1.0).tolist() == [[[3.0] * 4]]


def test_no_rows_give_nothing():
    caches = LayerCaches(*(torch.zeros(1, 1, 2, 4) for _ in range(2)))
    none, one = torch.tensor([], dtype=torch.long), torch.tensor([1])
    rows = RowIndex(none, none, one, members_of(none, 1, 1), none[:, None], one[:, None] - 1)
    assert reference.grouped_decode_attention(torch.ones(0, 2, 4), caches, rows, 1.0).shape == (0, 2, 4)
