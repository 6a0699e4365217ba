"""Integers of a prompt that the host knows, so that a model's code asks the device for none of them.

transformers' models read ids, sizes and masks of a prompt while they run it: how many placeholders there are, how large
a picture is, whether a mask hides anything. The host would wait for the device each time. A `Mirrored` tensor lies
there, and the host has a copy; so has what is computed of such tensors alone. Only integers and booleans are mirrored,
which are computed alike everywhere: what lies on the device is what it would be without mirrors.
"""

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from data_engine.models.base import sent

# Larger ones, masks of pixels or of tokens by tokens, cost the host more than a wait.
MOST = 1 << 18
READS = {"item", "tolist", "equal", "__bool__", "__int__", "__float__", "__index__", "__contains__", "__format__"}
# What they give is as long as the values say.
BY_VALUE = {"nonzero", "masked_select", "repeat_interleave"}
# Which of equal values comes first, each device decides for itself, unless it is asked for a stable order.
OF_EQUALS = {"sort", "argsort", "topk", "kthvalue", "median", "nanmedian", "mode"}
# What they draw, a device draws by its own generator.
DRAWN = re.compile(r".*rand.*|bernoulli_?|geometric_")
INDEXING = {"__getitem__", "__setitem__"}
# They take sizes as numbers; the last are what torch.nn.functional.interpolate calls.
_SIZED = re.compile(r"view|reshape|split(_with_sizes)?|_?upsample_\w+")
_WRITES = re.compile(r"__setitem__|__set__|__i(add|sub|mul|floordiv|mod|pow|and|or|xor|lshift|rshift)__|.*[^_]_")


class _Known:
    """Whether the copies of a prompt's tensors are still right: views share their numbers, so all are or none."""

    now = True


class Mirrored(Tensor):
    """Integers or booleans on the device, of which the host has a copy."""

    on_host: Tensor
    known: _Known

    @classmethod
    def __torch_function__(cls, function: Callable, types: object, args: tuple = (), options: Mapping | None = None):
        options, name = options or {}, function.__name__
        with torch._C.DisableTorchFunctionSubclass():
            tensors = [one for one in tree_leaves((args, options)) if isinstance(one, Tensor)]
            if all(map(is_known, tensors)) and not _differs(name, options):
                return _with_copy(function, args, options, tensors[0].known)
            made = function(*_without_reads(name, args), **options)
            if _writes(name, options):
                # By a number that the host does not know.
                for one in tree_leaves((args[0], options.get("out"))):
                    if isinstance(one, Mirrored):
                        one.known.now = False
            return made


def mirrored(inputs: Mapping[str, Tensor], on_host: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A prompt's tensors on the device, those of its integers mirrored; `on_host` has what they were sent from."""
    known = _Known()
    # Copies, since code may write.
    return {
        name: _mirror(value, on_host[name].clone(), known) if _may_be(value) else value
        for name, value in inputs.items()
    }


def _mirror(on_device: Tensor, on_host: Tensor, known: _Known) -> Mirrored:
    made = on_device.as_subclass(Mirrored)
    made.on_host, made.known = on_host, known
    return made


def _may_be(made: object) -> bool:
    return isinstance(made, Tensor) and not made.dtype.is_floating_point and made.numel() <= MOST


def is_known(one: object) -> bool:
    """Whether it is a tensor of which the host has a copy, and that copy is right."""
    return isinstance(one, Mirrored) and one.known.now


def _differs(name: str, options: Mapping) -> bool:
    """Whether the host may come to another result than the device."""
    return DRAWN.fullmatch(name) is not None or (name in OF_EQUALS and not options.get("stable"))


def _writes(name: str, options: Mapping) -> bool:
    return "out" in options or _WRITES.fullmatch(name) is not None


def _with_copy(function: Callable, args: tuple, options: Mapping, known: _Known) -> object:
    """What the function makes of tensors that are all known, mirrored as well."""
    name = function.__name__
    device = next(one.device for one in tree_leaves((args, options)) if isinstance(one, Tensor))

    def copied() -> object:
        given, named = tree_map(_copy, (args, dict(options)))
        return function(*given, **named)

    if name in READS:
        return copied()
    if name in BY_VALUE:
        # A CPU gets the tensor itself, not a copy.
        return tree_map(lambda one: _mirror(sent(one, device), one.clone(), known), copied())
    made = function(*_without_reads(name, args), **options)
    if _writes(name, options):
        copied()
        return made
    return _paired(made, copied(), known, device) if any(map(_may_be, tree_leaves(made))) else made


def _copy(one: object) -> object:
    if isinstance(one, Mirrored):
        return one.on_host
    return torch.device("cpu") if isinstance(one, torch.device) else one


def _paired(made: object, copied: object, known: _Known, device: torch.device) -> object:
    if isinstance(made, tuple | list):
        return type(made)(_paired(*both, known, device) for both in zip(made, copied, strict=True))
    # Code may name the device in a way that `_copy` does not know. What it takes to the host is a tensor of its own,
    # while the copy of that would be the copy of what it was taken from.
    if isinstance(made, Mirrored) or not _may_be(made) or copied.device.type != "cpu" or made.device != device:
        return made
    return _mirror(made, copied, known)


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


def _places(one: object) -> Iterator[object]:
    """What stands for one index."""
    if isinstance(one, slice):
        yield slice(_number(one.start), _number(one.stop), _number(one.step))
    elif is_known(one) and one.dtype == torch.bool and one.ndim > 0:
        yield from (sent(places, one.device) for places in one.on_host.nonzero(as_tuple=True))
    else:
        yield one
