"""What code sends to a device while a prompt runs: it goes by `sent`, and the host knows it."""

import numpy as np
import pytest
import torch
from one_device import META, OneDevice, arrived
from torch import Tensor, nn

from data_engine.models.auto.forward import mirrored
from data_engine.models.auto.forward.mirrored import Known, is_known
from data_engine.models.auto.forward.sending import Sending

CPU = torch.device("cpu")


@pytest.fixture
def sent(monkeypatch) -> list[Tensor]:
    """What went by `sent`, to a device without values."""
    noted = []
    monkeypatch.setattr(mirrored, "sent", lambda values, to: noted.append(values) or arrived(values, to))
    return noted


@pytest.fixture
def sending(sent):
    mode = Sending()
    with OneDevice(), mode.of(Known(META)):
        yield mode


def known(value: Tensor) -> Tensor:
    return mirrored.mirrored({"it": value.to(META)}, {"it": value}, Known(META))["it"]


@pytest.mark.parametrize("data", [[3, 1], [[1, 2, 3]], np.array([4, 5]), [], 7])
@pytest.mark.parametrize("made", [torch.tensor, torch.as_tensor])
def test_a_list_goes_by_sent_and_is_known(sending, sent, made, data):
    found = made(data, dtype=torch.int32, device=META)
    assert found.device == META
    assert found.dtype == torch.int32
    if isinstance(data, list) and not data:
        # For which nothing is copied.
        assert not sent
    else:
        assert len(sent) == 1
        assert found.tolist() == np.array(data).tolist()


def test_a_list_of_known_numbers_is_known_and_one_of_others_is_left_alone(sending, sent):
    sizes = known(torch.tensor([2, 3]))
    assert torch.tensor([sizes[0], sizes[1] * 2, torch.tensor(1)], device=META).tolist() == [2, 6, 1]
    assert not is_known(torch.tensor([sizes[0], torch.zeros((), device=META)], device=META))


def test_fractions_go_by_sent_and_are_not_known(sending, sent):
    assert not is_known(torch.tensor([0.5], device=META))
    assert len(sent) == 1


def test_a_list_of_the_host_stays_there(sending, sent):
    assert torch.tensor([1, 2]).device == torch.as_tensor([1], device="cpu").device == CPU
    assert not sent


def test_a_tensor_of_the_host_goes_by_sent_and_is_known(sending, sent):
    places = torch.arange(3)
    for found in (places.to(META), places.to(device="meta"), places.to(torch.zeros(1, dtype=torch.int64, device=META))):
        assert found.device == META
    assert places.to(META, torch.int32).dtype == torch.int32
    assert places.to(META, torch.int32).tolist() == places.to("meta").tolist() == [0, 1, 2]
    assert len(sent) == 6
    # Only its type changes.
    assert places.to(torch.int32).device == places.to("cpu").device == CPU
    # It is there.
    assert torch.zeros(3, device=META).to(META, torch.int32).device == META
    assert len(sent) == 6


def test_what_is_written_on_the_host_later_is_not_what_was_sent(sending):
    places = torch.arange(3)
    found = places.to(META)
    places += 1
    assert found.tolist() == [0, 1, 2]


def test_a_tensor_of_a_host_that_is_the_device_stays_what_it_is():
    places = torch.arange(3)
    with Sending().of(Known(CPU)):
        found = places.to("cpu")
    places += 1
    assert found.tolist() == [1, 2, 3]


def test_places_of_the_host_choose_on_the_device(sending, sent):
    numbers = torch.zeros(4, 5, device=META)
    assert numbers[torch.tensor([0, 2])].shape == (2, 5)
    assert numbers[:, torch.tensor([True, False, True, False, False])].shape == (4, 2)
    numbers[torch.tensor([0, 2]), 1] = 3.0
    num_sent = len(sent)
    assert torch.ones(3)[torch.tensor([1])].tolist() == [1.0]
    # A single one goes along.
    assert numbers[torch.tensor(1)].shape == (5,)
    assert len(sent) == num_sent


def test_as_many_numbers_in_order_as_the_host_knows_are_made_there(sending, sent):
    sizes = known(torch.tensor([2, 5]))
    sent.clear()
    assert torch.arange(sizes[0], sizes[1], device=META).tolist() == [2, 3, 4]
    assert torch.arange(sizes[0]).tolist() == [0, 1]
    assert len(sent) == 1
    assert not is_known(torch.arange(3, device=META))
    sending.knows_counted = True
    assert torch.arange(3, device=META).tolist() == [0, 1, 2]
    # A device, which may round fractions otherwise, makes them itself.
    sent.clear()
    assert torch.arange(0, 1, 0.25, device=META).shape == (4,)
    assert not sent


def test_a_number_whose_copy_no_longer_holds_is_asked_of_the_device():
    size = mirrored.mirrored({"it": torch.tensor(2)}, {"it": torch.tensor(2)}, Known(CPU))["it"]
    size += torch.tensor(1)
    with Sending().of(Known(CPU)):
        assert torch.arange(size, device=CPU).tolist() == [0, 1, 2]
        assert torch.tensor([size], device=CPU).tolist() == [3]


@pytest.mark.parametrize(("made", "number"), [(torch.ones, 1), (torch.zeros, 0)])
def test_one_number_everywhere_is_known_and_made_by_the_device(sending, sent, made, number):
    """A mask that hides nothing, of which transformers asks whether it does."""
    found = made((1, 3), dtype=torch.int64, device=META)
    assert is_known(found)
    assert found.bool().all() == bool(number)
    assert found.device == META
    assert not is_known(made(3, device=META))
    on_host = made(3, dtype=torch.int64)
    assert on_host.device == CPU
    assert not is_known(on_host)
    assert not sent


@pytest.mark.parametrize("written", [False, True])
def test_behind_a_mask_that_the_host_does_not_know_it_counts_what_makes_one(sent, written):
    mode, sizes, numbers = Sending(), known(torch.tensor([2])), torch.zeros(3, device=META)

    def chosen() -> object:
        mask = torch.arange(3, device=META) < sizes
        if written:
            numbers[mask] = 1.0
        return numbers[mask].shape

    def run() -> object:
        with mode.of(Known(META)):
            return chosen()

    with pytest.raises(NotImplementedError, match="meta"):
        run()
    # And goes on to.
    assert [run() for _ in range(3)] == [(2,)] * 3


def test_masks_that_the_host_knows_and_places_change_nothing(sending, sent):
    numbers = torch.zeros(3, device=META)
    mask, places = torch.tensor([True, False, True]), torch.empty(2, dtype=torch.int64, device=META)
    for place in (known(mask), mask, places, slice(2), 1):
        numbers[place]
    assert not sending.knows_counted


class Part(nn.Module):
    """Makes a list a tensor of the device when it is told to."""

    def forward(self, makes: bool, fails: bool = False) -> Tensor | None:
        if fails:
            raise KeyError("no such size")
        return torch.tensor([1], device=META) if makes else None


@pytest.mark.parametrize("first", [True, False])
def test_a_part_that_sends_nothing_at_first_runs_without_the_mode(sent, first):
    mode, part = Sending(), Part()
    mode.leave(part)
    with mode.of(Known(META)):
        part(first)
        assert is_known(part(True)) == first
        with pytest.raises(KeyError):
            part(True, fails=True)
        # What follows it goes by the mode again.
        assert is_known(torch.tensor([1], device=META))
    assert not is_known(part(True))
    assert not is_known(torch.tensor([1], device=META))


def test_a_part_that_is_said_to_need_nothing_never_runs_in_the_mode(sent):
    mode, part = Sending(), Part()
    mode.leave(part, needs=False)
    with mode.of(Known(META)):
        assert not is_known(part(True))
        # Nor does one behind it.
        assert not is_known(part(True))


def test_a_part_that_once_sent_something_runs_in_the_mode_though_it_sends_nothing_for_a_while(sent):
    mode, part = Sending(), Part()
    mode.leave(part)
    with mode.of(Known(META)):
        part(True)
        part(False)
        assert is_known(part(True))


def test_a_part_within_one_that_runs_without_leaves_it_at_that(sent):
    mode, part = Sending(), Part()
    whole = nn.Sequential(part)
    mode.leave(part)
    mode.leave(whole, needs=False)
    with mode.of(Known(META)):
        assert not is_known(whole(True))
        assert is_known(part(True))


def test_a_part_that_failed_at_first_shows_nothing(sent):
    mode, part = Sending(), Part()
    mode.leave(part)
    with mode.of(Known(META)):
        with pytest.raises(KeyError):
            part(True, fails=True)
        assert is_known(part(True))
