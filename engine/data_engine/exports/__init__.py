"""Datasets that trainers load: a table of formats, one file for each. No torch here.

A format is a function `write(kept, folder, scratch) -> Written`: it writes what is in `kept` into the empty `folder`,
and may use the folder `scratch` for work in progress. The same input gives the same bytes.
"""

import contextlib
import logging
from pathlib import Path

from data_engine.exports.base import KeptPairs, Written
from data_engine.store.folders import swap_in
from data_engine.tables import load

# A format is one file and one line here.
EXPORTS = {"rlaif-v": "data_engine.exports.rlaif_v:write"}
# The format of work_dir/dataset.
DEFAULT = "rlaif-v"

log = logging.getLogger(__name__)


def export(name: str, kept: KeptPairs, target: Path, scratch: Path) -> Written:
    """Write `kept` as the folder `target`, whole or not at all, in a format of EXPORTS.

    Where the format has no place for any of the pairs that there are, no folder is written, and one that was there
    before is removed. `scratch` is an empty folder on the file system of `target`.
    """
    new = scratch / "export"
    new.mkdir()
    written = load(EXPORTS[name])(kept, new, scratch)
    if not written.rows and written.not_fitting:
        log.warning(
            "%s is not written: the format %s has no place for any of the %d kept pairs, whose questions have several "
            "images or none, a system text or earlier turns; pairs.parquet has them, and so can an export of another "
            "format", target, name, written.not_fitting,
        )  # fmt: skip
        with contextlib.suppress(FileNotFoundError):
            target.rename(scratch / "old")
        return written
    if not written.rows:
        log.warning("no pair is left: %s is written without a row, which dataset loaders refuse", target)
    target.parent.mkdir(parents=True, exist_ok=True)
    swap_in(new, target, scratch / "old")
    return written
