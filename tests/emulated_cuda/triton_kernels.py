"""Triton's kernels on the emulated device, by their formulas.

All that Python does for a launch is done, and the kernels are launched without computing anything; what they would have
written is then computed by `reference`. tests/kernels runs the kernels themselves, in Triton's interpreter.
"""

from collections.abc import Callable

from torch import Tensor

from emulated_cuda.device_tensor import DeviceTensor
from emulated_cuda.emulation import Emulation
from emulated_cuda.leaves import tensors_of


def install(emulation: Emulation) -> None:
    """For the rest of this process."""
    from triton.runtime.jit import JITFunction

    import data_engine_kernels
    from data_engine_kernels import attention_triton, layer_triton, logps_triton, merge_triton, reference

    data_engine_kernels._make_launcher = lambda: None
    JITFunction.run = _launch
    functions = {
        layer_triton: ("rms_norm", "apply_rotary", "act_and_mul"),
        merge_triton: ("merge_attention",),
        logps_triton: ("token_logps",),
        attention_triton: ("grouped_decode_attention",),
    }
    for module, names in functions.items():
        for name in names:
            setattr(module, name, _by_formula(getattr(module, name), getattr(reference, name), emulation))


def _launch(self, *args, grid, warmup, **kwargs) -> None:
    """In the place of a kernel's compilation and launch."""
    given = tensors_of((args, kwargs))
    assert all(isinstance(one, DeviceTensor) for one in given), "a kernel is given memory of the host"


class Formula:
    """What the kernels of a function write to its results."""

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __repr__(self) -> str:
        return f"the formula of {self._function.__name__}"

    def writes(self, args: tuple, kwargs: dict) -> list[Tensor]:
        """As `emulation.written_by` asks."""
        return tensors_of(args[0])

    def __call__(self, out: object, args: tuple, options: dict) -> None:
        made = self._function(*args, **options)
        for to, numbers in zip(tensors_of(out), tensors_of(made), strict=True):
            to.copy_(numbers)


def _by_formula(function: Callable, formula: Callable, emulation: Emulation) -> Callable:
    def launched(*args, **options):
        out = function(*args, **options)
        emulation.launch(Formula(formula), (out, args, options), {})
        return out

    return launched
