"""Stands in for the command line under launch/run_engine.sh: ranks that do what the test's folder tells them.

In the folder of $STAND_IN: `validate` holds the code of the check, or "hang"; `rank-R` what rank R does: a code to exit
with, "die", "late", which has not begun when the others end, or "work", which goes on until a signal (written to
`signal-R`) and exits 75 after `slow-R` seconds, if there.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["STAND_IN"])
RANK = int(os.environ.get("RANK", 0))


def report(**values: int) -> None:
    with open(os.environ["DATA_ENGINE_EXIT_FILE"], "a") as file:
        file.write(json.dumps({"rank": RANK, **values}) + "\n")


def setting(name: str, default: str) -> str:
    path = FOLDER / name
    return path.read_text() if path.exists() else default


def on_signal(number: int, _frame: object) -> None:
    with open(FOLDER / f"signal-{RANK}", "a") as file:
        file.write(signal.Signals(number).name + "\n")


def run() -> int:
    what = setting(f"rank-{RANK}", "0")
    if what == "late":
        time.sleep(60)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, on_signal)
    report(pid=os.getpid())
    (FOLDER / f"environment-{RANK}").write_text(json.dumps(dict(os.environ)))
    (FOLDER / f"pid-{RANK}").write_text(str(os.getpid()))
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what != "work":
        return int(what)
    while not (FOLDER / f"signal-{RANK}").exists():
        time.sleep(0.02)
    end = time.monotonic() + float(setting(f"slow-{RANK}", "0"))
    while time.monotonic() < end:
        time.sleep(0.02)
    return 75


if __name__ == "__main__":
    (FOLDER / sys.argv[1]).with_suffix(".arguments").write_text(json.dumps(sys.argv[2:]))
    if sys.argv[1] == "validate":
        code = setting("validate", "0")
        if code == "hang":
            time.sleep(600)
        sys.exit(int(code))
    code = run()
    report(code=code)
    sys.exit(code)
