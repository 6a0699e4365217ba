"""The processes of a job: ranks, signals, exit codes, heartbeats, and stacks of their threads."""
