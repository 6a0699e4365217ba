"""What --vllm_args may say, and what of it shapes answers. Imports neither torch nor vLLM."""

import json
import math
from collections.abc import Mapping

from data_engine.errors import UserError

# Arguments of vLLM's engine that the run gives itself, and what decides them.
OWN = {
    "model": "--instruct_model_path does",
    "model_weights": "--instruct_model_path does",
    "tokenizer": "--instruct_model_path does",
    "revision": "--instruct_model_revision does",
    "tokenizer_revision": "--instruct_model_revision does",
    "hf_config_path": "--instruct_model_path does",
    "dtype": "--dtype does",
    "seed": "--seed does",
    "generation_config": "the run's own sampling flags do",
    "override_generation_config": "the run's own sampling flags do",
    "skip_tokenizer_init": "the run hands over token ids",
    "logprobs_mode": "log-probs are held against the engine's own",
    "mm_processor_kwargs": "pictures are processed as the engine does when it scores",
    "mm_device_do_normalize": "pictures are processed as the engine does when it scores",
    "mm_processor_device": "pictures are processed as the engine does when it scores",
    "hf_token": "the checkpoint is read from a folder, and run.json is no place for a secret",
    "trust_remote_code": "remote code is never run",
    "data_parallel_size": "each rank has an engine of its own: NUM_PROCESSES and --num_shards do",
    "device_ids": "each rank has GPUs of its own: CUDA_VISIBLE_DEVICES does",
    "disable_log_stats": "the run has its own log",
    "distributed_executor_backend": "workers are processes of their own, whose memory is free when models score",
    "worker_extension_cls": "the run's own has workers end with their rank",
    "nnodes": "an engine runs on one machine",
}
# What is above 0 and below it, vLLM raises to it.
LEAST_TEMPERATURE = 0.01
# Their product is the number of GPUs that an engine takes.
SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")
# Those that say where and how fast answers are drawn, and not which: they may change while a run is under way.
FREE = frozenset((
    "tensor_parallel_size", "pipeline_parallel_size", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_seqs",
    "max_num_batched_tokens", "enforce_eager", "compilation_config", "enable_prefix_caching", "enable_chunked_prefill",
    "block_size", "cpu_offload_gb", "prefill_context_parallel_size", "disable_custom_all_reduce",
    "max_parallel_loading_workers", "mm_encoder_tp_mode", "mm_processor_cache_gb", "enable_expert_parallel",
    "async_scheduling", "load_format", "safetensors_load_strategy", "limit_mm_per_prompt",
))  # fmt: skip


def read_args(text: str | None) -> dict[str, object]:
    """The object of --vllm_args. Raises UserError where it is none, or has what the run gives itself."""
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            'vllm_args must be a JSON object like {"tensor_parallel_size": 8}, with names as in vLLM\'s EngineArgs, '
            f"got {json.dumps(text)[:200]}"
        )
    for name, instead in OWN.items():
        if name in found:
            raise UserError(f"vllm_args has {name}, which it cannot set: {instead}; take it out")
    for name in (*SIZES, "max_model_len", "max_num_seqs"):
        value = found.get(name, 1)
        if type(value) is not int or value < 1:
            raise UserError(f"vllm_args: {name} must be a whole number, at least 1, got {json.dumps(value)}")
    return found


def gpus_of_an_engine(args: Mapping[str, object]) -> int:
    """GPUs that one engine takes."""
    return math.prod(args.get(name, 1) for name in SIZES)


def require_gpus(args: Mapping[str, object], num_gpus: int) -> int:
    """GPUs that one engine takes. Raises UserError where the machine has fewer."""
    size = gpus_of_an_engine(args)
    if size > num_gpus:
        raise UserError(
            f"vllm_args asks for engines of {size} GPUs ({' times '.join(SIZES)}), and this machine has {num_gpus}: "
            "lower the sizes"
        )
    return size


def shaping(args: Mapping[str, object]) -> str | None:
    """The arguments that shape answers, written in one way; None where there are none."""
    kept = {name: value for name, value in args.items() if name not in FREE}
    return json.dumps(kept, sort_keys=True) if kept else None
