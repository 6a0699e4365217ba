"""The plain path of sampling: the model's own decoding, a question at a time, with the engine's keyed draws.

For models that cannot share a prompt between answers. Each answer has a row of its own, prompt included.

Shapes: K rows, V vocabulary.
"""

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from data_engine.errors import NO_ROOM, UserError
from data_engine.models.memory_errors import naming_out_of_memory
from data_engine.sampling.backend import BackendSettings
from data_engine.sampling.draw import next_tokens
from data_engine.sampling.requests import BROKEN, TOO_LARGE, Completion, PromptRequest, Submitted

log = logging.getLogger(__name__)


def make(settings: BackendSettings) -> "PlainBackend":
    """The plain back end."""
    return PlainBackend(settings)


class PlainBackend:
    """Draws the answers of one request in each poll."""

    def __init__(self, settings: BackendSettings) -> None:
        self._model, self._params, self._num_rows = settings.model, settings.params, settings.num_rows
        self._submitted = Submitted()
        self._answered = False
        self.halvings = 0

    @property
    def wants_more(self) -> bool:
        return not self._submitted

    def submit(self, requests: Iterable[PromptRequest]) -> None:
        self._submitted.add(requests)
        self.halvings = 0

    def poll(self) -> list[Completion]:
        number, request = self._submitted.num_taken, next(self._submitted, None)
        return [] if request is None else self._completions(number, request)

    def close(self) -> None:
        self._submitted.clear()

    def _completions(self, number: int, request: PromptRequest) -> list[Completion]:
        rows, found = self._num_rows, []
        while len(found) < len(request.keys):
            keys = request.keys[len(found) : len(found) + rows]
            try:
                with naming_out_of_memory(self._model):
                    drawn = self._draw(request, keys)
            except torch.OutOfMemoryError:
                drawn = None
            if drawn is None:
                self.halvings += 1
                if rows == 1 or len(keys) == 1:
                    return self._too_large(number, request)
                if self._model.device.type == "cuda":
                    torch.cuda.empty_cache()
                rows = max(1, min(rows, len(keys)) // 2)
                log.warning("out of memory: this unit goes on with %d answers at a time", rows)
                continue
            found += [Completion(number, len(found) + place, *one) for place, one in enumerate(drawn)]
            self._answered = True
        return found

    def _too_large(self, number: int, request: PromptRequest) -> list[Completion]:
        if not self._answered:
            raise UserError(NO_ROOM)
        return [Completion(number, index, [], TOO_LARGE) for index in range(len(request.keys))]

    @torch.inference_mode()
    def _draw(self, request: PromptRequest, keys: list[int]) -> list[tuple[list[int], str]]:
        """(token ids, reason of the end) of the answers with these keys, all at once."""
        model, params, device = self._model, self._params, self._model.device
        steps = model.plain_steps(request.prompt, len(keys))
        keys_K = torch.tensor(keys, device=device)
        banned = torch.tensor(model.banned_token_ids, dtype=torch.long, device=device)
        tokens: list[list[int]] = [[] for _ in keys]
        reasons: list[str | None] = [None] * len(keys)
        logits_KV, seen_KV = steps.first(), None
        for place in range(params.max_new_tokens):
            # Not the sum: some models give tokens that they never say the least number there is.
            sound = (logits_KV.amax(-1) - logits_KV.amin(-1)).isfinite().tolist()
            logits_KV.index_fill_(1, banned, -torch.inf)
            if params.repetition_penalty != 1 and seen_KV is None:
                seen_KV = torch.zeros_like(logits_KV, dtype=torch.bool)
            drawn_K = next_tokens(logits_KV, keys_K, torch.full_like(keys_K, place), params, seen_KV)
            if seen_KV is not None:
                seen_KV.scatter_(1, drawn_K[:, None], True)
            self._take(tokens, reasons, drawn_K, sound)
            if None not in reasons:
                break
            if place < params.max_new_tokens - 1:
                logits_KV = steps.next(drawn_K)
        return [(ids, reason or "length") for ids, reason in zip(tokens, reasons, strict=True)]

    def _take(self, tokens: list[list[int]], reasons: list[str | None], drawn_K: Tensor, sound: list[bool]) -> None:
        """Add a step's tokens to the answers that go on, and say which ended."""
        for row, token in enumerate(drawn_K.tolist()):
            if reasons[row] is not None:
                continue
            if not sound[row]:
                reasons[row] = BROKEN
                continue
            tokens[row].append(token)
            if token in self._model.eos_token_ids:
                reasons[row] = "stop"
