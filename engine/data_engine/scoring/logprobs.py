"""Teacher-forced log-probs of answers behind the prefixes of their questions: the shared path, and the plain one."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from data_engine.models.base import Prompt, VisionLanguageModel
from data_engine.models.device import sent
from data_engine.models.layers.answer_cache import answer_cache, repeated
from data_engine.models.layers.attention import DoesNotFit, LayerCall, attending
from data_engine.models.layers.prefix import Prefix, run_prefix, run_prefixes
from data_engine.scoring.answers_attention import AnswersBehindPrefixes, Behind

# Tokens of the answers to one question that run at a time: ten answers of 8,192 tokens would keep some 80,000 tokens'
# activations. Answers of up to 1,600 tokens, ten a question, stay together.
MOST_AT_ONCE = 16384
T = TypeVar("T")


def in_groups(items: Iterable[T], tokens: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Neighbours of up to `most` tokens in all, one item at least."""
    group, size = [], 0
    for one in items:
        needed = tokens(one)
        if group and size + needed > most:
            yield group
            group, size = [], 0
        group.append(one)
        size += needed
    if group:
        yield group


@dataclass(frozen=True)
class Scored:
    """A question to score: its prompt, and the ids of its answers."""

    prompt: Prompt
    answers: list[list[int]]


def pass_tokens(prefix_length: int, answers: list[list[int]]) -> int:
    """Tokens that a question adds to a pass: its prefix, and each distinct answer without its last token."""
    return prefix_length + sum(len(ids) - 1 for ids in set(map(tuple, answers)))


def row_tokens(prefix_length: int, rows: list[list[int]]) -> int:
    """The same where the last tokens are fed too, as last_hidden feeds them."""
    return prefix_length + sum(map(len, set(map(tuple, rows))))


@torch.inference_mode()
def score_pass(model: VisionLanguageModel, questions: list[Scored]) -> list[list[Tensor]]:
    """log p of each token of each answer of each question, fp32 nats, on the model's device: what reads them waits for
    the pass (scoring/arriving.py). Equal answers are computed once.

    Each prompt is run once, then the answers of all questions in one pass, behind the keys and values of their prompts.
    Raises ValueError for an answer without tokens.
    """
    if not all(all(question.answers) for question in questions):
        raise ValueError("an answer without tokens has no log-probs")
    if model.why_plain:
        return [[plain_token_logps(model, one.prompt, ids) for ids in one.answers] for one in questions]
    unique = [list(dict.fromkeys(map(tuple, question.answers))) for question in questions]
    prefixes = _prefixes(model, questions)
    rows = torch.cat(list(_predicting(model, prefixes, unique)))
    # On the host, where they are checked.
    targets = torch.tensor([token for answers in unique for ids in answers for token in ids])
    counted = [len(ids) for answers in unique for ids in answers]
    logps = iter(model.head.token_logps(rows, targets).split(counted))
    by_ids = [{ids: next(logps) for ids in answers} for answers in unique]
    return [[found[tuple(ids)] for ids in question.answers] for question, found in zip(questions, by_ids, strict=True)]


@torch.inference_mode()
def last_hidden(model: VisionLanguageModel, questions: list[Scored]) -> list[list[Tensor]]:
    """Last hidden state [D] of the last token of each row of ids behind each question's prompt.

    As in score_pass, each prompt is run once, then all rows in one pass, equal ones once. Raises ValueError for a row
    without tokens.
    """
    if not all(all(question.answers) for question in questions):
        raise ValueError("a row without tokens has no last one")
    unique = [list(dict.fromkeys(map(tuple, question.answers))) for question in questions]
    prefixes = _prefixes(model, questions)
    hidden = iter(_run(model, list(zip(prefixes, unique, strict=True))))
    by_ids = [{ids: next(hidden)[-1] for ids in rows} for rows in unique]
    return [[found[tuple(ids)] for ids in question.answers] for question, found in zip(questions, by_ids, strict=True)]


def prompts_together(model: VisionLanguageModel) -> int:
    """How many prompts run in one row of the decoder: several on a GPU, where launches take as long as their work."""
    return 4 if model.device.type == "cuda" and model.packs_prompts else 1


def _prefixes(model: VisionLanguageModel, questions: list[Scored]) -> list[Prefix]:
    """Each prompt is run once, behind a vision tower that may have run several images at a time."""
    prompts, found = iter(model.encoded([question.prompt for question in questions])), []
    while group := list(islice(prompts, prompts_together(model))):
        found += _run_together(model, group)
    return found


def _run_together(model: VisionLanguageModel, prompts: list[Prompt]) -> list[Prefix]:
    if len(prompts) > 1:
        # Where a window, which goes by the place in the row, would hide something, they do not fit.
        with contextlib.suppress(DoesNotFit):
            return run_prefixes(model, prompts, sum(prompt.length for prompt in prompts))
    return [run_prefix(model, prompt) for prompt in prompts]


def _predicting(
    model: VisionLanguageModel, prefixes: list[Prefix], unique: list[list[tuple[int, ...]]]
) -> Iterator[Tensor]:
    """The hidden states that predict the answers' tokens; the prefix's last one predicts each answer's first token."""
    # The last token of an answer is not fed: what it predicts is not scored.
    fed = [[ids[:-1] for ids in answers if len(ids) > 1] for answers in unique]
    asked = [(prefix, answers) for prefix, answers in zip(prefixes, fed, strict=True) if answers]
    hidden = iter(_run(model, asked) if asked else ())
    for prefix, answers in zip(prefixes, unique, strict=True):
        for ids in answers:
            yield prefix.end.hidden_D[None]
            if len(ids) > 1:
                yield next(hidden)


def _run(model: VisionLanguageModel, asked: list[tuple[Prefix, list[tuple[int, ...]]]]) -> list[Tensor]:
    """Last hidden states [T, D] of each row of tokens behind its prefix; many of one question in several calls."""
    run = _run_rows if model.answers_in_rows else _run_packed
    if len(asked) > 1:
        return run(model, asked)
    [(prefix, rows)] = asked
    return [one for some in in_groups(rows, len, MOST_AT_ONCE) for one in run(model, [(prefix, some)])]


def _run_packed(model: VisionLanguageModel, asked: list[tuple[Prefix, list[tuple[int, ...]]]]) -> list[Tensor]:
    """Last hidden states of each answer's tokens, from one row that packs all answers."""
    device = model.device
    behind = [Behind(prefix, tuple(map(len, answers))) for prefix, answers in asked]
    tokens = [token for _, answers in asked for one in answers for token in one]
    starts = [(prefix.end.next_position, len(one)) for prefix, answers in asked for one in answers]
    positions = [start + number for start, length in starts for number in range(length)]
    ids, positions = sent(torch.tensor([tokens, positions]), device)
    layout = AnswersBehindPrefixes(behind, device, model.dtype)
    with attending(layout, model.attention_layers):
        hidden = model.run_answers(ids[None], positions[None], _cache(model, asked[0][0], 0))[0]
    return list(hidden.split([length for question in behind for length in question.lengths]))


def _run_rows(model: VisionLanguageModel, asked: list[tuple[Prefix, list[tuple[int, ...]]]]) -> list[Tensor]:
    """The same of a model whose answers cannot be packed: question by question, a padded row an answer."""
    found = []
    for prefix, answers in asked:
        longest = max(map(len, answers))
        padded = [[*one, *[one[-1]] * (longest - len(one))] for one in answers]
        ids = sent(torch.tensor(padded), model.device)
        positions = (prefix.end.next_position + torch.arange(longest, device=model.device)).expand(len(answers), -1)
        layout = _Rows(Behind(prefix, (longest,) * len(answers)), model)
        with attending(layout, model.attention_layers):
            hidden = model.run_answers(ids, positions, _cache(model, prefix, len(answers)))
        found += [row[: len(one)] for row, one in zip(hidden, answers, strict=True)]
    return found


class _Rows:
    """AnswersBehindPrefixes for answers that are rows of one length."""

    describes_masks = True

    def __init__(self, question: Behind, model: VisionLanguageModel) -> None:
        self._packed = AnswersBehindPrefixes([question], model.device, model.dtype)

    def attend(self, call: LayerCall) -> Tensor:
        rows, _, tokens, _ = call.query.shape
        parts = {name: _one_row(getattr(call, name)) for name in ("query", "key", "value")}
        out = self._packed.attend(replace(call, **parts))
        return out[0].unflatten(1, (rows, tokens)).transpose(0, 1)


def _one_row(rows: Tensor) -> Tensor:
    """[K, H, T, D] -> [1, H, K T, D]"""
    return rows.transpose(0, 1).flatten(1, 2)[None]


def _cache(model: VisionLanguageModel, prefix: Prefix, num_rows: int) -> Cache:
    """What the decoder is handed behind a prefix, with that many copies of its states."""
    states = repeated(prefix.end.cache_layers, num_rows) if num_rows else ()
    return answer_cache(model.cache_layers, states, prefix.crosses)


@torch.inference_mode()
def plain_token_logps(model: VisionLanguageModel, prompt: Prompt, answer: list[int]) -> Tensor:
    """log p of each token of one answer, fp32 nats: one forward of the whole row, full logits, log-softmax."""
    ids = torch.tensor(answer, device=model.device)
    return model.plain_logits(prompt, answer).log_softmax(-1).gather(-1, ids[:, None])[:, 0].cpu()
