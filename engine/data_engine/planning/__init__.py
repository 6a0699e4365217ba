"""Before a run: everything that is wrong with it at once (checks.py), and what it will take (plan.py, measure.py)."""
