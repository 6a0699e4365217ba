"""run.json: what this work directory is a run of. Created once, before any work; every later start is held against it.

`bound` holds what stages 0 and 1 depend on: a start with another value is refused, by name. Pairing settings, shards,
launcher, threads and debug are not in it. `frozen` holds figures that the first start chose for this machine.
"""

import json
import os
import platform
import secrets
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

import data_engine
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.models import family_class
from data_engine.models.base import pick_device, pick_dtype
from data_engine.models.checkpoint import fingerprint, num_weights
from data_engine.models.registry import family_of, read_json, resolve
from data_engine.models.sharding import placement
from data_engine.models.tokenizer import load_tokenizer
from data_engine.processes.ranks import Ranks
from data_engine.questions.dataset import Questions
from data_engine.sampling.memory import ACTIVATIONS, Needs, budgets, memory_bytes
from data_engine.store import disk
from data_engine.store.units import auto_unit_size, split_units

SETTINGS = (
    "limit", "sample_k", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed",
    "max_megapixels", "same_pixels",
)  # fmt: skip
# By these, two checkpoints are told apart that cannot be one model before and after tuning.
SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")
LIBRARIES = ("torch", "transformers", "tokenizers", "sentencepiece", "pillow", "numpy", "pyarrow", "nltk")


@dataclass(frozen=True)
class Checkpoint:
    """A model of the run, found and fingerprinted but not loaded."""

    folder: Path
    family: str
    fingerprint: str
    vocabulary: str
    markers: tuple[str, ...]
    sizes: dict[str, int]
    """those of SIZES that config.json tells"""

    @classmethod
    def find(cls, path: str, name: str | None, revision: str | None) -> "Checkpoint":
        folder = resolve(path, revision)
        family = family_of(folder, name)
        markers = family_class(family).markers
        return cls(folder, family, fingerprint(folder), load_tokenizer(folder).vocabulary, markers, _sizes(folder))

    def as_json(self) -> dict:
        return {**asdict(self), "folder": str(self.folder), "markers": list(self.markers)}


def _sizes(folder: Path) -> dict[str, int]:
    raw = read_json(folder / "config.json")
    text = raw["text_config"] if isinstance(raw.get("text_config"), dict) else raw
    return {name: text[name] for name in SIZES if isinstance(text.get(name), int)}


def kinship_warnings(instruct: Checkpoint, reward: Checkpoint) -> list[str]:
    """What speaks against the reward model being the instruct model after DPO, as far as their configs tell."""
    differing = [] if instruct.family == reward.family else [f"family {instruct.family} against {reward.family}"]
    differing += [
        f"{name} {size} against {reward.sizes[name]}"
        for name, size in instruct.sizes.items()
        if reward.sizes.get(name, size) != size
    ]
    if not differing:
        return []
    return [
        f"the reward model does not look tuned from the instruct model ({', '.join(differing)}): "
        "rewards then compare two different models, not one before and after DPO"
    ]


def place(config: RunConfig, instruct: Checkpoint, reward: Checkpoint, ranks: Ranks) -> placement.Decision:
    """Whether this start splits its models over the ranks; by the larger of the two, since one is held at a time."""
    device = pick_device(ranks.device(config.device))
    weights = _weights_bytes(config, instruct, reward, device)
    return placement.decide(config.zero3, weights, ranks, device)


def describe(
    config: RunConfig, questions: Questions, instruct: Checkpoint, reward: Checkpoint, decision: placement.Decision
) -> dict:
    """The content of run.json for this start."""
    device = pick_device(config.device)
    dtype = str(pick_dtype(config.dtype, device)).removeprefix("torch.")
    unit_size = config.unit_size or auto_unit_size(len(questions))
    bound = {name: getattr(config, name) for name in SETTINGS}
    bound |= {"device": device.type, "dtype": dtype, "unit_size": unit_size, "dataset": questions.fingerprint}
    bound |= {"instruct_model": instruct.fingerprint, "reward_model": reward.fingerprint}
    return {
        "bound": bound,
        "frozen": frozen_budgets(config, instruct, reward, device),
        "zero3": decision.as_json(),
        "units": {
            "num_questions": len(questions),
            "unit_size": unit_size,
            "num_units": len(split_units(len(questions), unit_size)),
        },
        "models": {"instruct": instruct.as_json(), "reward": reward.as_json()},
        "config": asdict(config),
        "versions": {
            "data_engine": data_engine.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


def frozen_budgets(config: RunConfig, instruct: Checkpoint, reward: Checkpoint, device: torch.device) -> dict:
    """What budgets.budgets makes of this machine's memory and the larger of the two models.

    The same whether models are split or not, and over however many ranks: log-probs depend on it in their last bits.
    """
    memory, itemsize = memory_bytes(device, config.memory_fraction), _itemsize(config, device)
    weights = _weights_bytes(config, instruct, reward, device)
    # Weights that leave no room are split, over two ranks at least.
    fits = weights + placement.WORKING_ROOM_BYTES <= memory
    needs = Needs(
        weights=weights if fits else weights // 2,
        cached_token=family_class(instruct.family).cache_values_per_token(instruct.folder) * itemsize,
        activated_token=ACTIVATIONS * instruct.sizes.get("hidden_size", 4096) * itemsize,
    )
    return budgets(memory, needs, device.type, config.sample_k, config.max_new_tokens)


def _weights_bytes(config: RunConfig, instruct: Checkpoint, reward: Checkpoint, device: torch.device) -> int:
    """Of the larger model, in the run's dtype: one model is held at a time."""
    return max(num_weights(instruct.folder), num_weights(reward.folder)) * _itemsize(config, device)


def _itemsize(config: RunConfig, device: torch.device) -> int:
    return pick_dtype(config.dtype, device).itemsize


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
