"""Commands as a user gives them, in processes of their own, and what a refusal is."""

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "datasets", "accelerate")


def call(*arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "data_engine", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    return result.returncode, result.stdout, result.stderr


def refused(message: str) -> tuple[int, str, str]:
    """Exit code 2, and the message alone: no traceback, no usage."""
    return 2, "", f"data-engine: error: {message}\n"
