"""Prompts of native families for tests: as embeddings, which a test can also make up."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from data_engine.bench.bare_llama import EmbeddedPrompt
from data_engine.models.layers.prefix import Prefix
from data_engine.models.native.embedded import SplicedPrompt
from data_engine.sampling.native.model_runner import ModelRunner
from data_engine.sampling.native.packing import Packing
from data_engine.scoring import logprobs


@contextlib.contextmanager
def logits_noted() -> Iterator[dict[tuple[int, int], Tensor]]:
    """The logits of each token that is drawn inside, by the answer's key and the token's place."""
    logits: dict[tuple[int, int], Tensor] = {}
    draw = ModelRunner._draw

    def noted(runner: ModelRunner, logits_NV: Tensor, which: Tensor) -> Tensor:
        state = runner.caches.state_5R[:, which].tolist()
        for key, place, slot, row in zip(state[1], state[2], state[3], logits_NV, strict=True):
            if slot >= 0:
                logits[key, place] = row.clone()
        return draw(runner, logits_NV, which)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelRunner, "_draw", noted)
        yield logits


def spliced(model, pixels: Tensor, question: str) -> SplicedPrompt:
    """A question behind an image of which the pixels are known."""
    return SplicedPrompt(model.prompt_ids(question), pixels, model.image_tokens)


def prefix(model, pixels: Tensor, question: str) -> Tensor:
    """Embeddings of the whole prompt, with the image's features in it [P, D]."""
    return spliced(model, pixels, question).embeds(model)


def even(embeds_PD: Tensor) -> Tensor:
    """With the first row twice where their number is odd: passes of unlike numbers of rows can then agree bit by bit.

    torch's loops over numbers on a CPU compute the last ones of a tensor, fewer than two vectors, by another exp than
    the others. Rows of the tiny LLaVA's feed-forward layers are 112 numbers wide, and two vectors of AVX512 are 32: an
    even number of such rows leaves none. Widths of real models are multiples of 32.
    """
    return embeds_PD if len(embeds_PD) % 2 == 0 else torch.cat([embeds_PD[:1], embeds_PD])


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


def assert_golden_logps(model, tensors: dict[str, Tensor], rows: list[dict], first: int, prefix_PD: Tensor, way: str):
    """Of rows of a golden, from the number `first` on, the log-probs of the answers behind their one prompt."""
    answers = [model.answer_ids(row["question"], row["chosen"]) for row in rows]
    if way == "packed":
        logps = packed_token_logps(model, prefix_PD, answers)
    else:
        logps = [plain_token_logps(model, prefix_PD, answer) for answer in answers]
    for number, got in enumerate(logps, start=first):
        torch.testing.assert_close(got, tensors[f"row_{number:03d}.answer_token_logp"], rtol=0, atol=1e-4)
        assert float(got.double().sum()) == pytest.approx(float(tensors[f"row_{number:03d}.logp"]), abs=2e-3)


def assert_same_prefix(found: Prefix, expected: Prefix) -> None:
    """The same end, keys and values, to the last bit."""
    assert (found.length, found.end.next_position) == (expected.length, expected.end.next_position)
    assert torch.equal(found.end.hidden_D, expected.end.hidden_D)
    assert found.layers.keys() == expected.layers.keys()
    for layer, noted in found.layers.items():
        assert torch.equal(noted.keys, expected.layers[layer].keys)
        assert torch.equal(noted.values, expected.layers[layer].values)


def one_a_pass(patch: pytest.MonkeyPatch) -> None:
    """Each prompt has a pass of its own."""
    may_go = Packing.may_go
    patch.setattr(Packing, "may_go", lambda of, lengths, room: len(lengths) < 2 and may_go(of, lengths, room))
