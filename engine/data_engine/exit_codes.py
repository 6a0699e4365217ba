"""Exit codes of `data-engine`, of each rank, and of launch/run_engine.sh; docs/faults.md tells them to users.

launch/supervise.py makes one of those of all ranks; `status` tells a rank's state by its own.
"""

DONE = 0
# A bug, or a rank that died.
FAILED = 1
# The user's input or configuration is wrong.
WRONG_INPUT = 2
# Units are missing that were asked for, or another start has taken the pairing over.
INCOMPLETE = 3
# The run came to its end, and has no row to write.
NOTHING_WRITTEN = 4
# Stopped after committing, by a signal or a full disk: the same command goes on.
STOPPED = 75
