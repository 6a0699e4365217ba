"""The measuring of `data-engine bench`: a model, every way of doing its work in turn, and one dictionary of results."""

import contextlib
import logging as python_logging
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers.utils import logging

from data_engine.bench import figures
from data_engine.bench.job import TimedJob
from data_engine.bench.machine import PeakMemory, ceilings, free_bytes, machine, settled, versions
from data_engine.bench.model import Sizes, Subject
from data_engine.bench.shapes import photo_size, write_checkpoint
from data_engine.bench.ways import ALL_WAYS, VLLM_WAYS, WAYS, Ways
from data_engine.errors import LostRankError, UserError
from data_engine.models import family_class
from data_engine.models.base import VisionLanguageModel
from data_engine.models.checkpoints.adapter_folder import model_folder
from data_engine.models.device import pick_device, pick_dtype
from data_engine.models.layers.answer_cache import nbytes
from data_engine.models.memory_errors import is_out_of_memory
from data_engine.sampling.memory import ACTIVATIONS, Needs, budgets, rows_without_pages
from data_engine.sampling.native.backend import uses_kernels
from data_engine.sampling.native.kv_cache import num_slots
from data_engine.sampling.native.scheduler import SamplingEngine

log = python_logging.getLogger(__name__)

NO_ROOM = "memory ran out beside the engine's caches"


@dataclass(frozen=True)
class Options:
    """What is timed where; the flags of `data-engine bench` say the same."""

    model: str | None = None
    """a checkpoint; None times the built-in model of `shape`"""
    shape: str = "small"
    device: str = "cpu"
    dtype: str = "auto"
    rows: int | None = None
    """answers decoded at a time; None as `run` would"""
    questions: int = 100_000
    """size of the dataset that is estimated"""
    compile_layers: bool = False
    """answers run through layers by torch.compile"""
    alone: bool = False
    """stock transformers is not timed"""
    vllm: bool = False
    """vLLM samples and scores too"""
    vllm_if_there: bool = False
    """the same where it is installed and takes the model; else a line says why not"""


def run(sizes: Sizes, options: Options) -> dict:
    """Time every way, round by round in turn; seconds, rates and ratios by way."""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        subject = _subject(sizes, options, Path(scratch))
        peak = _ceilings(subject.engine)
        by_vllm, why_no_vllm = _by_vllm(subject, options)
        if by_vllm:
            stack.enter_context(contextlib.closing(by_vllm))
        found = loop_budgets(subject)
        sampler = _sampling_engine(subject, options.rows, found)
        ways = Ways(subject, sampler, found["score_tokens"])
        job = TimedJob(subject, sampler, Path(scratch), found["score_tokens"])
        timed = {name: ways.by_name.get(name, job.run) for name in WAYS}
        if subject.stock is None:
            timed = {name: way for name, way in timed.items() if name.startswith("engine")}
        if by_vllm:
            calls = (partial(by_vllm.sample, ways.fixed_BK), by_vllm.score, partial(by_vllm.sample, ways.drawn_BK))
            timed |= dict(zip(VLLM_WAYS, calls, strict=True))
        left_out = warm_up(subject, ways)
        timed = {name: way for name, way in timed.items() if name not in left_out}
        measured = measure(timed, sizes.rounds, subject.engine.device)
        result = _result(options, ways, job, measured, peak)
        result["sizes"]["rows"] = sampler.num_rows
        result["vllm"] = by_vllm.version if by_vllm else None
        result["no_vllm"] = why_no_vllm
        result["steady_tokens_a_second"] = ways.refills.rate() if ways.refills else None
        return result


def _subject(sizes: Sizes, options: Options, scratch: Path) -> Subject:
    device = pick_device(options.device)
    folder = scratch / "model"
    if options.model:
        folder = model_folder(options.model)
    else:
        sizes = replace(sizes, photo=photo_size(options.shape))
        write_checkpoint(folder, sizes.vocab, options.shape, str(device), pick_dtype(options.dtype, device))
    return Subject(folder, sizes, str(device), options.dtype, options.compile_layers, options.alone)


def _by_vllm(subject: Subject, options: Options):
    """The ways of vLLM, or None and why not: it was not asked for ("") or, with vllm_if_there, does not work here."""
    if not (options.vllm or options.vllm_if_there):
        return None, ""
    # Imported here: it belongs to no other bench.
    from data_engine.bench.by_vllm import ByVllm

    try:
        return ByVllm(subject), ""
    except (UserError, LostRankError) as problem:
        if options.vllm:
            raise
        return None, f"vLLM was not timed: {problem}"


def _sampling_engine(subject: Subject, asked_rows: int | None, found: Mapping[str, int]) -> SamplingEngine:
    """The sampling engine, with as many rows as asked for or as the budgets say."""
    k, model = subject.sizes.k, subject.engine
    if uses_kernels(model):
        rows, slots = (asked_rows, asked_rows) if asked_rows else (found["decode_rows"], found["decode_slots"])
        return SamplingEngine(model, rows, slots, k, found["decode_pages"])
    if asked_rows:
        return SamplingEngine(model, asked_rows, num_slots(asked_rows, k))
    sizes = found["decode_rows"], found["decode_slots"], found["decode_pages"]
    return SamplingEngine(model, *rows_without_pages(*sizes, k, subject.sizes.most_tokens))


def loop_budgets(subject: Subject) -> dict[str, int]:
    """The budgets that `run` would choose from the memory that is left beside all models of the bench."""
    model, sizes = subject.engine, subject.sizes
    activated = ACTIVATIONS * model.head.weight.shape[1] * model.head.weight.element_size()
    image_states = family_class(model.family).cache_sizes(subject.folder).per_prompt * model.dtype.itemsize
    needs = Needs(weights=0, cached_token=figures.cached_token_bytes(model), activated_token=activated,
                  answer_state=nbytes(model.cache_layers), prompt_state=image_states)  # fmt: skip
    return budgets(free_bytes(model.device, 0.9), needs, model.device.type, sizes.k, sizes.most_tokens)


def _ceilings(model: VisionLanguageModel) -> dict[str, float]:
    """Of the machine, and told: before caches take the memory, and for whoever stops the bench before its table."""
    peak = ceilings(model.device, model.dtype)
    if model.device.type == "cuda":
        # Else what they took would count as in use when the caches are measured out.
        torch.cuda.empty_cache()
    told = f"ceilings: {peak['matmul_flops'] / 1e9:,.0f} GFLOP/s, {peak['read_bytes'] / 1e9:,.0f} GB/s"
    print(told, file=sys.stderr, flush=True)
    return peak


def _result(options: Options, ways: Ways, job: TimedJob, measured: dict[str, dict], peak: dict[str, float]) -> dict:
    subject, sizes = ways.subject, ways.subject.sizes
    device, dtype = subject.engine.device, subject.engine.dtype
    medians = {name: statistics.median(one["seconds"]) for name, one in measured.items()}
    least = figures.least_seconds(subject, peak)
    per_question = job.figures.seconds / sizes.drawn_questions
    bytes_per_question = job.figures.bytes_on_disk / sizes.drawn_questions
    return {
        "sizes": asdict(sizes) | {"prefix_tokens": subject.prefix_tokens},
        "model": str(subject.folder) if options.model else f"random weights, {options.shape}",
        "dtype": str(dtype).removeprefix("torch."),
        "machine": machine(device) | peak,
        "versions": versions(device) | {"transformers": transformers.__version__},
        "no_stock": subject.why_no_stock,
        "largest_difference_nat": ways.largest_difference(),
        "ways": measured,
        "tokens_a_second": {name: one["tokens"] / medians[name] for name, one in measured.items()},
        "questions_a_second": figures.questions_a_second(measured, sizes),
        "share_of_ceiling": {name: seconds / medians[name] for name, seconds in least.items()},
        "engine_is_faster_by": figures.ratios(measured),
        "one_queue_gain": figures.one_queue_gain(measured),
        # On a GPU a call returns before its work is done, so its seconds say nothing.
        "overhead": job.figures.overhead if device.type == "cpu" else None,
        "estimate": figures.estimate(options.questions, per_question, bytes_per_question, device),
    }


def warm_up(subject: Subject, ways: Ways) -> set[str]:
    """Make each kind of call once, since a first call takes longer; the ways of which stock transformers cannot.

    It does not compute several rows of some models, whose processors cut images into pieces; and memory may not suffice
    beside the engine's caches.
    """
    two = torch.full((1, subject.sizes.k), 2)
    questions = range(min(2, subject.sizes.questions))
    ways.sample_by_engine(two)
    ways.score_by_engine()
    left_out: set[str] = set()
    if subject.stock is None:
        return left_out
    ways.score_one_at_a_time_twice(subject.answers_BKL[0][:1])
    for names, call in (
        ({"padded batch"}, ways.score_padded_batch),
        ({name for name in WAYS if name.startswith(("generate", "reference"))}, lambda: ways.generate([0], two)),
        ({"generate, batches", "generate, four, drawn"}, lambda: ways.generate(questions, two.expand(2, -1))),
    ):
        try:
            call()
        # What a model raises where rows and pixels do not match.
        except (RuntimeError, ValueError, MemoryError) as error:
            left_out |= names
            why = NO_ROOM if is_out_of_memory(error) else f"stock transformers cannot compute several rows ({error})"
            log.warning("%s: %s left out", why, ", ".join(sorted(names)))
    return left_out


def measure(timed: dict[str, Callable[[], int]], rounds: int, device: torch.device) -> dict[str, dict]:
    """Seconds by round, tokens and peak memory of each way. Ways take turns, so a slower minute affects all.

    On a GPU, one of the engine's or of vLLM's is made once in full before its first round: captures and compilation
    follow from the rows that meet. One that is not the engine's, and for which the memory does not suffice beside the
    engine's caches, is left out; so are those of a vLLM that has failed.
    """
    found: dict[str, dict] = {name: {"seconds": [], "tokens": 0, "peak_bytes": None} for name in timed}
    peak = PeakMemory(device)
    turns = [name for number in range(rounds) for name in timed if not number or not ALL_WAYS[name].once]
    unmade = set() if device.type == "cpu" else {name for name in timed if name.startswith(("engine", "vllm"))}
    lost: set[str] = set()
    with tqdm(turns, unit="way", desc="bench", dynamic_ncols=True) as bar:
        for name in bar:
            if name in lost:
                continue
            bar.set_postfix_str(name)
            try:
                if name in unmade:
                    unmade.remove(name)
                    timed[name]()
                peak.start()
                start = settled(device)
                found[name]["tokens"] = timed[name]()
            except (RuntimeError, MemoryError, UserError) as error:
                lost |= _left_out(name, error)
                continue
            found[name]["seconds"].append(settled(device) - start)
            # At once, for whoever has to stop it before its table.
            bar.write(f"{name}: {found[name]['tokens'] / found[name]['seconds'][-1]:,.0f} tokens/s", file=sys.stderr)
            # vLLM's memory is that of other processes.
            found[name]["peak_bytes"] = None if name in VLLM_WAYS else peak.read()
    return {name: one for name, one in found.items() if name not in lost}


def _left_out(name: str, error: Exception) -> set[str]:
    """The ways that cannot be timed after this error of one, said in a warning. Raises the error of any other kind."""
    if name in VLLM_WAYS and isinstance(error, (UserError, LostRankError)):
        gone, why = set(VLLM_WAYS), str(error)
    elif name.startswith("engine") or not is_out_of_memory(error):
        raise error
    else:
        gone, why = {name}, NO_ROOM
    log.warning("%s: %s left out", why, ", ".join(sorted(gone)))
    return gone
