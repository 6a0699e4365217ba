"""Vision towers that run all images of a prompt as one row of patches, as those of Qwen and GLM do.

Where the patches of such a row stand, and which see each other (those of an image, or of a window of it), follows from
the images' sizes. transformers makes these numbers on the device, and the host waits for them; here they are made on
the host and sent. On a GPU with flash attention, a layer then attends in one call, not in one for each image or window.

Shapes: N images, T patches of a prompt, H heads, D head width.
"""

import contextlib
import inspect
import logging
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import vision_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from data_engine.errors import LostRankError
from data_engine.models.auto.forward.mirrored import is_known, sent_mirrored
from data_engine.models.auto.parts import difference
from data_engine.models.call_errors import why_not_called
from data_engine.models.device import sent
from data_engine.models.layers.attention_math import Bounds, flash, has_flash

log = logging.getLogger(__name__)

# transformers hands the bounds of images and windows to attention with "flash" in its name.
NAME = "data_engine_flash"
BOUNDS = ("cu_seqlens", "cu_window_seqlens")
# Most that a trial may be off: the norm of the difference over that of the tower's own numbers. Of patches that see
# those of another window or image, it is of the order of 1.
TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2


class TowerCall(NamedTuple):
    """A call of a vision tower."""

    args: tuple
    options: dict
    out: object

    @property
    def hidden(self) -> Tensor:
        """The last hidden states, where the tower gives them first."""
        return self.out[0]


@contextlib.contextmanager
def tower_calls(vision: nn.Module | None) -> Iterator[list[TowerCall]]:
    """The calls of a tower inside."""
    calls: list[TowerCall] = []
    if vision is None:
        yield calls
        return
    with vision.register_forward_hook(
        lambda module, args, options, out: calls.append(TowerCall(args, options, out)), with_kwargs=True
    ):
        yield calls


class PackedTower:
    """Hands a tower the numbers that the host makes of its images' sizes, where the host knows these."""

    def __init__(self, vision: nn.Module) -> None:
        self._names = list(inspect.signature(vision.forward).parameters)
        self._hook = vision.register_forward_pre_hook(self._add_numbers, with_kwargs=True)

    @classmethod
    def of(cls, vision: nn.Module, call: TowerCall) -> "PackedTower | None":
        """Set a tower up, as far as it repeats one of its calls with it; None: the tower stays as it is."""
        if not (widths := _packed_widths(vision)):
            return None
        own, device, dtype = vision.config._attn_implementation, call.hidden.device, call.hidden.dtype
        ways = [NAME] if all(has_flash(device, dtype, width) for width in widths) else []
        if _takes_numbers(vision):
            ways.append(own)
        tower = cls(vision)
        for way in ways:
            vision.config._attn_implementation = way
            if (problem := _problem(vision, call)) is None:
                return tower
            log.info("the vision tower stays without attention %s and numbers of the host: %s", way, problem)
        vision.config._attn_implementation = own
        tower._hook.remove()
        return None

    def _add_numbers(self, vision: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict] | None:
        # By name or by place.
        grid_N3 = (dict(zip(self._names, args, strict=False)) | options).get("grid_thw")
        if not is_known(grid_N3) or not _takes_numbers(vision):
            return None
        numbers = _numbers(vision, grid_N3.on_host)
        for name, value in numbers.items():
            if name not in BOUNDS and isinstance(value, Tensor):
                numbers[name] = sent(value, grid_N3.device)
            # Attention in a call for each image or window asks the bounds for numbers of the host, in each layer. In
            # one call it wants them on the device, where some towers ask them how long the longest is.
            elif name in BOUNDS and vision.config._attn_implementation == NAME:
                numbers[name] = sent_mirrored(value, grid_N3.known)
        return args, options | numbers


def _packed_widths(vision: nn.Module) -> set[int]:
    """Head widths of the layers that attend within bounds."""
    return {
        module.head_dim
        for module in vision.modules()
        if hasattr(module, "head_dim") and "cu_seqlens" in inspect.signature(module.forward).parameters
    }


def _takes_numbers(vision: nn.Module) -> bool:
    """Whether it takes what `_numbers` makes ready-made."""
    return "get_vision_position_ids" in _code(vision) and hasattr(vision, "spatial_merge_size")


def _code(vision: nn.Module) -> dict:
    return vars(sys.modules[type(vision).__module__])


def _numbers(vision: nn.Module, grid_N3: Tensor) -> dict[str, Tensor | int]:
    """What the tower makes of a grid, by the names under which it takes that ready-made (transformers.vision_utils)."""
    merge, code = vision.spatial_merge_size, _code(vision)
    bounds = vision_utils.get_vision_cu_seqlens(grid_N3)
    found = {
        "position_ids": vision_utils.get_vision_position_ids(grid_N3, merge),
        "cu_seqlens": bounds,
        "max_seqlen": int(bounds.diff().max()),
    }
    if "get_vision_window_index" in code:
        order, bounds = vision_utils.get_vision_window_index(grid_N3, merge, vision.window_size, vision.patch_size)
        found |= {"window_index": order, "cu_window_seqlens": bounds, "max_window_seqlen": int(bounds.diff().max())}
    # Not where a part of the tower has the table: Muse Spark's reads it with height and width exchanged.
    if "get_vision_interpolation_indices_and_weights" in code and hasattr(vision, "num_grid_per_side"):
        found["interp_indices"], found["interp_weights"] = vision_utils.get_vision_interpolation_indices_and_weights(
            grid_N3, vision.num_grid_per_side, vision.interpolation_mode, vision.interpolation_align_corners, merge
        )
    return found


@torch.inference_mode()
def _problem(vision: nn.Module, call: TowerCall) -> str | None:
    """Why the tower, as it is set up, does not do what it did in that call."""
    try:
        again = vision(*call.args, **call.options)[0]
    except (torch.OutOfMemoryError, LostRankError):
        raise
    # Whatever a tower raises that is called in a way that it does not know.
    except Exception as error:
        return why_not_called(error)
    tolerance = TOLERANCE if call.hidden.dtype == torch.float32 else HALF_TOLERANCE
    off = difference(again, call.hidden)
    return None if off <= tolerance else f"its numbers are off by {off:.2g}"


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    max_length_q: int,
    max_length_k: int,
    **options,
) -> tuple[Tensor, None]:
    """Mixed values [1, T, H, D] of [1, H, T, D], each of its own image or window alone."""
    query_THD, key_THD, value_THD = (part[0].transpose(0, 1) for part in (query, key, value))
    queries, keys = Bounds(cu_seq_lens_q, max_length_q), Bounds(cu_seq_lens_k, max_length_k)
    mixed_THD, _ = flash(query_THD, key_THD, value_THD, queries, keys, False, scaling)
    return mixed_THD[None], None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
