"""Which prompts run in one pass of the decoder: those of which it was measured that their bits are those of each alone.

A pass of several prompts makes for each the attention call that it would make alone (models/layers/prefix.py). All
else in a layer goes row by row: norms, products, rotary embedding, activation. So a prompt keeps its bits where a
row's do not depend on how many rows there are, nor on its place among them. No library promises that: another number
of rows may be another algorithm. It is measured with the model's own weights, once for each number of rows
(`fingerprint`), and prompts whose numbers of rows were not found to agree run one at a time.

Every pass is filled up to a multiple of `ROUND` rows, that of one prompt too. So there are few numbers of rows to
measure, however many lengths prompts have.

The measurement sees what changes whole rows, as another order of a sum does. A few numbers at the end of a tensor can
escape it: torch's element-wise loops on a CPU compute fewer than two vectors of them by other functions, which mostly
round alike. On a GPU, where prompts are packed, one function computes all numbers of a tensor.

Shapes: M rows of a pass, H heads, D head width.
"""

import hashlib
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.models.layers.answer_cache import answer_cache
from data_engine.models.layers.attention import DoesNotFit, LayerCall, attending, plain
from data_engine.models.layers.prefix import Prefix, run_prefixes
from data_engine.models.memory_errors import is_out_of_memory

log = logging.getLogger(__name__)

# Of a pass. So many usual prompts fill a GPU, and more would win nothing.
MOST_PROMPTS, MOST_TOKENS = 4, 4096
# Passes have a multiple of so many rows. Products are computed in tiles of 128 or 256 rows, so filling up costs little.
ROUND = 128
# Rows that are repeated to measure. 61 shares no factor with a tile's rows, so copies begin at many places in a tile.
BLOCK = 61


class Packing:
    """The passes of one model, and what was measured of it."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self._model, self._most_tokens = model, MOST_TOKENS
        self._found: dict[int, bytes | None] = {}

    def run(self, prompts: Sequence[Prompt], room: int) -> list[Prefix]:
        """Run as many of the first prompts as go in one pass of up to `room` rows, at least one; what they leave.

        An empty list where the first one is to run without a pass: it is too long for one, or does not fit one. After
        a prompt that does not fit a pass, no pass has several. Where memory runs out in a pass of several prompts, they
        run in smaller passes, and no later pass of several has as many rows.
        """
        lengths = [prompt.length for prompt in prompts[:MOST_PROMPTS]]
        try:
            while lengths and not (self.may_go(lengths, room) and self.agree(lengths)):
                lengths.pop()
            return run_prefixes(self._model, prompts[: len(lengths)], rows_for(lengths)) if lengths else []
        except DoesNotFit as problem:
            log.info("%s; a prompt runs without a pass, and no pass has several from here on", problem)
            self._most_tokens = 0
        except (RuntimeError, MemoryError) as error:
            if len(lengths) < 2 or not is_out_of_memory(error):
                raise
            self._most_tokens = rows_for(lengths) - 1
            log.info(
                "out of memory with %d rows of prompts; no pass of several has as many from here on", rows_for(lengths)
            )
        # Outside the handlers, whose traceback would keep the pass's tensors.
        return self.run(prompts, room) if len(lengths) > 1 else []

    def may_go(self, lengths: Sequence[int], room: int) -> bool:
        """Whether prompts of these lengths are few and short enough for one pass, and nothing that was measured so far
        speaks against it.

        One prompt goes by its length alone, so that its bits depend on nothing else.
        """
        num_rows = rows_for(lengths)
        most = min(room, self._most_tokens) if len(lengths) > 1 else MOST_TOKENS
        measured = {self._found[number] for number in (num_rows, *_each_alone(lengths)) if number in self._found}
        return len(lengths) <= MOST_PROMPTS and num_rows <= most and None not in measured and len(measured) < 2

    def agree(self, lengths: Sequence[int]) -> bool:
        """Whether prompts of these lengths were found to have the same bits in one pass as in a pass of each."""
        together = self.fingerprint(rows_for(lengths))
        return together is not None and all(self.fingerprint(number) == together for number in _each_alone(lengths))

    def fingerprint(self, num_rows: int) -> bytes | None:
        """The bits of a block of rows, wherever it stands in a pass of so many; None where they depend on its place, or
        a window hides something.

        Waits for the device where the number is new. It is measured in a pass of copies of a block of tokens, which
        ends at the second layer: its queries, keys and values depend on all that the first one does.
        """
        if num_rows not in self._found:
            self._found[num_rows] = self._measured(num_rows)
        return self._found[num_rows]

    @torch.inference_mode()
    def _measured(self, num_rows: int) -> bytes | None:
        model, copies = self._model, _Copies()
        places = torch.arange(num_rows, device=model.device) % BLOCK
        ids = places * (model.num_ids // BLOCK)
        try:
            with attending(copies, model.attention_layers):
                hidden = model.run_answers(ids[None], places[None], answer_cache(model.cache_layers, (), {}))
            # Of a model of one layer.
            copies.note(hidden[:, None])
        except _EndOfPass:
            pass
        return copies.bits()


def rows_for(lengths: Sequence[int]) -> int:
    """Rows of the pass of prompts."""
    return -(-sum(lengths) // ROUND) * ROUND


def _each_alone(lengths: Sequence[int]) -> list[int]:
    """Rows of the pass of each."""
    return [rows_for([length]) for length in lengths]


class _EndOfPass(Exception):
    """Enough was seen."""


class _Copies:
    """The layout of a pass of copies of one block: all get the attention of the first, as if it were alone.

    Attention is no part of the measurement, since in a pass of prompts each makes its own call. So the rows of a last
    copy that is cut off can be compared too.
    """

    describes_masks = False

    def __init__(self) -> None:
        self._layers, self._has_mask = 0, False
        self._equal: list[Tensor] = []
        self._blocks: list[Tensor] = []

    def attend(self, call: LayerCall) -> Tensor:
        # A window that hides something in a pass of this length.
        self._has_mask = call.mask is not None
        if self._has_mask:
            raise _EndOfPass
        for part in (call.query, call.key, call.value):
            self.note(part)
        self._layers += 1
        if self._layers == 2:
            raise _EndOfPass
        num_rows = call.query.shape[2]
        mixed = plain(call.alone(0, BLOCK))
        return mixed.repeat(1, 1, -(-num_rows // BLOCK), 1)[:, :, :num_rows]

    def note(self, part: Tensor) -> None:
        """Compare the rows of [1, H, M, D] with those of the first copy, and keep that one."""
        rows = part[0].transpose(0, 1).flatten(1).contiguous().view(torch.uint8)
        block, whole = rows[:BLOCK], len(rows) // BLOCK * BLOCK
        self._equal.append((rows[:whole].unflatten(0, (-1, BLOCK)) == block).all())
        self._equal.append((rows[whole:] == block[: len(rows) - whole]).all())
        # A copy, which does not keep all rows alive.
        self._blocks.append(block.flatten().clone())

    def bits(self) -> bytes | None:
        """A digest of the first copy, where the others are the same."""
        if self._has_mask or not bool(torch.stack(self._equal).all()):
            return None
        return hashlib.blake2b(torch.cat(self._blocks).cpu().numpy().tobytes()).digest()
