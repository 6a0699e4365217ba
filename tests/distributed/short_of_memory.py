"""Stands in for the command line: the real engine, in whose rank 1 a call of the split model fails once.

$FAULT is what is raised, inside the decoder's second layer, where the other ranks wait for this one's share.
"""

import os
import sys
from pathlib import Path

import torch

from data_engine.commands import main
from data_engine.models.sharding import zero3

FAULTS = {
    "memory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "device": lambda: RuntimeError("CUDA error: uncorrectable ECC error encountered"),
}


def fail_once(split, model, run_together=zero3.Zero3Split.run_together) -> None:
    run_together(split, model)
    layer = model.decoder.layers[1]
    forward, calls = layer.forward, []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            Path(os.environ["FAULT_LOG"]).write_text(os.environ["FAULT"])
            raise FAULTS[os.environ["FAULT"]]()
        return forward(*arguments, **options)

    layer.forward = failing


if __name__ == "__main__":
    if "run" in sys.argv[1:2] and os.environ.get("RANK") == "1":
        zero3.Zero3Split.run_together = fail_once
    sys.exit(main.main())
