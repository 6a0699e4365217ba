"""Where the scripts lie that start ranks: run_engine.sh, and those of SLURM."""

from pathlib import Path

import data_engine
from data_engine.errors import UserError


def launch_folder() -> Path:
    """The folder of run_engine.sh and the batch scripts: inside the installed package, or beside engine/ in a checkout.

    Raises UserError where it is missing.
    """
    package = Path(data_engine.__file__).resolve().parent
    folders = [package / "launch", package.parents[1] / "launch"]
    found = next((folder for folder in folders if (folder / "run_engine.sh").is_file()), None)
    if found is None:
        raise UserError(f'no run_engine.sh in "{folders[0]}" or "{folders[1]}": install the package again')
    return found
