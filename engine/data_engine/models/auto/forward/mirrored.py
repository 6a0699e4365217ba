"""Integers of a prompt that the host knows, so that a model's code asks the device for none of them.

transformers' models read ids, sizes and masks of a prompt while they run it: how many placeholders there are, how large
a picture is, whether a mask hides anything. The host would wait for the device each time. A `Mirrored` tensor lies
there, and the host has a copy; so has what is computed of such tensors alone. Only integers and booleans are mirrored,
which are computed alike everywhere: what lies on the device is what it would be without mirrors.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from data_engine.models.device import sent

# Larger ones, masks of pixels or of tokens by tokens, cost the host more than a wait.
MOST = 1 << 16
READS = {"item", "tolist", "equal", "__bool__", "__int__", "__float__", "__index__", "__contains__", "__format__"}
# What they give is as long as the values say.
BY_VALUE = {"nonzero", "masked_select", "repeat_interleave", "unique_consecutive"}
# Which of equal values comes first, each device decides for itself, unless it is asked for a stable order.
OF_EQUALS = {"sort", "argsort", "topk", "kthvalue", "median", "nanmedian", "mode"}
# What they draw, a device draws by its own generator.
DRAWN = re.compile(r".*rand.*|bernoulli_?|geometric_")
INDEXING = {"__getitem__", "__setitem__"}
# They take no more of their second tensor than its shape.
BY_SHAPE = {"expand_as": Tensor.expand, "view_as": Tensor.view, "reshape_as": Tensor.reshape}
# They take sizes as numbers; the last are what torch.nn.functional.interpolate calls.
_SIZED = re.compile(r"view|reshape|expand|repeat|split(_with_sizes)?|_?upsample_\w+")
_WRITES = re.compile(r"__setitem__|__set__|__i(add|sub|mul|floordiv|mod|pow|and|or|xor|lshift|rshift)__|.*[^_]_")


class Known:
    """Whether the copies of a prompt's tensors are still right: views share their numbers, so all are or none."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.now = device, True


class Mirrored(Tensor):
    """Integers or booleans on the device, of which the host has a copy."""

    on_host: Tensor
    known: Known

    @classmethod
    def __torch_function__(cls, function: Callable, types: object, args: tuple = (), options: Mapping | None = None):
        options, name = options or {}, function.__name__
        if name in BY_SHAPE and len(args) > 1:
            function, name, args = BY_SHAPE[name], BY_SHAPE[name].__name__, (args[0], args[1].shape)
        if name == "__getitem__" and is_known(args[1]) and (repeats := _repeats(args[1].on_host)):
            # A mask as wide as embeddings, of which each is chosen whole or not at all.
            return args[0][args[1][(..., *[0] * repeats)]].flatten(0, repeats)
        with torch._C.DisableTorchFunctionSubclass():
            tensors = tensors_in((args, options))
            known = next(filter(is_known, tensors), None)
            readable = known is not None and all(_is_read(one, known) for one in tensors)
            if readable and not _differs(name, options):
                return _with_copy(function, args, options, known)
            made = function(*_without_reads(name, args), **options)
            if _writes(name, options):
                # By a number that the host does not know.
                for one in tree_leaves((args[0], options.get("out"))):
                    if isinstance(one, Mirrored):
                        one.known.now = False
            return made


def mirrored(inputs: Mapping[str, Tensor], on_host: Mapping[str, Tensor], known: Known) -> dict[str, Tensor]:
    """A prompt's tensors on the device, those of its integers mirrored; `on_host` has what they were sent from."""
    # Copies, since code may write.
    return {
        name: _mirror(value, on_host[name].clone(), known) if may_be(value) else value for name, value in inputs.items()
    }


def sent_mirrored(on_host: Tensor, known: Known) -> Tensor:
    """A tensor of the host on the device; integers mirrored, as long as they are not too many."""
    on_device = sent(on_host, known.device)
    # A CPU gets the tensor itself, not a copy.
    return _mirror(on_device, on_host.clone(), known) if may_be(on_host) else on_device


def tensors_in(given: object) -> list[Tensor]:
    """The tensors of a function's arguments."""
    return [one for one in tree_leaves(given) if isinstance(one, Tensor)]


def _mirror(on_device: Tensor, on_host: Tensor, known: Known) -> Mirrored:
    made = on_device.as_subclass(Mirrored)
    made.on_host, made.known = on_host, known
    return made


def may_be(made: object) -> bool:
    """Whether something can be mirrored."""
    return isinstance(made, Tensor) and not made.dtype.is_floating_point and _different(made) <= MOST


def _different(one: Tensor) -> int:
    """Its numbers, those along a dimension that repeats them once."""
    return math.prod(size for size, stride in zip(one.shape, one.stride(), strict=True) if stride)


def _repeats(mask: Tensor) -> int:
    """Along how many of its last dimensions a mask repeats its numbers."""
    last = itertools.takewhile(lambda stride: stride == 0, reversed(mask.stride()[1:]))
    return len(list(last)) if mask.dtype == torch.bool else 0


def is_known(one: object) -> bool:
    """Whether it is a tensor of which the host has a copy, and that copy is right."""
    return isinstance(one, Mirrored) and one.known.now


def _is_read(one: Tensor, beside: Mirrored) -> bool:
    """Whether the host can read it without a wait: a copy, or a tensor of its own beside one on a device."""
    return is_known(one) or (may_be(one) and one.device.type == "cpu" != beside.device.type)


def _differs(name: str, options: Mapping) -> bool:
    """Whether the host may come to another result than the device."""
    return DRAWN.fullmatch(name) is not None or (name in OF_EQUALS and not options.get("stable"))


def _writes(name: str, options: Mapping) -> bool:
    return "out" in options or _WRITES.fullmatch(name) is not None


def _with_copy(function: Callable, args: tuple, options: Mapping, one: Mirrored) -> object:
    """What the function makes of tensors that are all known, `one` of them on the device, mirrored as well."""
    name, known = function.__name__, one.known

    def copied() -> object:
        given, named = tree_map(host_copy, (args, dict(options)))
        return function(*given, **named)

    # A number that is read, or written to a tensor of the host.
    if name in READS or (_writes(name, options) and not isinstance(options.get("out", args[0]), Mirrored)):
        return copied()
    if name in BY_VALUE:
        return tree_map(lambda one: sent_mirrored(one, known), copied())
    made = function(*_without_reads(name, args), **options)
    if _writes(name, options):
        copied()
        return made
    return _paired(made, copied(), known) if any(map(may_be, tree_leaves(made))) else made


def host_copy(one: object) -> object:
    """What stands for it on the host."""
    if isinstance(one, Mirrored):
        return one.on_host
    if isinstance(one, slice):
        return _slice(one)
    return torch.device("cpu") if isinstance(one, torch.device) else one


def _paired(made: object, copied: object, known: Known) -> object:
    if isinstance(made, tuple | list):
        return type(made)(_paired(*both, known) for both in zip(made, copied, strict=True))
    # Code may name the device in a way that `host_copy` does not know. What it takes to the host is a tensor of its
    # own, while the copy of that would be the copy of what it was taken from.
    placed = isinstance(made, Tensor) and (copied.device.type, made.device.type) == ("cpu", known.device.type)
    return _mirror(made, copied, known) if placed and may_be(made) and not isinstance(made, Mirrored) else made


def _without_reads(name: str, args: tuple) -> tuple:
    """Arguments in which the host's numbers stand for sizes, and for a mask the places where it is true: the device
    need not say how many there are.
    """
    if _SIZED.fullmatch(name):
        return args[0], *tree_map(_number, args[1:])
    if name not in INDEXING:
        return args
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return args[0], tuple(place for one in index for place in _places(one)), *args[2:]


def _number(one: object) -> object:
    return int(one.on_host) if is_known(one) else one


def _slice(one: slice) -> slice:
    return slice(_number(one.start), _number(one.stop), _number(one.step))


def _places(one: object) -> Iterator[object]:
    """What stands for one index."""
    if isinstance(one, slice):
        yield _slice(one)
    elif is_known(one) and one.dtype == torch.bool and one.ndim > 0:
        yield from (sent(places, one.device) for places in one.on_host.nonzero(as_tuple=True))
    else:
        yield one
