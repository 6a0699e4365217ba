"""run.json: what this work directory is a run of. Created once, before any work; every later start is held against it.

`bound` holds what stages 0 and 1 depend on: a start with another value is refused, by name. Pairing settings, shards,
launcher, threads and debug are not in it. `frozen` holds figures that the first start chose for this machine.
"""

import json
import os
import platform
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

import data_engine
from data_engine import stages
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job.checkpoints import Checkpoint
from data_engine.models import family_class
from data_engine.models.base import Target
from data_engine.models.sharding import placement
from data_engine.questions.dataset import Questions
from data_engine.sampling.memory import ACTIVATIONS, Needs, budgets, memory_bytes
from data_engine.store import disk
from data_engine.store.units import auto_unit_size, split_units

SETTINGS = (
    "limit", "sample_k", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed",
    "max_megapixels", "exif", "same_pixels",
)  # fmt: skip
LIBRARIES = ("torch", "transformers", "tokenizers", "sentencepiece", "pillow", "numpy", "pyarrow", "nltk")


def describe(
    config: RunConfig,
    questions: Questions,
    checkpoints: Mapping[str, Checkpoint],
    target: Target,
    decision: placement.Decision,
) -> dict:
    """The content of run.json for this start; `checkpoints` by role."""
    unit_size = config.unit_size or auto_unit_size(len(questions))
    bound = {name: getattr(config, name) for name in SETTINGS}
    bound |= {"device": target.device.type, "dtype": target.dtype_name}
    bound |= {"unit_size": unit_size, "dataset": questions.fingerprint}
    bound |= {f"{role}_model": checkpoint.fingerprint for role, checkpoint in checkpoints.items()}
    return {
        "bound": bound,
        "frozen": frozen_budgets(config, checkpoints, target),
        "zero3": decision.as_json(),
        "units": {
            "num_questions": len(questions),
            "unit_size": unit_size,
            "num_units": len(split_units(len(questions), unit_size)),
        },
        "models": {role: checkpoint.as_json() for role, checkpoint in checkpoints.items()},
        "config": asdict(config),
        "versions": {
            "data_engine": data_engine.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


def frozen_budgets(config: RunConfig, checkpoints: Mapping[str, Checkpoint], target: Target) -> dict[str, int]:
    """What sampling.memory.budgets makes of this machine's memory and the largest model.

    The same whether models are split or not, and over however many ranks: log-probs depend on it in their last bits.
    """
    memory, itemsize = memory_bytes(target.device, config.memory_fraction), target.dtype.itemsize
    weights = largest_bytes(checkpoints, target.dtype)
    sampler = checkpoints[stages.SAMPLING.model]
    # Weights that leave no room are split, over two ranks at least.
    fits = weights + placement.WORKING_ROOM_BYTES <= memory
    needs = Needs(
        weights=weights if fits else weights // 2,
        cached_token=family_class(sampler.family).cache_values_per_token(sampler.folder) * itemsize,
        activated_token=ACTIVATIONS * sampler.sizes.get("hidden_size", 4096) * itemsize,
    )
    return budgets(memory, needs, target.device.type, config.sample_k, config.max_new_tokens)


def largest_bytes(checkpoints: Mapping[str, Checkpoint], dtype: torch.dtype) -> int:
    """The weights of the largest model: one is held at a time, so it decides what fits."""
    return max(checkpoint.num_weights for checkpoint in checkpoints.values()) * dtype.itemsize


def open_run(work_dir: Path, described: dict) -> tuple[dict, list[str]]:
    """Create run.json, or compare with the one that is there; returns it, and warnings for a person to read.

    Raises UserError naming each bound field that differs.
    """
    path = work_dir / "run.json"
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        _create(path, json.dumps(described, indent=1))
    except OSError as error:
        if disk.is_trouble(error):
            raise
        raise UserError(f"work_dir {work_dir} cannot be written: {error.strerror}") from error
    try:
        found = json.loads(path.read_text())
        # A start works by the budgets that are written here, not by its own.
        _ = [found["frozen"][name] for name in described["frozen"]]
        differing = [name for name in described["bound"] if found["bound"].get(name) != described["bound"][name]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a run.json of this program; choose another work_dir") from error
    if differing:
        told = "; ".join(
            f"{name} was {found['bound'].get(name)!r}, now {described['bound'][name]!r}" for name in differing
        )
        raise UserError(
            f"work_dir {work_dir} holds another run: {told}. Go on with its settings or choose another work_dir"
        )
    changed = [
        f"{name} {then} -> {described['versions'].get(name)}"
        for name, then in found["versions"].items()
        if described["versions"].get(name) != then
    ]
    return found, [f"this run was started with other versions ({', '.join(changed)})"] if changed else []


def _create(path: Path, text: str) -> None:
    """Write the file whole, unless one is there already."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass
    except FileNotFoundError:
        # Another start created it, and swept what looked left over.
        if not path.exists():
            raise
    finally:
        temporary.unlink(missing_ok=True)
