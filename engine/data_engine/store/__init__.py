"""The work directory: units, claims, folders, logs. Files and nothing else."""
