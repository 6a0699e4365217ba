"""What is timed: each operation at the shapes of real models, by the kernel, the eager path and the best library calls.

A case holds the ways of doing one piece of work, and an exact result (fp64) of some of its rows to hold them against.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from data_engine.models.base import PromptEnd
from data_engine.models.layers.attention import LayerCall
from data_engine.models.layers.attention_math import causal, has_flash
from data_engine.models.layers.noting import Noted
from data_engine.models.layers.prefix import Prefix
from data_engine.sampling.native.page_allocator import PAGE
from data_engine.scoring.answers_attention import AnswersBehindPrefixes, Behind
from data_engine_kernels import LayerCaches, RowIndex, members_of, reference
from data_engine_kernels.work_list import Launch

# Rows whose result is also computed in fp64.
CHECKED = 16


@dataclass(frozen=True)
class Way:
    """One way of doing a case's work; `work` in FLOP or bytes, the least that this way must do."""

    name: str
    run: Callable[[], Tensor]
    work: int


@dataclass(frozen=True)
class Case:
    name: str
    unit: str
    """TFLOP/s or GB/s: which ceiling it meets."""
    ways: list[Way]
    exact: Tensor


@dataclass(frozen=True)
class Logps:
    """token_logps of N rows of width D over a vocabulary V."""

    name: str
    rows: int
    width: int
    vocabulary: int


@dataclass(frozen=True)
class Decode:
    """grouped_decode_attention: Q questions of k rows each, prefix and suffix tokens, pages that a suffix may have."""

    name: str
    heads: int
    groups: int
    width: int
    questions: int
    k: int
    prefix: int
    suffix: int
    pages: int


@dataclass(frozen=True)
class Scoring:
    """Attention of a scoring pass, a layer: Q questions in a row, each a prefix and k answers."""

    name: str
    heads: int
    groups: int
    width: int
    questions: int
    k: int
    prefix: int
    answer: int


# LLaVA-1.5-7B and Qwen2-7B; one question of ten 120-token answers, and eight.
LOGPS = [
    Logps("LLaVA-1.5-7B", 1200, 4096, 32000),
    Logps("LLaVA-1.5-7B", 9600, 4096, 32000),
    Logps("Qwen2-7B", 1200, 3584, 152064),
    Logps("Qwen2-7B", 9600, 3584, 152064),
]
DECODE = [
    Decode("LLaVA-1.5-7B", 32, 32, 128, 32, 10, 640, 60, 4),
    Decode("LLaVA-1.5-7B", 32, 32, 128, 64, 10, 640, 60, 4),
    Decode("Qwen2-7B", 28, 4, 128, 32, 10, 640, 60, 4),
    Decode("Qwen2-7B", 28, 4, 128, 64, 10, 640, 60, 4),
]
SCORING = [
    Scoring("LLaVA-1.5-7B", 32, 32, 128, 8, 10, 640, 120),
    Scoring("Qwen2-7B", 28, 4, 128, 8, 10, 640, 120),
]
TINY_LOGPS = [Logps("tiny", 24, 64, 500)]
TINY_DECODE = [Decode("tiny", 6, 2, 16, 3, 4, 20, 5, 1)]
TINY_SCORING = [Scoring("tiny", 6, 2, 16, 3, 4, 20, 5)]
# Tried by --sweep: rows x columns x width, warps, stages; and tokens of a part of a prefix and of a suffix, with
# programs a multiprocessor, up to one for each part that there is room for.
SWEEP_TILES = [
    (128, 256, 64, 8, 3),
    (128, 256, 64, 8, 4),
    (128, 128, 64, 8, 4),
    (128, 128, 64, 4, 4),
    (64, 256, 64, 4, 4),
]
SWEEP_LAUNCHES = [
    (640, 512, 8), (640, 512, 10**6), (640, 128, None), (384, 512, None), (256, 128, None), (256, 128, 8),
    (256, 128, 10**6),
]  # fmt: skip


def cases(device: torch.device, tiny: bool, sweep: bool) -> Iterator[Callable[[], Case]]:
    """What makes each, of gigabytes; the kernels only on CUDA. Decode attention, to be tuned, is first."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for shape in TINY_DECODE if tiny else DECODE:
        yield functools.partial(decode_case, shape, device, dtype, sweep)
    for shape in TINY_SCORING if tiny else SCORING:
        yield functools.partial(scoring_case, shape, device, dtype)
    for shape in TINY_LOGPS if tiny else LOGPS:
        yield functools.partial(logps_case, shape, device, dtype, sweep)


def logps_case(shape: Logps, device: torch.device, dtype: torch.dtype, sweep: bool) -> Case:
    hidden = torch.randn(shape.rows, shape.width, device=device).to(dtype)
    # Logits of a standard deviation of 2, as a trained model's.
    weight = (torch.randn(shape.vocabulary, shape.width, device=device) * 2 / shape.width**0.5).to(dtype)
    targets = torch.randint(0, shape.vocabulary, (shape.rows,), device=device)
    # As the engine gives them: of those on a device the check of their range would wait for all work before it.
    on_host = targets.cpu()
    logits = hidden[:CHECKED].double() @ weight.double().T
    exact = logits.log_softmax(-1).gather(-1, targets[:CHECKED, None])[:, 0]

    def library() -> Tensor:
        return -F.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")

    runs = {
        "eager": lambda: reference.token_logps(hidden, weight, on_host),
        "mm, cross_entropy": library,
    }
    if device.type == "cuda":
        from data_engine_kernels import logps_triton

        # Anew for each case: from its second shape on it would be compiled for any.
        torch._dynamo.reset()
        runs["mm, cross_entropy, compiled"] = torch.compile(library)
        runs["kernel"] = lambda: logps_triton.token_logps(hidden, weight, on_host)
        for sizes in SWEEP_TILES if sweep else ():
            tiles = logps_triton.Tiles(*sizes)
            runs[f"kernel {sizes}"] = lambda tiles=tiles: logps_triton.token_logps(hidden, weight, on_host, tiles)
    flop = 2 * shape.rows * shape.width * shape.vocabulary
    ways = [Way(name, run, flop) for name, run in runs.items()]
    name = f"token_logps, {shape.name}: {shape.rows} rows x {shape.width}, vocabulary {shape.vocabulary}"
    return Case(name, "TFLOP/s", ways, exact)


def decode_case(shape: Decode, device: torch.device, dtype: torch.dtype, sweep: bool) -> Case:
    rows, scale = shape.questions * shape.k, shape.width**-0.5

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, shape.width, device=device, dtype=dtype)

    query = randn(rows, shape.heads)
    # Pages of a row and of a prefix lie anywhere.
    prefix_pages = -(-shape.prefix // PAGE)
    order = torch.randperm(rows * shape.pages + shape.questions * prefix_pages, device=device)
    pool = (len(order), shape.groups, PAGE)
    caches = LayerCaches(randn(*pool), randn(*pool))
    pages = order[: rows * shape.pages].view(rows, -1), order[rows * shape.pages :].view(shape.questions, -1)
    # Rows of a question lie apart, as they do once rows have been refilled.
    slots = torch.arange(rows, device=device) % shape.questions
    suffix_lengths = torch.full((rows,), shape.suffix, dtype=torch.int32, device=device)
    prefix_lengths = torch.full((shape.questions,), shape.prefix, dtype=torch.int32, device=device)
    index = RowIndex(slots, suffix_lengths, prefix_lengths, members_of(slots, shape.questions, shape.k), *pages)

    def in_order(pool: Tensor, lines: Tensor, length: int) -> Tensor:
        return pool[lines].transpose(1, 2).flatten(2, 3)[:, :, :length]

    copied = [
        torch.cat([in_order(pool, pages[1][slots], shape.prefix), in_order(pool, pages[0], shape.suffix)], 2)
        for pool in (caches.keys, caches.values)
    ]

    def library() -> Tensor:
        grouped = shape.heads != shape.groups
        return F.scaled_dot_product_attention(query[:, :, None], *copied, scale=scale, enable_gqa=grouped)[:, :, 0]

    def token_bytes(tokens: int) -> int:
        """Keys and values of that many tokens, and the queries in and out."""
        return (2 * tokens * shape.groups + 2 * rows * shape.heads) * shape.width * query.element_size()

    shared = token_bytes(shape.questions * shape.prefix + rows * shape.suffix)
    ways = [
        Way("eager", lambda: reference.grouped_decode_attention(query, caches, index, scale), shared),
        Way("sdpa, prefix copied", library, token_bytes(rows * (shape.prefix + shape.suffix))),
    ]
    if device.type == "cuda":
        from data_engine_kernels.attention_triton import grouped_decode_attention

        ways.append(Way("kernel", lambda: grouped_decode_attention(query, caches, index, scale), shared))
        for launch in (Launch(*sizes) for sizes in SWEEP_LAUNCHES if sweep):
            run = lambda launch=launch: grouped_decode_attention(query, caches, index, scale, launch=launch)  # noqa: E731
            ways.append(Way(f"kernel, {launch}", run, shared))
    name = (
        f"grouped_decode_attention, {shape.name}: {shape.heads}/{shape.groups} heads x {shape.width}, "
        f"{shape.questions} questions x {shape.k}, {shape.prefix} + {shape.suffix} tokens"
    )
    return Case(name, "GB/s", ways, exact_decode(query, copied, scale))


def exact_decode(query: Tensor, copied: list[Tensor], scale: float) -> Tensor:
    keys, values = (part[:CHECKED].double() for part in copied)
    grouped = query[:CHECKED].double().unflatten(1, (keys.shape[1], -1))
    weights = (grouped @ keys.transpose(2, 3) * scale).softmax(-1)
    return (weights @ values).flatten(1, 2)


def two_passes(shape: Scoring, parts: tuple[Tensor, ...], dtype: torch.dtype) -> Callable[[], Tensor]:
    """The engine's way in a model of that dtype: each prompt on its own, then all answers; gives those of the answers.

    `parts`: queries, keys and values [1, H or G, T, D] of [question 1 | its answers | question 2 | ...].
    """
    device, scale = parts[0].device, shape.width**-0.5
    each = [part.unflatten(2, (shape.questions, -1)) for part in parts]
    prompts = [[part[:, :, number, : shape.prefix] for part in each] for number in range(shape.questions)]
    answers = [part[:, :, :, shape.prefix :].flatten(2, 3).contiguous() for part in each]
    end = PromptEnd(torch.zeros(1, device=device), shape.prefix, ())
    behind = [
        Behind(Prefix(shape.prefix, {0: Noted(key[0], value[0])}, end), (shape.answer,) * shape.k)
        for _, key, value in prompts
    ]
    layout = AnswersBehindPrefixes(behind, device, dtype)
    call = LayerCall(nn.Identity(), 0, *answers, None, scale, {})

    def run() -> Tensor:
        for prompt in prompts:
            causal(*prompt, scale)
        return layout.attend(call)

    return run


def scoring_case(shape: Scoring, device: torch.device, dtype: torch.dtype) -> Case:
    """The engine's ways against one block-sparse call of one pass; the last tokens are checked."""
    one, scale = shape.prefix + shape.k * shape.answer, shape.width**-0.5
    size = shape.questions * one
    query, key, value = (
        torch.randn(1, heads, size, shape.width, device=device, dtype=dtype)
        for heads in (shape.heads, shape.groups, shape.groups)
    )
    place = torch.arange(size, device=device)
    question, behind = place // one, place % one - shape.prefix
    # 0 is the prefix.
    answer = torch.where(behind < 0, 0, behind // shape.answer + 1)

    def sees(_batch, _head, asking: Tensor, asked: Tensor) -> Tensor:
        own = (answer[asked] == 0) | (answer[asked] == answer[asking])
        return (question[asked] == question[asking]) & own & (asked <= asking)

    # A model that is not in half precision takes no flash attention, whatever the tensors.
    runs = {"prefix causal, answers behind": two_passes(shape, (query, key, value), torch.float32)}
    if has_flash(device, dtype, shape.width):
        runs["flash, in two calls"] = two_passes(shape, (query, key, value), dtype)
    mask, grouped = create_block_mask(sees, None, None, size, size, device=device), shape.heads != shape.groups
    torch._dynamo.reset()
    flex = torch.compile(flex_attention) if device.type == "cuda" else flex_attention
    runs["flex_attention"] = lambda: flex(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)
    seen = shape.prefix * (shape.prefix + 1) // 2
    seen += shape.k * (shape.answer * shape.prefix + shape.answer * (shape.answer + 1) // 2)
    flop = 4 * shape.questions * seen * shape.heads * shape.width
    ways = [Way(name, lambda run=run: run()[0].transpose(0, 1)[-CHECKED:], flop) for name, run in runs.items()]
    last = query[0, :, -CHECKED:].double().unflatten(0, (shape.groups, -1))
    keys, values = (part[0, :, None].double() for part in (key, value))
    masked = ~sees(None, None, place[-CHECKED:, None], place[None])
    weights = (last @ keys.transpose(2, 3) * scale).masked_fill(masked, -torch.inf).softmax(-1)
    name = (
        f"scoring attention, {shape.name}: {shape.heads}/{shape.groups} heads x {shape.width}, {shape.questions} "
        f"questions of {shape.prefix} + {shape.k} x {shape.answer} tokens"
    )
    return Case(name, "TFLOP/s", ways, (weights @ values).flatten(0, 1).transpose(0, 1))
