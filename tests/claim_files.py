"""The claim on unit 4 of stage 0: taken by this process, made for another one, or for one that has ended."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from data_engine.store.claims import Claims
from data_engine.store.process_identity import ProcessIdentity


def is_taken(claims: Claims) -> bool:
    with claims.hold("sampled_answer", 4) as taken:
        return taken


def dead_pid() -> int:
    """The id of a process that has ended, and was waited for."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def claim_of(work_dir: Path, **fields: object) -> Path:
    """A claim on unit 4 by a process that is like this one but for `fields`."""
    path = work_dir / "claims/sampled_answer-00004.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(vars(replace(ProcessIdentity.of_this_process(), **fields))))
    return path
