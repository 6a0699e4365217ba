"""Whether a model shares its prompts between answers or runs on the plain path: decided once a run and written down.

The first usable question decides, before any unit is computed; every rank and every later start follows what
work_dir/paths/ROLE.json says. A native family always shares.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from data_engine import stages
from data_engine.errors import BadRow, UserError
from data_engine.job.plan import Plan
from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.questions.dataset import Question, read_images
from data_engine.questions.images import BadImage, Decode
from data_engine.scoring.self_check import why_not_shared
from data_engine.store.units import creating, replacing

log = logging.getLogger(__name__)

FOLDER = "paths"


def choose(plan: Plan, role: str, model: VisionLanguageModel, decode: Decode) -> None:
    """Set model.why_plain as this run decided, or decide it now.

    Raises UserError for a model on the plain path where require_fast is set.
    """
    if not model.has_plain_path:
        return
    path = plan.work_dir / FOLDER / f"{role}.json"
    fingerprint = plan.bound[stages.model_key(role)]
    found = _read(path)
    if found is None or found["model"] != fingerprint:
        _write(path, {"model": fingerprint} | _decision(plan, model, decode), replace=found is not None)
        # Another rank may have been faster.
        found = _read(path)
        if found["why_plain"]:
            log.warning(
                "the %s model runs on the plain path, each answer with a prompt of its own, several times slower: %s",
                role, found["why_plain"],
            )  # fmt: skip
    model.why_plain, model.is_settled = found["why_plain"], True
    if model.why_plain and plan.config.require_fast:
        raise UserError(f"--require_fast is set, and the {role} model cannot share its prompts: {model.why_plain}")


def _decision(plan: Plan, model: VisionLanguageModel, decode: Decode) -> dict:
    if model.why_plain:
        return {"why_plain": model.why_plain, "question": None}
    for question, prompt in _prompts(plan, model, decode):
        needed, most = prompt.length + plan.config.max_new_tokens, model.max_positions
        if needed > most:
            why = f"a question and its answer may take {needed} tokens, and answers share a prompt up to {most}"
        else:
            why = why_not_shared(model, prompt)
        return {"why_plain": why, "question": question.idx}
    return {"why_plain": None, "question": None}


def _prompts(plan: Plan, model: VisionLanguageModel, decode: Decode) -> Iterator[tuple[Question, Prompt]]:
    """The usable questions, and their prompts."""
    most = plan.config.max_megapixels
    for rows in plan.unit_rows:
        for question in plan.questions.rows(rows):
            try:
                images = read_images(question, most, decode)
                yield question, model.prompt(question.conversation, images, True, most)
            except (BadRow, BadImage):
                continue


def _read(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text())
        return found if {"model", "why_plain"} <= found.keys() else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def _write(path: Path, decision: dict, replace: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (replacing if replace else creating)(path) as beside:
        beside.write_text(json.dumps(decision, indent=1))
