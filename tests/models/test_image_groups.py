"""Which images of a pass go through the vision tower in one call, and that each prompt gets what its own ones give."""

from types import SimpleNamespace

import pytest
import torch

from data_engine.models import image_groups

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("device", "is_split", "expected"), [(CUDA, False, 16), (CUDA, True, 1), (CPU, False, 1)])
def test_a_whole_model_on_a_gpu_takes_several_images_at_a_time(device, is_split, expected):
    assert image_groups.images_a_call(SimpleNamespace(device=device, is_split=is_split)) == expected


def test_images_of_one_size_go_together_as_many_as_fit_and_those_of_a_prompt_are_never_parted(monkeypatch):
    monkeypatch.setattr(image_groups, "MOST_IMAGES", 4)
    # Images or tiles of each prompt, and their side; the fourth goes alone by its size, the fifth by its number.
    shapes = [(2, 6), (1, 6), None, (1, 4), (5, 6), (1, 6), (3, 6), (1, 6)]
    pixels = [None if shape is None else torch.randn(shape[0], 3, shape[1], shape[1]) for shape in shapes]
    calls = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return images.flatten(2)

    model = SimpleNamespace(device=CUDA, is_split=False)
    found = list(image_groups.encoded(range(len(shapes)), pixels.__getitem__, encode, model))
    assert [prompt for prompt, _ in found] == list(range(len(shapes)))
    assert calls == [3, 4]
    together = (0, 1, 5, 6)
    for prompt, features in found:
        assert (features is not None) == (prompt in together)
        if features is not None:
            assert torch.equal(features, pixels[prompt].flatten(2))
