"""A native model made recurrent: its answers depend on a state that each step moves on."""

from collections.abc import Callable

import pytest
import torch
from prompts import EmbeddedPrompt
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from data_engine.models.base import PromptEnd
from data_engine.models.layers.answer_cache import passing
from data_engine.models.native import model as native


def with_states(model, monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor, int], Tensor]:
    """Before the decoder, each token of a row has a running mixture of those before it added: s' = s / 2 + token.

    Returns what makes logits of a whole row of embeddings, behind each of its tokens.
    """

    without_state = model.cache_layers

    def mixed(embeds_KTD: Tensor, state_KD: Tensor) -> tuple[Tensor, Tensor]:
        tokens = []
        for token_KD in embeds_KTD.unbind(1):
            state_KD = state_KD / 2 + token_KD
            tokens.append(token_KD + state_KD)
        return torch.stack(tokens, 1), state_KD

    def run_prompt(prompt: EmbeddedPrompt) -> PromptEnd:
        embeds, state = mixed(prompt.embeds_PD[None], torch.zeros_like(prompt.embeds_PD[:1]))
        positions = torch.arange(prompt.length, device=embeds.device)[None]
        hidden = native.decode(model.decoder, embeds, positions, passing(len(model.layers)))
        layer = LinearAttentionLayer()
        layer.update_recurrent_state(state)
        return PromptEnd(hidden[0, -1], prompt.length, [*without_state, layer])

    def run_answers(ids_KT: Tensor, positions_KT: Tensor, cache) -> Tensor:
        embeds, state = mixed(model.embed_tokens(ids_KT), cache.layers[-1].recurrent_states[0].clone())
        cache.layers[-1].update_recurrent_state(state)
        return native.decode(model.decoder, embeds, positions_KT, cache)

    def logits(row: Tensor, size: int) -> Tensor:
        embeds, _ = mixed(row[None], torch.zeros_like(row[:1]))
        hidden = native.decode(model.decoder, embeds, torch.arange(len(row))[None], None)[0]
        return hidden @ model.head.weight.T

    first = torch.zeros(3, model.decoder.config.hidden_size, device=model.device, dtype=model.dtype)
    with torch.inference_mode():
        monkeypatch.setattr(model, "cache_layers", run_prompt(EmbeddedPrompt(first)).cache_layers)
    monkeypatch.setattr(model, "run_prompt", run_prompt)
    monkeypatch.setattr(type(model), "packs_prompts", False)
    monkeypatch.setattr(model, "run_answers", run_answers)
    # One row of several answers would have one state.
    monkeypatch.setattr(model, "answers_in_rows", True)
    return logits
