"""DeepSpeed's settings for split models: built in, or from the user's JSON file. Imports no torch."""

import copy
import importlib.util
import json
from pathlib import Path

from data_engine.errors import UserError
from data_engine.flag_files import nearest_path

# launch/deepspeed/zero3.json holds the same, for users to copy and change.
SETTINGS = {
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": False,
        "memory_efficient_linear": False,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_param_persistence_threshold": 100_000,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 0,
    }
}
# Set by the engine, by the run's dtype.
OWN = ("bf16", "fp16", "train_micro_batch_size_per_gpu", "train_batch_size", "optimizer", "scheduler")


def is_installed() -> bool:
    return importlib.util.find_spec("deepspeed") is not None


def require_installed() -> None:
    """Raise UserError where DeepSpeed is missing."""
    if not is_installed():
        raise UserError(
            "splitting a model over the ranks (zero3) needs DeepSpeed, which is not installed: "
            "pip install 'vlm-data-engine[zero3]', or set zero3 to off"
        )


def read_settings(path: str | None) -> dict:
    """DeepSpeed's settings from a JSON file, or the built-in ones. Raises UserError unless they are for ZeRO-3."""
    if path is None:
        return copy.deepcopy(SETTINGS)
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f'zero3_config "{path}" cannot be read as JSON: {error}{nearest_path(path)}') from None
    zero = found.get("zero_optimization") if isinstance(found, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") != 3:
        raise UserError(f'zero3_config "{path}" must be an object with {{"zero_optimization": {{"stage": 3, ...}}}}')
    own = [name for name in OWN if name in found]
    if own:
        raise UserError(f'zero3_config "{path}" sets {", ".join(own)}; the engine sets those itself, leave them out')
    return found
