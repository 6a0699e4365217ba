"""What --sampler vllm is refused for before any work: vLLM itself, families of models, flags."""

import sys

import pytest
import torch
from validated import checked

from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job import worker
from data_engine.models import family_class
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.planning import heavy


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "0.9.2"}, "vLLM 0.9.2 is installed, and sampler vllm needs 0.32 or newer"),
        ({"architectures": ("Qwen2ForCausalLM",)}, "of the architecture LlavaForConditionalGeneration, which vLLM"),
        ({"device_type": "cuda"}, "the run is on cpu, and the vLLM here computes on cuda"),
        ({"refuses_to_start": RuntimeError("Engine core failed.")}, "vLLM 0.32.0 does not start (Engine core failed.)"),
        # What a worker that runs out of memory while it loads weights becomes.
        ({"refuses_to_start": Exception("WorkerProc failed.")}, "vLLM 0.32.0 does not start (WorkerProc failed.)"),
        ({"refuses_to_start": AssertionError()}, "vLLM 0.32.0 does not start (AssertionError)"),
    ],
)
def test_a_vllm_that_cannot_do_it_is_refused(settings, vllm, changes, says, refusal):
    for name, value in changes.items():
        setattr(vllm, name, value)
    sys.modules["vllm"].__version__ = vllm.version
    assert says in refusal(settings())


def test_a_vllm_with_a_part_that_does_not_import_is_refused_and_an_old_one_by_its_version(settings, vllm, refusal):
    """The package imports its parts when they are asked for."""
    module = sys.modules["vllm"]
    del module.ModelRegistry

    def lazily(name: str):
        raise ImportError(f"{name}: undefined symbol")

    module.__getattr__ = lazily
    assert refusal(settings()) == "vLLM cannot be imported: ModelRegistry: undefined symbol; install it again"
    module.__version__ = "0.9.2"
    assert "vLLM 0.9.2 is installed" in refusal(settings())


def test_without_vllm_the_extra_is_named_by_validate_too(settings, monkeypatch, refusal):
    monkeypatch.setitem(sys.modules, "vllm", None)
    says = "sampler vllm needs vLLM, which is not installed: pip install 'vlm-data-engine[vllm]'"
    assert refusal(settings()) == says
    with pytest.raises(UserError, match="needs vLLM, which is not installed"):
        checked(settings())
    # What is sampled already needs none.
    assert "continue_from_stage 1 needs all units" in _incomplete(settings(continue_from_stage=1))


def _incomplete(config: RunConfig) -> str:
    with pytest.raises(Exception, match="continue_from_stage 1 needs all units") as caught:
        worker.run(config)
    return str(caught.value)


def test_an_engine_of_more_gpus_than_the_machine_has_is_refused_by_validate_too(settings, vllm, monkeypatch):
    vllm.device_type = "cuda"
    monkeypatch.setattr(heavy, "pick_device", torch.device)
    monkeypatch.setattr(heavy._Look, "_memory", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    asked = {"device": "cuda", "vllm_args": '{"tensor_parallel_size": 2, "pipeline_parallel_size": 2}'}
    with pytest.raises(UserError, match=r"vllm_args asks for engines of 4 GPUs .* and this machine has 3: lower"):
        checked(settings(**asked))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    checked(settings(**asked))


def test_families_that_vllm_does_not_know_are_refused_by_name(settings, vllm, goldens, refusal):
    assert "is an OmniLMM, which vLLM does not know" in refusal(
        settings(
            instruct_model_path=str(goldens / "omnilmm/instruct"), reward_model_path=str(goldens / "omnilmm/reward")
        )
    )
    assert "is a LLaVA in its original layout, which vLLM does not know" in refusal(
        settings(instruct_model_path=str(goldens / "llava/instruct"), reward_model_path=str(goldens / "llava/reward"))
    )
    with pytest.raises(ModelError, match=r"llava-hf/llava-1\.5-7b-hf"):
        family_class("llava").prompt_maker(goldens / "llava/instruct")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vllm_args": "tensor"}, "vllm_args must be a JSON object like"),
        ({"vllm_args": "[1]"}, "vllm_args must be a JSON object like"),
        ({"vllm_args": '{"seed": 1}'}, "vllm_args has seed, which it cannot set: --seed does; take it out"),
        (
            {"vllm_args": '{"tensor_parallel_size": 0}'},
            "tensor_parallel_size must be a whole number, at least 1, got 0",
        ),
        ({"vllm_args": '{"distributed_executor_backend": "uni"}'}, "workers are processes of their own"),
        ({"vllm_args": '{"model_weights": "elsewhere"}'}, "vllm_args has model_weights, which it cannot set"),
        ({"vllm_args": '{"mm_processor_device": "cuda"}'}, "pictures are processed as the engine does"),
        ({"vllm_args": '{"device_ids": [1]}'}, "each rank has GPUs of its own"),
        ({"vllm_args": '{"hf_token": "secret"}'}, "run.json is no place for a secret"),
        (
            {"temperature": 0.0},
            "temperature must be at least 0.01 with sampler vllm, got 0.0: vLLM draws one",
        ),
        ({"temperature": 0.005}, "raises a lower temperature to 0.01"),
        ({"sampler": "native", "vllm_args": "{}"}, "vllm_args is for --sampler vllm"),
        ({"repetition_penalty": 1.2}, "repetition_penalty must be 1 with sampler vllm, got 1.2"),
        ({"answers": "x.parquet"}, "sampler vllm draws answers, and --answers brings them"),
        ({"zero3": "on"}, "zero3 is on: models that are split take all ranks"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(settings, changes, says, refusal):
    assert says in refusal(lambda: settings(**changes))


def test_an_argument_that_vllm_does_not_know_is_named(settings, vllm, refusal):
    assert "vllm_args has sizes, which vLLM 0.32.0 does not know" in refusal(settings(vllm_args='{"sizes": 1}'))
