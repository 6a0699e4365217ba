"""What a capture notes, and a replay runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from emulated_cuda.leaves import mapped, tensors_of


@dataclass(frozen=True)
class Place:
    """A tensor in memory that the capture did not make: it may be freed."""

    storage: StorageWeakRef
    offset: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, one: Tensor) -> "Place":
        return cls(StorageWeakRef(one.untyped_storage()), one.storage_offset(), one.size(), one.stride(), one.dtype)

    def tensor(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        assert storage is not None, "a captured operation uses memory that was freed"
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


class Noted(NamedTuple):
    """One operation of a capture."""

    func: Callable
    args: tuple
    kwargs: dict[str, Any]
    made: list[Tensor]


class Recording:
    """The operations of a captured stream."""

    def __init__(self) -> None:
        self.is_open, self.is_valid = True, True
        self._noted: list[Noted] = []
        self._own: dict[int, Tensor] = {}
        """memory that the capture made, by its storage"""
        self._before: dict[int, tuple[Place, torch.UntypedStorage]] = {}
        """memory that was there, as it was"""

    def _is_own(self, one: Tensor) -> bool:
        return one.untyped_storage()._cdata in self._own

    def keep(self, one: Tensor) -> None:
        """Before memory is written: a capture computes nothing."""
        key = one.untyped_storage()._cdata
        if key not in self._own and key not in self._before:
            self._before[key] = Place.of(one), one.untyped_storage().clone()

    def note(self, func: Callable, args: tuple, kwargs: dict[str, Any], made: list[Tensor]) -> None:
        given = {one.untyped_storage()._cdata for one in tensors_of((args, kwargs))}
        fresh = [one for one in made if one.untyped_storage()._cdata not in given]
        for one in fresh:
            self._own[one.untyped_storage()._cdata] = one
        # What is a view of what was given is so again at each replay.
        args, kwargs = mapped(self._placed, (args, kwargs))
        self._noted.append(Noted(func, args, kwargs, fresh))

    def _placed(self, one: object) -> object:
        return Place.of(one) if isinstance(one, Tensor) and not self._is_own(one) else one

    def close(self) -> None:
        """Undo what was written, and spoil what was made."""
        self.is_open = False
        for place, numbers in self._before.values():
            place.tensor().untyped_storage().copy_(numbers)
        self._before.clear()
        for one in self._own.values():
            one.untyped_storage().fill_(255)

    def replay(self, used: Callable[[list[Tensor], list[Tensor], object], None], written_by: Callable) -> None:
        for one in self._noted:
            args, kwargs = mapped(_found, (one.args, one.kwargs))
            fresh = tensors_of(one.func(*args, **kwargs))
            if one.made:
                for to, new in zip(one.made, fresh, strict=True):
                    to.copy_(new)
            used(tensors_of((args, kwargs)), [*written_by(one.func, args, kwargs), *one.made], one.func)


def _found(given: object) -> object:
    return given.tensor() if isinstance(given, Place) else given
