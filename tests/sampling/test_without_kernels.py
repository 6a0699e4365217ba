"""A GPU that draws answers by plain torch says why, once, and --require_fast refuses it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from run_files import hostile_rows, read, write
from step_caches import USUAL, model_of

from data_engine.errors import UserError
from data_engine.job import worker
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.pipeline import critic, sample
from data_engine.sampling.backend import BackendSettings
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import backend

SLOW = "this GPU draws answers by plain torch"


@pytest.fixture(autouse=True)
def with_kernels(monkeypatch):
    monkeypatch.setattr(backend, "use_triton", lambda weight: True)


def settings_on(device: str, *kinds: LayerKind) -> BackendSettings:
    model = model_of(USUAL, *kinds)
    model.device, model.max_positions = torch.device(device), 500
    return BackendSettings(model, SamplingParams(), 10, 16, 4)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (replace(USUAL, window=499), "layer 1 has a mask that is neither causal nor a sliding window"),
        (replace(USUAL, sinks=True), "layer 1 has attention sinks"),
        (replace(USUAL, value_width=8), "layer 1 has keys of width 16 and values of width 8"),
        (LayerKind(2, 520, 520), "layer 1 has heads of width 520, and 512 is the most"),
        (replace(USUAL, cross=True, weighs=True), "layer 1 adds numbers of its own to the scores of image states"),
    ],
)
def test_the_first_layer_that_the_kernels_do_not_know_is_told(kind, why, caplog):
    settings = settings_on("cuda", kind, replace(USUAL, sinks=True))
    assert backend.make(settings)._engine.samples_per_prompt is None
    assert [record.message for record in caplog.records] == [f"{SLOW}, many times slower than by the kernels: {why}"]
    with pytest.raises(
        UserError, match=f"^--require_fast is set, and this GPU would draw answers by plain torch: {why}$"
    ):
        backend.make(replace(settings, require_fast=True))


def test_without_triton_that_is_told(monkeypatch, caplog):
    monkeypatch.setattr(backend, "use_triton", lambda weight: False)
    backend.make(settings_on("cuda"))
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [
        "Triton is not installed (pip install triton)"
    ]


def test_nothing_is_told_where_the_kernels_draw_nor_of_a_split_model_nor_on_a_cpu(monkeypatch, caplog):
    backend.make(replace(settings_on("cuda"), require_fast=True))
    # Its calls are agreed on one by one, whatever its layers are.
    backend.make(replace(settings_on("cuda", replace(USUAL, sinks=True)), require_fast=True, split=True))
    monkeypatch.setattr(backend, "use_triton", lambda weight: False)
    backend.make(replace(settings_on("cpu", replace(USUAL, sinks=True)), require_fast=True))
    assert caplog.records == []


@pytest.mark.parametrize("required", [False, True])
def test_samples_and_critics_are_made_as_fast_as_is_required(monkeypatch, required):
    made = []
    for module in (sample, critic):
        monkeypatch.setattr(module, "make_backend", lambda name, settings: made.append(settings) or SimpleNamespace(
            close=lambda: None
        ))  # fmt: skip
    template = SimpleNamespace(value=SimpleNamespace(max_new_tokens=20))
    config = SimpleNamespace(
        require_fast=required, source_flags={"critic": template}, temperature=1, top_k=0, top_p=1, repetition_penalty=1,
        max_new_tokens=20, sample_k=4, seed=0, same_pixels=False, max_megapixels=64,
    )  # fmt: skip
    sizes = {"decode_rows": 4, "decode_slots": 4}
    monkeypatch.setattr(critic, "Critic", lambda *a: SimpleNamespace(unit=None))
    context = SimpleNamespace(
        model=SimpleNamespace(why_plain=None), config=config, budgets=sizes, split=False, idx_type=None, decode=None
    )
    for module in (sample, critic):
        module.runner(context)
    assert [settings.require_fast for settings in made] == [required] * 2


def test_a_run_goes_on_with_one_warning_or_ends_before_its_first_unit(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backend, "uses_kernels", lambda model: False)
    monkeypatch.setattr(backend, "why_no_kernels", lambda model: "layer 3 has attention sinks")
    dataset = write(tmp_path / "questions.parquet", hostile_rows())
    with pytest.raises(UserError, match=r"--require_fast is set, and this GPU would .*: layer 3 has attention sinks"):
        worker.run(config(dataset, stop_after_stage=0, unit_size=2, require_fast=True))
    assert not list((tmp_path / "work/sampled_answer").glob("unit-*"))
    assert worker.run(config(dataset, stop_after_stage=0, unit_size=2)) == 0
    assert capsys.readouterr().err.count(f"{SLOW}, many times slower than by the kernels: layer 3 has") == 1
    assert read(tmp_path / "work/sampled_answer")
