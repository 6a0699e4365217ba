"""What a model's code sends to the device while it runs a prompt: lists, tensors of the host, numbers that it counts.

torch copies them from memory that is not pinned, and the host waits until the device has done all that it was given.
In this mode they go by `sent`, and are mirrored (mirrored.py). It sees each call of torch, which costs the host a few
µs: so decoder, tower and layers run without it, the latter unless they need it in the small prompt at loading.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from data_engine.models.auto.forward.mirrored import (
    Known,
    host_copy,
    is_known,
    may_be,
    mirrored,
    sent_mirrored,
    tensors_in,
)


class Sending(TorchFunctionMode):
    """One model's; a prompt runs inside `of`."""

    def __init__(self) -> None:
        super().__init__()
        self._known: Known | None = None
        self._num_sent, self.knows_counted = 0, False
        self._is_on = False
        # Of each part that has run, whether it needs the mode.
        self._needs: dict[nn.Module, bool] = {}
        self._ways: dict[Callable, Callable] = {
            torch.tensor: self._made,
            torch.as_tensor: self._made,
            torch.arange: self._counted,
            torch.ones: self._filled,
            torch.zeros: self._filled,
            Tensor.to: self._moved,
            Tensor.__getitem__: self._indexed,
            Tensor.__setitem__: self._indexed,
        }

    @contextlib.contextmanager
    def of(self, known: Known) -> Iterator[None]:
        """Send the numbers of a prompt."""
        self._known = known
        try:
            with self:
                self._is_on = True
                yield
        finally:
            self._is_on, self._known = False, None

    @contextlib.contextmanager
    def _off(self) -> Iterator[None]:
        self._is_on = False
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()
            self._is_on = True

    def leave(self, part: nn.Module, needs: bool | None = None) -> None:
        """Have a part of the model run without the mode, unless it needs it; None: as it shows when it first runs."""
        forward = part.forward
        if needs is not None:
            self._needs[part] = needs

        @functools.wraps(forward)
        def run(*args, **options):
            if not self._is_on:
                return forward(*args, **options)
            if not self._needs.get(part, True):
                with self._off():
                    return forward(*args, **options)
            before = self._num_sent
            made = forward(*args, **options)
            self._needs.setdefault(part, self._num_sent > before)
            return made

        part.forward = run

    def __torch_function__(self, function: Callable, types: object, args: tuple = (), options: Mapping | None = None):
        way = self._ways.get(function)
        return function(*args, **(options or {})) if way is None else way(function, args, options or {})

    def _made(self, function: Callable, args: tuple, options: Mapping) -> Tensor:
        """A tensor of a list."""
        # Nothing is copied for an empty one, of which caches begin.
        sends = self._is_device(options.get("device")) and not (args and isinstance(args[0], list) and not args[0])
        if not sends or not all(is_known(one) or self._is_host(one) for one in tensors_in((args, options))):
            return function(*args, **options)
        given, named = tree_map(host_copy, (args, dict(options)))
        return self._sent(function(*given, **named))

    def _counted(self, function: Callable, args: tuple, options: Mapping) -> Tensor:
        """Numbers in order, as many as the host knows."""
        tensors = tensors_in((args, options))
        # Without a tensor, the device makes them and does not wait.
        if not (tensors or self.knows_counted) or not all(map(is_known, tensors)):
            return function(*args, **options)
        given, named = tree_map(host_copy, (args, dict(options)))
        made = function(*given, **named)
        if not self._is_device(options.get("device")):
            return made
        if made.is_floating_point():
            # A device may round fractions otherwise.
            return function(*given, **named | {"device": options["device"]})
        return self._sent(made)

    def _filled(self, function: Callable, args: tuple, options: Mapping) -> Tensor:
        """The same number everywhere: the device makes it, and the host need not ask whether a mask hides anything."""
        made = function(*args, **options)
        if not self._is_device(options.get("device")) or not may_be(made):
            return made
        given, named = tree_map(host_copy, (args, dict(options)))
        return self._paired(made, function(*given, **named))

    def _moved(self, function: Callable, args: tuple, options: Mapping) -> Tensor:
        """A tensor of the host, by Tensor.to."""
        one, *rest = args
        if not self._is_host(one):
            return function(*args, **options)
        rest, options = tree_map(
            lambda given: torch.device(given) if isinstance(given, str) else given, (rest, options)
        )
        places = (getattr(given, "device", given) for given in (*rest, *options.values()))
        if not any(self._is_device(place) for place in places if isinstance(place, torch.device)):
            return function(one, *rest, **options)
        # What is left for it is to change the type.
        return function(self._sent(one), *rest, **options)

    def _indexed(self, function: Callable, args: tuple, options: Mapping) -> object:
        """What stands at places that are a tensor of the host."""
        one, index, *value = args
        places = index if isinstance(index, tuple) else (index,)
        # A mask of which the host would have to ask how much it chooses, made of numbers that the device counted, say.
        self.knows_counted |= any(map(self._is_unknown_mask, places))
        if any(map(self._is_host, places)) and not self._is_host(one):
            # A single number goes along with the launch.
            places = tuple(self._sent(place) if self._is_host(place) and place.ndim else place for place in places)
            args = one, places, *value
        return function(*args, **options)

    def _is_device(self, device: object) -> bool:
        return device is not None and torch.device(device).type == self._known.device.type

    def _is_host(self, one: object) -> bool:
        """Whether it is a tensor that lies on the host alone."""
        return isinstance(one, Tensor) and one.device.type == "cpu" != self._known.device.type

    def _is_unknown_mask(self, place: object) -> bool:
        is_mask = isinstance(place, Tensor) and place.dtype == torch.bool
        return is_mask and not is_known(place) and not self._is_host(place)

    def _paired(self, on_device: Tensor, on_host: Tensor) -> Tensor:
        return mirrored({"": on_device}, {"": on_host}, self._known)[""]

    def _sent(self, on_host: Tensor) -> Tensor:
        self._num_sent += 1
        return sent_mirrored(on_host, self._known)
