"""Whether a model shares its prompts between answers or runs on the plain path: decided once a run and written down.

The first usable question decides, before any unit is computed; every rank and every later start follows what
work_dir/paths/ROLE-DIGEST.json says, where the digest names what units of this role are computed from. A start that may
change that, since no unit was published, so decides anew. A native family always shares.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from data_engine.errors import BadRow, UserError
from data_engine.job.plan import Plan
from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.models.memory_errors import naming_out_of_memory
from data_engine.questions.dataset import Question, read_images
from data_engine.questions.images import BadImage, Decode
from data_engine.scoring.self_check import why_not_shared
from data_engine.store.atomic import creating, read_current, rewrite

log = logging.getLogger(__name__)

FOLDER = "paths"


def choose(plan: Plan, role: str, model: VisionLanguageModel, decode: Decode) -> None:
    """Set model.why_plain as this run decided, or decide it now.

    Raises UserError for a model on the plain path where require_fast is set.
    """
    if not model.has_plain_path:
        return
    path = plan.work_dir / FOLDER / f"{role}-{_digest(plan, role)}.json"
    found = _read(path)
    decides = found is None
    if decides:
        found = _decision(plan, model, decode)
        # What no question of this start decides, those of a larger --limit may.
        if found["why_plain"] or found["question"] is not None:
            _write(path, found)
            # Another rank may have been faster.
            found = _read(path)
    if found["why_plain"] and (decides or plan.ranks.rank == 0):
        log.warning(
            "the %s model runs on the plain path, each answer with a prompt of its own, several times slower: %s",
            role, found["why_plain"],
        )  # fmt: skip
    model.why_plain, model.is_settled = found["why_plain"], True
    if model.why_plain and plan.config.require_fast:
        raise UserError(f"--require_fast is set, and the {role} model cannot share its prompts: {model.why_plain}")


def _digest(plan: Plan, role: str) -> str:
    """Of all that the first usable question, its length and the model's numbers depend on."""
    of_role = [stage for stage in plan.stages.by_name.values() if stage.model == role]
    names = sorted({name for stage in (plan.stages.sampling, *of_role) for name in stage.bound})
    told = json.dumps({name: plan.bound.get(name) for name in names}, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _decision(plan: Plan, model: VisionLanguageModel, decode: Decode) -> dict:
    if model.why_plain:
        return {"why_plain": model.why_plain, "question": None}
    for question, prompt in _prompts(plan, model, decode):
        if prompt.length + plan.config.max_new_tokens > model.max_plain_positions:
            # Left out on either path.
            continue
        try:
            with naming_out_of_memory(model):
                why = why_not_shared(model, prompt, plan.config.max_new_tokens)
                return {"why_plain": why, "question": question.idx}
        except torch.OutOfMemoryError:
            # So large a question says nothing of the others; the run itself tells what does not fit.
            log.warning(
                "out of memory: whether answers share a prompt is decided on another question than %r", question.idx
            )
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
    """What was decided; None where nothing was, or the file is not whole."""
    try:
        found = json.loads(read_current(path))
        return found if isinstance(found, dict) and "why_plain" in found else None
    except (FileNotFoundError, ValueError):
        return None


def _write(path: Path, decision: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with creating(path) as beside:
        beside.write_text(json.dumps(decision, indent=1))
    if _read(path) is None:
        # What is there and cannot be read is no decision. Of ranks that see it at the same time, the first one decides.
        rewrite(path, lambda: json.dumps(decision, indent=1) if _read(path) is None else None)
