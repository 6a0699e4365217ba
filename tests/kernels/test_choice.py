"""Which path runs: the eager one wherever there is no CUDA device or no Triton, and Triton is not imported for it."""

import contextlib
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

import data_engine_kernels as kernels
from data_engine_kernels import LayerCaches, RowIndex, members_of, reference

INSTALL = "install a C compiler and the headers of this Python"


def test_on_the_cpu_both_operations_run_without_triton():
    code = """if True:
        import sys
        sys.modules["triton"] = None
        import torch
        from data_engine_kernels import LayerCaches, RowIndex, grouped_decode_attention, members_of, token_logps
        assert token_logps(torch.zeros(1, 4), torch.zeros(8, 4), torch.tensor([3])).exp().item() - 1 / 8 < 1e-6
        slots, ones = torch.tensor([0]), torch.ones(1, dtype=torch.int32)
        caches = LayerCaches(torch.ones(2, 1, 1, 4), torch.tensor([4.0, 2.0]).view(2, 1, 1, 1).repeat(1, 1, 1, 4))
        rows = RowIndex(slots, ones, ones, members_of(slots, 1, 1), slots[:, None], slots[:, None] + 1)
        print(grouped_decode_attention(torch.zeros(1, 1, 4), caches, rows, 1.0).tolist())
    """
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    # One token of the prefix and one of the suffix, equally likely.
    assert done.stdout.strip() == "[[[3.0, 3.0, 3.0, 3.0]]]"


def test_cuda_without_triton_goes_on_slower_and_says_how_to_mend_it(monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="pip install triton"):
        assert not kernels.use_triton(SimpleNamespace(is_cuda=True))


def test_the_eager_path_is_the_reference(monkeypatch):
    monkeypatch.setattr(reference, "token_logps", lambda *arguments: "eager logps")
    monkeypatch.setattr(reference, "grouped_decode_attention", lambda *arguments: "eager attention")
    some = torch.zeros(1, 1)
    assert kernels.token_logps(some, some, some) == "eager logps"
    slots = torch.tensor([0])
    caches, rows = (
        LayerCaches(some, some),
        RowIndex(slots, slots, slots, members_of(slots, 1, 1), *[slots[:, None]] * 2),
    )
    assert kernels.grouped_decode_attention(some, caches, rows, 1.0) == "eager attention"


ROWS, HEADS, TABLE = torch.ones(3, 1, 8), torch.ones(3, 2, 1, 4), torch.ones(3, 1, 4)
# What small operations are called with, and the same with a tensor that the kernel does not know.
SMALL = {
    "rms_norm": (
        (ROWS, torch.ones(8), 1e-5, 1.0),
        (ROWS.half(), torch.ones(8), 1e-5, 1.0),
        (ROWS, torch.ones(3, 1, 8), 1e-5, 1.0),
        (ROWS, torch.ones(1), 1e-5, 1.0),
        (ROWS, torch.ones(8, 2)[:, 0], 1e-5, 1.0),
    ),
    "apply_rotary": (
        ([HEADS, HEADS], TABLE, TABLE),
        ([HEADS.half(), HEADS.half()], TABLE, TABLE),
        ([HEADS, HEADS], TABLE, torch.ones(3, 1, 8)[..., ::2]),
        ([HEADS, HEADS], torch.ones(3, 2, 4), torch.ones(3, 2, 4)),
        ([HEADS, torch.ones(3, 2, 5, 4)], TABLE, TABLE),
        ([HEADS, torch.ones(3, 2, 1, 6)], TABLE, TABLE),
        ([HEADS, HEADS], torch.ones(3, 1, 6), torch.ones(3, 1, 6)),
        ([HEADS.expand(-1, -1, 5, -1)] * 2, TABLE, TABLE),
    ),
    "act_and_mul": ((ROWS, ROWS, "silu"), (ROWS.half(), ROWS, "silu"), (ROWS, ROWS[:1], "silu")),
}  # fmt: skip

OPTIONS = {
    "rms_norm": {"centred": True, "gate": None},
    "apply_rotary": {"neighbours": True, "in_fp32": True, "apart": True},
}


@pytest.mark.parametrize("name", SMALL)
def test_small_operations_of_a_layer_are_the_reference_on_the_cpu(name, monkeypatch):
    monkeypatch.setattr(reference, name, lambda *arguments, **options: ("eager", *arguments, options))
    given, options = SMALL[name][0], OPTIONS.get(name, {})
    assert getattr(kernels, name)(*given, **options) == ("eager", *given, options)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is there on Linux alone")
@pytest.mark.parametrize("name", SMALL)
def test_they_are_kernels_on_cuda_where_all_is_of_one_dtype_and_fits(name, monkeypatch):
    """Numbers of two dtypes make another one, and sizes are broadcast, by torch's rules, which kernels do not know."""
    from data_engine_kernels import layer_triton

    monkeypatch.setattr(kernels, "use_triton", lambda tensor: True)
    there = []

    @contextlib.contextmanager
    def launching_on(device):
        there.append(device)
        yield
        there.pop()

    monkeypatch.setattr(kernels, "_launching_on", launching_on)
    monkeypatch.setattr(
        layer_triton, name,
        lambda *arguments, **options: ("kernel", *arguments, options) if there else "elsewhere",
    )  # fmt: skip
    monkeypatch.setattr(reference, name, lambda *arguments, **options: ("eager", *arguments))
    first, *others = SMALL[name]
    options = OPTIONS.get(name, {})
    assert getattr(kernels, name)(*first, **options) == ("kernel", *first, options)
    for given in others:
        assert getattr(kernels, name)(*given)[0] == "eager"


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is there on Linux alone")
@pytest.mark.parametrize(("in_fp32", "chosen"), [(False, "eager"), (True, "kernel")])
def test_tables_of_fp32_fit_where_the_sum_is_rounded_to_what_heads_are(in_fp32, chosen, monkeypatch):
    from data_engine_kernels import layer_triton

    monkeypatch.setattr(kernels, "use_triton", lambda tensor: True)
    monkeypatch.setattr(kernels, "_launching_on", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(layer_triton, "apply_rotary", lambda *arguments, **options: "kernel")
    monkeypatch.setattr(reference, "apply_rotary", lambda *arguments, **options: "eager")
    assert kernels.apply_rotary([HEADS.half()], TABLE, TABLE, in_fp32=in_fp32) == chosen
    # Of two dtypes, in no case.
    for heads, cos, sin in (([HEADS.half(), HEADS], TABLE, TABLE), ([HEADS], TABLE, TABLE.half())):
        assert kernels.apply_rotary(heads, cos, sin, in_fp32=in_fp32) == "eager"


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is there on Linux alone")
@pytest.mark.parametrize(
    ("gate", "chosen"), [(ROWS, "kernel"), (ROWS.half(), "eager"), (ROWS[:1], "eager"), (None, "kernel")]
)
def test_a_gate_is_of_the_dtype_and_shape_of_the_rows(gate, chosen, monkeypatch):
    from data_engine_kernels import layer_triton

    monkeypatch.setattr(kernels, "use_triton", lambda tensor: True)
    monkeypatch.setattr(kernels, "_launching_on", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(layer_triton, "rms_norm", lambda *arguments, gate, **options: ("kernel", gate))
    monkeypatch.setattr(reference, "rms_norm", lambda *arguments, gate, **options: ("eager", gate))
    found, handed = kernels.rms_norm(ROWS, torch.ones(8), 1e-5, gate=gate)
    assert (found, handed is gate) == (chosen, True)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is there on Linux alone")
def test_a_card_that_is_too_small_for_a_kernel_is_named_with_both_sizes(monkeypatch):
    from triton.runtime.errors import OutOfResources

    from data_engine_kernels import attention_triton, logps_triton

    def launched(*arguments):
        raise OutOfResources(106_496, 65_536, "shared memory")

    monkeypatch.setattr(kernels, "_make_launcher", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(attention_triton, "grouped_decode_attention", launched)
    monkeypatch.setattr(logps_triton, "token_logps", launched)
    some = SimpleNamespace(is_cuda=True, device="cuda")
    message = "a kernel needs 106,496 of shared memory, and Tesla T4 has 65,536 for a program"
    with pytest.raises(kernels.SmallCard, match=message):
        kernels.grouped_decode_attention(some, None, None, 1.0)
    with pytest.raises(kernels.SmallCard, match=message):
        kernels.token_logps(some, some, some)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is there on Linux alone")
@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ({"PATH": "", "CC": None}, rf"RuntimeError: Failed to find C compiler.*{INSTALL}"),
        # As where Python.h is not there.
        ({"CC": "false"}, rf"CalledProcessError: Command '\['false', .*{INSTALL}"),
        ({"CC": "/nowhere/cc"}, rf"FileNotFoundError: .*{INSTALL}"),
        # As where a container's user has no home.
        (
            {"TRITON_CACHE_DIR": "/dev/null/cache"},
            "NotADirectoryError: .*: set TRITON_CACHE_DIR to a folder ",
        ),
    ],
    ids=["no compiler", "no headers", "a compiler that is not there", "no place for the cache"],
)
def test_a_machine_on_which_triton_cannot_launch_says_what_to_install(lacking, told, tmp_path, monkeypatch):
    """By Triton's own driver for CUDA, which compiles a file before the first launch."""
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    from data_engine_kernels import layer_triton

    for name, value in ({"TRITON_CACHE_DIR": str(tmp_path), "TRITON_LIBCUDA_PATH": str(tmp_path)} | lacking).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.modules["triton.runtime.driver"], "_create_driver", CudaDriver)
    monkeypatch.setattr(driver, "_default", None)
    monkeypatch.setattr(driver, "_active", None)
    monkeypatch.setattr(kernels, "use_triton", lambda tensor: True)
    monkeypatch.setattr(layer_triton, "rms_norm", lambda *given, **options: pytest.fail("it was launched"))
    with pytest.raises(kernels.CannotLaunch, match=told):
        kernels.rms_norm(ROWS, torch.ones(8), 1e-5)
