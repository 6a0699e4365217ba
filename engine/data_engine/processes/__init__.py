"""Ranks, signals, exit codes, heartbeats and stacks."""
