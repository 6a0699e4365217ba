"""Three faults, put into the product one at a time: each must turn the suite red."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def windows_off() -> Iterator[None]:
    """Answers see all of the prompt and of themselves, whatever the layer's mask says."""
    raise NotImplementedError
    yield


@contextmanager
def positions_counted() -> Iterator[None]:
    """An answer's first position is the number of the prompt's tokens, instead of what follows the last position."""
    raise NotImplementedError
    yield


@contextmanager
def no_mask_function() -> Iterator[None]:
    """The product's attention is registered without a mask function, so that no mask reaches a layer."""
    raise NotImplementedError
    yield


@contextmanager
def unchecked() -> Iterator[None]:
    """The product does not hold its shared prefix against the plain path before it uses it."""
    raise NotImplementedError
    yield
