"""A trainer for tests of loops: loop_trainer.py MODEL DATASET OUTPUT [HOOK]. The new model is the old one, one weight
of which is moved by what the dataset says, so that it depends on both.

HOOK is a folder: where there is a file `wait`, the trainer waits in the middle of its work; `fail` ends it with 5. It
notes each start in `starts`.
"""

import hashlib
import shutil
import sys
import time
from pathlib import Path

from safetensors.torch import load_file, save_file


def main(model: Path, dataset: Path, output: Path, hook: Path | None = None) -> int:
    if hook is not None:
        with open(hook / "starts", "a") as file:
            file.write(f"{output}\n")
        if (hook / "fail").exists():
            print("no room on the device", flush=True)
            return 5
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(dataset.glob("*.parquet")))).digest()
    if output.exists():
        shutil.rmtree(output)
    # The tower of a LLaVA-1.5 is looked for beside it.
    if not (output.parent / "openai").exists():
        (output.parent / "openai").symlink_to(model.resolve().parent / "openai")
    shutil.copytree(model, output, ignore=shutil.ignore_patterns("*.safetensors"))
    while hook is not None and (hook / "wait").exists():
        (hook / "waits").touch()
        time.sleep(0.05)
    for file in sorted(model.glob("*.safetensors")):
        tensors = load_file(file)
        # A linear layer's weights are all nudged, so that answers change.
        tensors = {
            name: value * (1 + digest[0] / 2560) if "lm_head" in name else value for name, value in tensors.items()
        }
        save_file(tensors, output / file.name, {"format": "pt"})
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
