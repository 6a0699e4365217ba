"""The operations of the hot loops: each an eager formula on CPU and a Triton kernel on CUDA.

`reference` has the formulas, `layouts` the inputs of decode attention, `logps_triton`, `attention_triton`,
`merge_triton` and `layer_triton` the kernels. Importing needs neither Triton nor CUDA. kernels/README.md says which is
used when.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from data_engine_kernels import reference
from data_engine_kernels.layouts import MOST_WIDTH, USUAL, LayerCaches, RowIndex, Special, members_of
from data_engine_kernels.reference import Activation

__all__ = [
    "MOST_WIDTH", "Activation", "CannotLaunch", "LayerCaches", "RowIndex", "SmallCard", "Special", "act_and_mul",
    "apply_rotary", "grouped_decode_attention", "members_of", "merge_attention", "rms_norm", "token_logps",
    "use_triton",
]  # fmt: skip


class CannotLaunch(ValueError):
    """A kernel cannot be launched on this machine, whatever the number of rows."""


class SmallCard(CannotLaunch):
    """It needs more of the card than that has."""


def token_logps(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probability of each target token, in nats, fp32 [N]: see reference.token_logps."""
    if not use_triton(hidden_ND):
        return reference.token_logps(hidden_ND, weight_VD, targets_N)
    from data_engine_kernels import logps_triton

    with _launching_on(hidden_ND.device):
        return logps_triton.token_logps(hidden_ND, weight_VD, targets_N)


def grouped_decode_attention(
    query_RHD: Tensor, caches: LayerCaches, rows: RowIndex, scale: float, special: Special = USUAL
) -> Tensor:
    """One decode step's attention over [prefix | own suffix], [R, H, D]: see reference.grouped_decode_attention."""
    if not use_triton(query_RHD):
        return reference.grouped_decode_attention(query_RHD, caches, rows, scale, special)
    from data_engine_kernels import attention_triton

    with _launching_on(query_RHD.device):
        return attention_triton.grouped_decode_attention(query_RHD, caches, rows, scale, special)


def merge_attention(one_THD: Tensor, one_lse_HT: Tensor, other_THD: Tensor, other_lse_HT: Tensor) -> Tensor:
    """One attention from two over other keys, [T, H, D]: see reference.merge_attention."""
    given = one_THD, one_lse_HT, other_THD, other_lse_HT
    if not (use_triton(one_THD) and one_THD.stride(-1) == other_THD.stride(-1) == 1):
        return reference.merge_attention(*given)
    from data_engine_kernels import merge_triton

    with _launching_on(one_THD.device):
        return merge_triton.merge_attention(*given)


def rms_norm(
    rows: Tensor,
    weight_D: Tensor | None,
    epsilon: float,
    offset: float | None = None,
    *,
    centred: bool = False,
    gate: Tensor | None = None,
) -> Tensor:
    """The norm of a decoder's layers, [..., D]: see reference.rms_norm."""
    # A weight for each head would be broadcast, whose first part the kernel would take for all.
    fits = weight_D is None or (
        weight_D.dtype == rows.dtype and weight_D.shape == rows.shape[-1:] and weight_D.is_contiguous()
    )
    fits = fits and (gate is None or (gate.dtype == rows.dtype and gate.shape == rows.shape))
    if not (use_triton(rows) and fits):
        return reference.rms_norm(rows, weight_D, epsilon, offset, centred=centred, gate=gate)
    from data_engine_kernels import layer_triton

    with _launching_on(rows.device):
        return layer_triton.rms_norm(rows, weight_D, epsilon, offset, centred=centred, gate=gate)


def apply_rotary(
    heads: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    *,
    neighbours: bool = False,
    in_fp32: bool = False,
    apart: bool = False,
) -> tuple[Tensor, ...]:
    """Rotary embedding of one or two tensors [B, H, T, D]: see reference.apply_rotary."""
    batch, _, tokens, width = heads[0].shape
    fits = all(one.stride(-1) == 1 for one in (*heads, cos, sin)) and len({one.dtype for one in heads}) == 1
    # Tables of fp32 would make the result fp32, where that is not rounded in the end.
    fits = fits and cos.dtype == sin.dtype and (in_fp32 or cos.dtype == heads[0].dtype)
    # The kernel looks at no size but these; others are torch's to broadcast, or to refuse.
    fits = fits and all((one.shape[0], *one.shape[2:]) == (batch, tokens, width) for one in heads)
    fits = fits and cos.shape == sin.shape and cos.shape[:2] in ((batch, tokens), (1, tokens)) and cos.shape[2] <= width
    if not (use_triton(cos) and fits):
        return reference.apply_rotary(heads, cos, sin, neighbours=neighbours, in_fp32=in_fp32, apart=apart)
    from data_engine_kernels import layer_triton

    with _launching_on(cos.device):
        return layer_triton.apply_rotary(heads, cos, sin, neighbours=neighbours, in_fp32=in_fp32, apart=apart)


def act_and_mul(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """What an MLP makes of its two products, [..., D]: see reference.act_and_mul."""
    if not (use_triton(gate) and gate.dtype == up.dtype and gate.shape == up.shape):
        return reference.act_and_mul(gate, up, activation)
    from data_engine_kernels import layer_triton

    with _launching_on(gate.device):
        return layer_triton.act_and_mul(gate, up, activation)


@contextlib.contextmanager
def _launching_on(device: torch.device) -> Iterator[None]:
    """Launch there: Triton goes by the current device, not by that of the tensors.

    Raises SmallCard where a program needs more shared memory or threads than a multiprocessor has, and CannotLaunch
    where Triton cannot launch any.
    """
    from triton.runtime.errors import OutOfResources

    _make_launcher()
    try:
        with torch.cuda.device(device):
            yield
    except OutOfResources as error:
        raise SmallCard(
            f"a kernel needs {error.required:,} of {error.name}, and {torch.cuda.get_device_name(device)} has "
            f"{error.limit:,} for a program: take a card with more of it, or --device cpu"
        ) from None


@functools.cache
def _make_launcher() -> None:
    """Have Triton compile what it launches kernels by, once a process. Raises CannotLaunch where it cannot."""
    from triton.runtime import driver

    try:
        _ = driver.active
    # Where a compiler is missing or fails, or CUDA's library is not found, it raises errors of many kinds.
    except Exception as error:
        mend = "install a C compiler and the headers of this Python (apt-get install gcc python3-dev)"
        # Of a folder that takes no file, as without a home, or none that can be loaded; a compiler may not be found.
        if isinstance(error, OSError | ImportError) and not isinstance(error, FileNotFoundError):
            mend = "set TRITON_CACHE_DIR to a folder that this user may write to and load programs from"
        raise CannotLaunch(
            f"Triton cannot compile what it launches kernels by ({type(error).__name__}: {str(error)[:300]}): {mend}, "
            "or take --device cpu"
        ) from error


def use_triton(tensor: Tensor) -> bool:
    """Whether the kernels are used: on CUDA, if Triton is installed, which torch for CUDA brings on Linux."""
    if not tensor.is_cuda:
        return False
    if find_spec("triton") is None:
        warnings.warn("Triton is not installed, so the slower eager path runs: pip install triton", stacklevel=3)
        return False
    return True
