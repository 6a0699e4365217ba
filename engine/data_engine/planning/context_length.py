"""Questions that a run would leave out, since the model has no room for prompt and answer. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_engine import stages
from data_engine.config import RunConfig
from data_engine.planning import sizes
from data_engine.planning.found import Found
from data_engine.store import units

# It imports torch.
if TYPE_CHECKING:
    from data_engine.models.base import Description

# Fields of the configuration without which it is not known what a stage asks for.
_NEEDED = {
    "answers", "chat_template", "chat_template_kwargs", "continue_from_stage", "image_root", "limit", "max_new_tokens",
    "num_shards", "question", "rewards", "sampler", "shard_index", "stop_after_stage", "system", "unit_size",
    "vllm_args", "work_dir",
}  # fmt: skip


@dataclass(frozen=True)
class Room:
    """What the first stage of a model asks for behind a prompt, and what the model takes with it."""

    role: str
    path: str
    """of its checkpoint"""
    new: int
    """tokens that are to be generated; 0: a stage that scores answers, whose lengths are not known"""
    positions: int
    """most tokens of prompt and answer together"""
    taken_by: str
    """what has that room, in words"""
    may_refuse: bool
    """whether a run would be refused where no question of its first unit fits: no unit of the stage is published"""

    @classmethod
    def of(cls, found: Found, role: str, model: "Description", counts: Sequence[int]) -> "Room | None":
        """`counts` are the tokens of the first prompts, which decide on the path.

        None where this start shows the model no prompt of the first rows, or what it asks for is not known.
        """
        config = found.config
        if found.wrong & _NEEDED:
            return None
        # Of the model to train, the one that samples; that of contrast, whose prompts have no pictures, is its last.
        stage = next((one for one in sizes.todo(found) if one.model == role), None)
        if stage is None:
            return None
        published = units.published(Path(config.work_dir), stage.name)
        if 0 in published or 0 not in sizes.mine(found):
            return None
        new, taken_by, positions = 0, f"the {role} model", _positions(config, model, counts)
        if stage.step == stages.SAMPLE:
            new, most = config.max_new_tokens, config.vllm_options.get("max_model_len", positions)
            if most < positions:
                positions, taken_by = most, "max_model_len of --vllm_args"
        path = getattr(config, f"{role}_model_path")
        return cls(role, path, new, positions, taken_by, may_refuse=not published)

    def too_long(self, counts: Sequence[int]) -> list[int]:
        """Those of the prompts that a run would leave out; of answers to score, each has a token at least."""
        return [count for count in counts if count + max(1, self.new) > self.positions]

    def none_fits(self, counts: Sequence[int]) -> bool:
        return len(self.too_long(counts)) == len(counts)

    def told(self, counts: Sequence[int]) -> str:
        """What a person is told of it."""
        long = self.too_long(counts)
        which = "all" if self.none_fits(counts) else str(len(long))
        tokens = f"{max(long)}" if min(long) == max(long) else f"{min(long)} to {max(long)}"
        told = (
            f"{which} of the first {len(counts)} questions that can be read are too long, and would be left out: their "
            f"prompts have {tokens} tokens, and {self.taken_by} has room for {self.positions}"
        )
        longer = "shorten these questions or their pictures, or choose a model with more room"
        if not self.new:
            return f'{self.role}_model_path "{self.path}": {told}; {longer}'
        left = self.positions - max(long)
        mend = f"lower --max_new_tokens to at most {left}" if left > 0 else longer
        return f"max_new_tokens {self.new}: {told} with the answer; {mend}"


def _positions(config: RunConfig, model: "Description", counts: Sequence[int]) -> int:
    """Most tokens of prompt and answer together, on the path that the first question decides on: see path_choice.py."""
    whole, shared = model.max_positions, model.most_shared
    if config.draws_by_vllm:
        return min(whole, shared or whole)
    if shared is None or model.why_plain is not None:
        return whole
    first = next((count for count in counts if count + config.max_new_tokens <= whole), 0)
    return shared if first + config.max_new_tokens <= shared else whole
