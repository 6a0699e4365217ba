"""Whether each rank holds whole models, or a model is split over the ranks: the arithmetic of --zero3."""

from dataclasses import asdict, dataclass

import torch

from data_engine.processes import memory_limit
from data_engine.processes.ranks import Ranks

# For caches and activations, besides the weights.
WORKING_ROOM_BYTES = 8 << 30
GB = 1e9


@dataclass(frozen=True)
class Decision:
    """Whether the models of a run are split, and the arithmetic behind it, in bytes."""

    split: bool
    asked: str
    weights_bytes: int
    """of the larger model in the run's dtype; one model is held at a time"""
    working_room_bytes: int
    memory_bytes: int
    """what a rank may use"""
    world_size: int

    def __str__(self) -> str:
        needed = self.weights_bytes + self.working_room_bytes
        sign = "<=" if needed <= self.memory_bytes else ">"
        arithmetic = (
            f"{self.weights_bytes / GB:.1f} GB of weights + {self.working_room_bytes / GB:.1f} GB of working room "
            f"{sign} {self.memory_bytes / GB:.1f} GB of memory a rank"
        )
        outcome = f"split over {self.world_size} ranks" if self.split else "each rank holds a whole model"
        return f"zero3 {self.asked}: {outcome} ({arithmetic})"

    def as_json(self) -> dict:
        return asdict(self) | {"told": str(self)}


def decide(asked: str, weights_bytes: int, ranks: Ranks, device: torch.device, fraction: float = 1.0) -> Decision:
    """Split unless weights and working room fit a rank's memory; "on" and "off" decide without arithmetic.

    On CPU the ranks of a machine share its memory, and at most half of it counts as working room, so that a small model
    on a small machine is not split. "auto" never splits the model of a single rank.
    """
    memory, room = memory_bytes(device, ranks, fraction), WORKING_ROOM_BYTES
    if device.type != "cuda":
        room = min(room, memory * ranks.local_world_size // 2) // ranks.local_world_size
    fits = weights_bytes + room <= memory
    split = asked == "on" or (asked == "auto" and not fits and ranks.world_size > 1)
    return Decision(split, asked, weights_bytes, room, memory, ranks.world_size)


def memory_bytes(device: torch.device, ranks: Ranks, fraction: float) -> int:
    """What a rank may use: of its GPU that share, else its part of this machine's memory.

    Not of what is free at this moment: ranks must decide alike, and a process that is about to end would decide for the
    whole run.
    """
    total = total_memory_bytes(device)
    return int(total * fraction) if device.type == "cuda" else total // ranks.local_world_size


def taken_by_others(device: torch.device, memory_bytes: int) -> str | None:
    """A warning where less memory of a GPU is free than a rank is to use."""
    if device.type != "cuda" or (free := torch.cuda.mem_get_info(device)[0]) >= memory_bytes:
        return None
    return (
        f"{free / GB:.1f} GB are free on {device}, and this run may use {memory_bytes / GB:.1f}: end the other process "
        "that holds memory there, or lower --memory_fraction"
    )


def total_memory_bytes(device: torch.device) -> int:
    """Of a GPU, or what this machine lets the process have, whether free or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory_limit.memory_bytes()
