"""The processes of a job: ranks, signals, heartbeats, stacks of their threads, and the processes that ranks start."""
