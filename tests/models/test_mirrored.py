"""Integers of a device of which the host has copies: what is read of them, and when the copies no longer hold."""

import pytest
import torch
from one_device import META, arrived
from torch import Tensor, nn

from data_engine.models.auto.forward import mirrored as code
from data_engine.models.auto.forward.mirrored import MOST, Known, Mirrored, is_known, mirrored

IDS = torch.tensor([[7, 9, 9, 3, 9]])


def pair(value: Tensor, device: torch.device = META) -> Mirrored:
    """On a device without values: what is read of it comes from the host."""
    return mirrored({"it": value.to(device)}, {"it": value}, Known(device))["it"]


@pytest.fixture(autouse=True)
def sent(monkeypatch) -> list[Tensor]:
    """What the device was sent."""
    noted = []

    def send(values: Tensor, to: torch.device) -> Tensor:
        noted.append(values)
        return arrived(values, to) if to == META else values

    monkeypatch.setattr(code, "sent", send)
    return noted


def test_what_is_computed_of_known_integers_is_known():
    ids = pair(IDS)
    mask = ids == 9
    assert mask.device == META
    assert int(mask.sum()) == 3
    assert mask.sum() * 4 == 12
    assert f"{mask.sum()}" == "3"
    assert mask.unsqueeze(-1).to(META).tolist() == [[[False], [True], [True], [False], [True]]]
    assert [size.item() for size in pair(torch.tensor([5, 6])).prod(-1)[None]] == [30]
    assert ids.view_as(torch.zeros(5, 1, device=META)).tolist() == [[7], [9], [9], [3], [9]]
    assert ids.reshape_as(torch.zeros(5, 1, device=META)).tolist() == [[7], [9], [9], [3], [9]]
    assert mask.nonzero().tolist() == [[0, 1], [0, 2], [0, 4]]
    assert ids[0].unique_consecutive().tolist() == [7, 9, 3, 9]
    assert ids.masked_select(mask).tolist() == [9, 9, 9]
    assert ids[0, :2].repeat_interleave(pair(torch.tensor([2, 1]))).tolist() == [7, 7, 9]
    assert 3 in ids
    assert 4 not in ids
    values, places = ids.max(-1)
    assert values.device == places.device == META


def test_a_known_mask_chooses_places_without_a_read():
    numbers, mask = torch.randn(1, 5, 2), IDS == 9
    assert numbers.to(META)[pair(mask), :].shape == (3, 2)
    near = pair(mask, torch.device("cpu"))
    assert torch.equal(numbers[near, :], numbers[mask, :])
    found, expected = numbers.clone(), numbers.clone()
    found[near, :] = expected[mask, :] = torch.ones(3, 2)
    assert torch.equal(found, expected)
    found[..., near[0], 0], expected[..., mask[0], 0] = 5, 5
    assert torch.equal(found, expected)


def test_a_single_known_truth_is_an_index_as_it_is():
    """It adds an axis, and is no mask of the first one."""
    flag = pair(torch.tensor(True), torch.device("cpu"))
    assert torch.zeros(2, 3)[flag].shape == (1, 2, 3)


@pytest.mark.parametrize("device", [META, torch.device("cpu")])
def test_a_mask_as_wide_as_embeddings_chooses_without_a_read(device, sent):
    numbers, mask = torch.randn(1, 5, 4), pair(IDS == 9, device)
    wide = mask.unsqueeze(-1).expand_as(numbers)
    found = numbers.to(device)[wide]
    assert found.shape == (12,)
    # Places of tokens, not of their numbers.
    assert [len(one) for one in sent] == [3, 3]
    if device != META:
        assert torch.equal(found, numbers[wide.as_subclass(Tensor)])
    # Each number of the embeddings on its own.
    assert numbers.to(device)[..., None].expand(1, 5, 4, 2)[wide].shape == (12, 2)
    assert mask.unsqueeze(-1).expand_as(other=numbers).shape == (1, 5, 4)


def test_a_mask_that_repeats_along_two_dimensions_chooses_each_number():
    numbers, mask = torch.randn(1, 5, 4, 2), pair(IDS == 9, torch.device("cpu"))
    wide = mask[..., None, None].expand(1, 5, 4, 2)
    assert torch.equal(numbers[wide], numbers[0, [1, 2, 4]].flatten())


def test_a_single_truth_that_is_repeated_is_a_mask():
    truth = pair(torch.tensor(True)).expand(4)
    assert torch.zeros(4, 2, device=META)[truth].shape == (4, 2)


def test_places_that_are_repeated_are_no_mask():
    numbers, places = torch.randn(5, 3), torch.tensor([[4], [1]])
    found = numbers[pair(places, torch.device("cpu")).expand(2, 3)]
    assert torch.equal(found, torch.stack([numbers[[4, 4, 4]], numbers[[1, 1, 1]]]))


def test_numbers_of_the_host_are_read_beside_known_ones():
    ids, starts = pair(IDS), torch.zeros(3, dtype=torch.int64)
    starts[1:] = ids[0, :2].cumsum(0)
    assert starts.tolist() == [0, 7, 16]
    assert (starts[2] + ids[0, 0]).item() == 23
    ids[0, 1] = starts[1]
    assert ids.tolist() == [[7, 7, 9, 3, 9]]
    torch.add(ids[0, :3], 1, out=starts)
    assert starts.tolist() == [8, 8, 10]


def test_known_numbers_are_sizes():
    height, width = pair(torch.tensor([2, 3]))
    assert torch.zeros(4, device=META).repeat(height, width).shape == (2, 12)
    assert torch.zeros(1, 4, device=META).expand(height, -1).shape == (2, 4)
    numbers = torch.zeros(6, 4, device=META)
    assert numbers.view(height, width, 4).shape == (2, 3, 4)
    assert [len(part) for part in numbers.split([height * 2, height])] == [4, 2]
    assert numbers[:width, height:].shape == (3, 2)
    resized = nn.functional.interpolate(numbers[None, None], size=(height * 2, width), mode="bilinear")
    assert resized.shape == (1, 1, 4, 3)


def test_known_numbers_bound_a_slice():
    ids, (second, third, fifth) = pair(IDS), pair(torch.tensor([1, 2, 4]))
    assert ids[0, second:fifth:third].tolist() == [9, 3]
    ids[0, second:fifth:third] = 0
    assert ids.tolist() == [[7, 0, 9, 0, 9]]
    assert torch.zeros(5, 5, device=META)[ids[0] == 9, second:fifth:third].shape == (2, 2)


def test_writing_known_numbers_keeps_the_copies_right():
    ids, mask = pair(IDS), IDS == 9
    changed = ids.clone()
    changed[pair(mask)] = 0
    changed += 1
    assert changed.tolist() == [[8, 1, 1, 4, 1]]
    assert ids.tolist() == IDS.tolist() == [[7, 9, 9, 3, 9]]
    # What it was sent from is the processor's own.
    on_host = IDS.clone()
    written = mirrored({"ids": IDS.clone()}, {"ids": on_host}, Known(IDS.device))["ids"]
    written += 1
    assert is_known(written)
    assert on_host.tolist() == IDS.tolist()


def test_after_a_write_of_an_unknown_number_nothing_of_the_prompt_is_known():
    known = mirrored({"ids": IDS.clone(), "mask": IDS == 9}, {"ids": IDS, "mask": IDS == 9}, Known(IDS.device))
    view = known["ids"][:, :2]
    known["ids"].copy_(torch.tensor([[1, 2, 3, 4, 5]]))
    assert not any(map(is_known, (*known.values(), view)))
    assert known["ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert view.tolist() == [[1, 2]]
    ids = mirrored({"ids": IDS.clone()}, {"ids": IDS}, Known(IDS.device))["ids"]
    torch.add(IDS, 1, out=ids)
    assert not is_known(ids)
    assert ids.tolist() == [[8, 10, 10, 4, 10]]


def test_each_way_to_write_an_unknown_number_is_noticed():
    unknown = torch.tensor([[1, 2, 3, 2, 1]])
    for write in ("add", "sub", "mul", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"):
        ids = pair(IDS.clone(), torch.device("cpu"))
        getattr(ids, f"__i{write}__")(unknown)
        assert not is_known(ids), write
    ids = pair(IDS.clone(), torch.device("cpu"))
    ids.data = unknown
    assert ids.tolist() == unknown.tolist()


def test_what_is_found_by_value_on_a_cpu_has_a_copy_of_its_own():
    places = pair(IDS, torch.device("cpu")).nonzero()
    places += 1
    assert places.tolist() == [[1, 1], [1, 2], [1, 3], [1, 4], [1, 5]]
    assert torch.equal(places.as_subclass(Tensor), places.on_host)


def test_what_a_device_may_order_or_draw_otherwise_is_not_known():
    ids = pair(IDS)
    values, places = ids.sort()
    assert not any(map(is_known, (values, places, ids.argsort(), ids.topk(2).indices)))
    of_equals = (ids.median(-1), ids.kthvalue(2), pair(IDS, torch.device("cpu")).mode(-1))
    assert not any(is_known(part) for found in of_equals for part in found)
    assert ids.argsort(stable=True).tolist() == [[3, 0, 1, 2, 4]]
    for draw in (lambda one: one.random_(9), lambda one: one.bernoulli_(0.5), lambda one: one.geometric_(0.5)):
        drawn = pair(IDS).clone()
        draw(drawn)
        assert not is_known(drawn)


def test_a_write_to_what_was_taken_to_the_host_leaves_the_copies_right():
    def cpu(one: Tensor) -> Tensor:
        """As Tensor.cpu of a device with values, which META is not."""
        return IDS.clone() if one.device == META else one

    ids = pair(IDS)
    taken = Mirrored.__torch_function__(cpu, (Mirrored,), (ids,))
    taken += 1
    assert taken.tolist() == [[8, 10, 10, 4, 10]]
    assert ids.tolist() == [[7, 9, 9, 3, 9]]


def test_what_code_takes_to_the_device_by_its_name_has_no_copy():
    """The copy would be taken there as well."""
    assert not is_known(pair(IDS).clone().to("meta", torch.int32))


def test_floats_and_large_tensors_are_not_known():
    assert not is_known(pair(torch.ones(2)))
    assert not is_known(pair(IDS).float())
    assert not is_known(torch.randint_like(pair(IDS), 9))
    assert is_known(pair(torch.ones(MOST, dtype=torch.int64)))
    assert not is_known(pair(torch.ones(MOST + 1, dtype=torch.int64)))
    # A mask as wide as embeddings has no more numbers than tokens.
    assert is_known(pair(IDS == 9)[..., None].expand(1, 5, MOST))
    assert not is_known(pair(IDS) + torch.ones(5, dtype=torch.int64, device=META))
