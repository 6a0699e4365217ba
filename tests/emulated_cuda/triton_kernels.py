"""Triton's kernels on the emulated device: in Triton's interpreter, which takes minutes, or by their formulas.

By formula, all that Python does for a launch is done, and the kernels are launched without computing anything; what
they would have written is then computed by `reference`.
"""

from collections.abc import Callable

from tests.emulated_cuda.device_tensor import DeviceTensor
from tests.emulated_cuda.emulation import Emulation
from tests.emulated_cuda.leaves import tensors_of
from torch import Tensor


def install(emulation: Emulation, by_formula: bool) -> None:
    """Triton must be told to interpret before it is imported first."""
    import triton.runtime.interpreter

    import data_engine_kernels
    from data_engine_kernels import attention_triton, layer_triton, logps_triton, merge_triton, reference

    data_engine_kernels._make_launcher = lambda: None
    functions = triton.runtime.interpreter.InterpretedFunction
    functions.run = _run(functions.run, emulation, not by_formula)
    if not by_formula:
        return
    for module, names in (
        (layer_triton, ("rms_norm", "apply_rotary", "act_and_mul")),
        (merge_triton, ("merge_attention",)),
        (logps_triton, ("token_logps",)),
        (attention_triton, ("grouped_decode_attention",)),
    ):
        for name in names:
            setattr(module, name, _by_formula(getattr(module, name), Formula(getattr(reference, name)), emulation))


def _run(original: Callable, emulation: Emulation, computes: bool) -> Callable:
    def run(self, *args, grid, warmup, **kwargs):
        leaves = tensors_of((args, kwargs))
        if warmup or not any(isinstance(one, DeviceTensor) for one in leaves):
            return original(self, *args, grid=grid, warmup=warmup, **kwargs)
        assert all(isinstance(one, DeviceTensor) for one in leaves), "a kernel is given memory of the host"
        if computes:
            if "INTERPRETED" in kwargs:
                kwargs["INTERPRETED"] = True
            emulation.launch(Kernel(original, self, grid), args, kwargs)
        return None

    return run


class Kernel:
    """A launch of a kernel, which may write all that it is given."""

    def __init__(self, run: Callable, kernel, grid) -> None:
        self._run, self._kernel, self._grid = run, kernel, grid

    def writes(self, args: tuple, kwargs: dict) -> list[Tensor]:
        return tensors_of((args, kwargs))

    def __repr__(self) -> str:
        return f"kernel {self._kernel.fn.__name__}"

    def __call__(self, *args, **kwargs) -> None:
        self._run(self._kernel, *args, grid=self._grid, warmup=False, **kwargs)


class Formula:
    """What the kernels of a function write to its results."""

    def __init__(self, function: Callable) -> None:
        self._function = function

    def writes(self, args: tuple, kwargs: dict) -> list[Tensor]:
        return tensors_of(args[0])

    def __repr__(self) -> str:
        return f"the formula of {self._function.__name__}"

    def __call__(self, out, args: tuple, options: dict) -> None:
        made = self._function(*args, **options)
        for to, numbers in zip(tensors_of(out), tensors_of(made), strict=True):
            to.copy_(numbers)


def _by_formula(function: Callable, formula: Formula, emulation: Emulation) -> Callable:
    def launched(*args, **options):
        out = function(*args, **options)
        if not any(isinstance(one, DeviceTensor) for one in tensors_of((args, options))):
            return out
        emulation.launch(formula, (out, args, options), {})
        return out

    return launched
