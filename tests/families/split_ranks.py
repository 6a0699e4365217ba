"""Ranks that share split models, one family after the other: run by test_family_split.py, forked.

Arguments: folders of checkpoints. A JSON line a folder says what its whole model gave, by one of the ranks, and another
by each rank what the split one did, and how many numbers of the decoder and the vision tower the rank holds.
"""

import json
import os
import sys

import torch
import torchvision_names  # noqa: F401, before transformers is imported
from PIL import Image

from data_engine import load_model, sample_answers, score_answers
from data_engine.models.sharding.lock_step import FINISHED, CallAgreement
from data_engine.models.sharding.zero3 import Zero3Split, deepspeed
from data_engine.processes.ranks import Ranks, join_process_group
from data_engine.processes.signals import Stopped

# Every weight is divided, however small, and none is kept.
SETTINGS = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 1}}
SIZES = ((140, 100), (90, 170))


def pictures() -> list[Image.Image]:
    return [Image.linear_gradient("L").resize(size).convert("RGB") for size in SIZES]


def work(model, num_questions: int) -> tuple[list[list[int]], list[list[float]]]:
    """Greedy answers to the first pictures, and their log-probs."""
    ids, logps = [], []
    for picture in pictures()[:num_questions]:
        answers = sample_answers(model, picture, "What is it?", k=2, temperature=0, max_new_tokens=8)
        ids += [answer.token_ids for answer in answers]
        logps += [
            one.tolist() for one in score_answers(model, picture, "What is it?", [*map(list, ids[-2:]), [9] * 20])
        ]
    return ids, logps


def held(model) -> tuple[int, int]:
    """Numbers of the decoder's and the tower's weights that this rank keeps a share of, and of their shares."""
    parts = [part for part in (model.decoder, model.vision) if part is not None]
    divided = [weight for part in parts for weight in part.parameters() if hasattr(weight, "ds_tensor")]
    return sum(weight.ds_numel for weight in divided), sum(weight.ds_tensor.numel() for weight in divided)


def shared(folder: str, ranks: Ranks) -> dict[str, object]:
    """What this rank's share of the work gave, by a model that all ranks share."""
    agreement = CallAgreement(lambda: False, Stopped)
    split = Zero3Split(SETTINGS, agreement, ranks.rank)
    model = load_model("auto", folder, device="cpu", dtype="float32", split=split)
    # Uneven: the last rank has less work, and takes part in the calls of the others.
    given = work(model, len(SIZES) - (ranks.rank == ranks.world_size - 1))
    while agreement.take_part(FINISHED) != FINISHED:
        pass
    weights = [weight for part in (model.decoder, model.vision) if part is not None for weight in part.parameters()]
    numbers = sum(weight.ds_numel if hasattr(weight, "ds_numel") else weight.numel() for weight in weights)
    found = {"split": given, "why": model.why_plain, "held": held(model), "all": numbers}
    split.release()
    return found


def main(*folders: str) -> None:
    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    # Rank 0 serves the store for as long as it is held.
    store = join_process_group(ranks, "cpu")  # noqa: F841
    deepspeed()
    # A whole model gives the same on any rank, so each is asked by one.
    for folder in folders[ranks.rank :: ranks.world_size]:
        tell(folder=folder, whole=work(load_model("auto", folder, device="cpu", dtype="float32"), len(SIZES)))
    for folder in folders:
        tell(folder=folder, rank=ranks.rank, **shared(folder, ranks))


def tell(**line: object) -> None:
    os.write(1, (json.dumps(line) + "\n").encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
