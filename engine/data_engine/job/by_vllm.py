"""What --sampler vllm means to a start: what it is refused for before any work, and what run.json says of it."""

from data_engine.config import RunConfig
from data_engine.job.checkpoints import Checkpoint
from data_engine.models import class_for
from data_engine.models.check import Checked
from data_engine.models.checkpoints.adapter_folder import parts
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.sampling.vllm_engine import require_usable
from data_engine.stages import REWARD, SAMPLING, RunStages
from data_engine.vllm_settings import gpus_of_an_engine

NOT_SAME_BYTES = (
    "each answer is drawn once, whatever happens to the run, but another run of the same command may draw other "
    "answers: vLLM's numbers depend on which questions run beside each other"
)
UNCHECKED = (
    "no stage of this run scores the answers under the model that drew them, so vLLM's log-probs are held against "
    "nothing: that it saw the same prompts is known, that it saw the same pictures is not"
)
# Of the GPUs of an engine, the rank that scores uses one.
IDLE = (
    "this start scores too, by one GPU of each {size}: two starts, --stop_after_stage 0 and then "
    "--continue_from_stage 1, score by all"
)


def check(config: RunConfig, checkpoint: Checkpoint | Checked, device_type: str) -> dict:
    """What run.json says. Raises UserError for what vLLM, or the family with it, cannot do here."""
    if both := parts(checkpoint.folder):
        raise ModelError(
            f'--instruct_model_path "{config.instruct_model_path}": {both[0]} is an adapter, and sampler vllm takes '
            "whole models: merge it into its base with peft's merge_and_unload, save that, and pass its folder, or "
            "leave --sampler out"
        )
    class_for(checkpoint.family, config.chat).prompt_maker(checkpoint.folder, config.chat)
    version = require_usable(checkpoint.folder, config.vllm_options, device_type)
    return {"name": config.sampler, "version": version, "same_bytes": False, "told": NOT_SAME_BYTES}


def warnings(config: RunConfig, run_stages: RunStages, device_type: str) -> list[str]:
    """What a person should know."""
    found = [NOT_SAME_BYTES]
    if not any(stage.model == SAMPLING.model for stage in run_stages.between(REWARD, REWARD)):
        found.append(UNCHECKED)
    size = gpus_of_an_engine(config.vllm_options)
    if config.draws_by_vllm and config.stop_after_stage >= REWARD and size > 1 and device_type == "cuda":
        found.append(IDLE.format(size=size))
    return found
