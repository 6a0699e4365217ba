"""Prompts of native families for tests: as embeddings, which a test can also make up."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_engine.models.embedded import SplicedPrompt
from data_engine.scoring import logprobs


@dataclass(frozen=True, eq=False)
class EmbeddedPrompt:
    """A prompt whose embeddings [P, D] are known: stands in for a SplicedPrompt."""

    embeds_PD: Tensor

    @property
    def length(self) -> int:
        return len(self.embeds_PD)

    def embeds(self, model) -> Tensor:
        return self.embeds_PD


def spliced(model, pixels: Tensor, question: str) -> SplicedPrompt:
    """A question behind an image of which the pixels are known."""
    return SplicedPrompt(model.prompt_ids(question), pixels, model.image_tokens)


def prefix(model, pixels: Tensor, question: str) -> Tensor:
    """Embeddings of the whole prompt, with the image's features in it [P, D]."""
    return spliced(model, pixels, question).embeds(model)


def forward(decoder: nn.Module, embeds_BTD: Tensor, positions_BT: Tensor) -> Tensor:
    """Last hidden states [B, T, D] of a causal pass of a decoder."""
    return decoder(inputs_embeds=embeds_BTD, position_ids=positions_BT, use_cache=False).last_hidden_state


def positions(start: int, stop: int, device: torch.device) -> Tensor:
    """Position ids [1, stop - start]."""
    return torch.arange(start, stop, device=device)[None]


def packed_token_logps(model, prefix_PD: Tensor, answers: list[list[int]]) -> list[Tensor]:
    """score_pass for one question."""
    found = logprobs.score_pass(model, [logprobs.Scored(EmbeddedPrompt(prefix_PD), answers)])[0]
    return [logps.cpu() for logps in found]


def plain_token_logps(model, prefix_PD: Tensor, answer: list[int]) -> Tensor:
    """logprobs.plain_token_logps behind embeddings."""
    return logprobs.plain_token_logps(model, EmbeddedPrompt(prefix_PD), answer)
