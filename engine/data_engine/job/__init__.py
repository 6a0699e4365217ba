"""One rank's part of a run: the plan, the loop that claims, computes and publishes units, and its progress."""
