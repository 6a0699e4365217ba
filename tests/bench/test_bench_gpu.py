"""`make bench-gpu` names all that a Python lacks before it runs anything, and needs no environment of its own."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import inner_make
import pytest
import torch
from fake_runner import FakeRunner, asked
from transformers import AutoModelForImageTextToText

from data_engine import load_model
from data_engine.bench import measure, shapes
from data_engine.bench.model import Sizes, drawn_lengths
from data_engine.bench.shapes import QWEN_7B, photo_size, qwen_config
from data_engine.bench.steady import Refills
from data_engine.bench.table import steady_told
from data_engine.bench.ways import WAYS, sampling_params
from data_engine.models.tokenizer import load_tokenizer
from data_engine.preferences import word_count
from data_engine.questions.conversation import Conversation
from data_engine.sampling.native.scheduler import Scheduler, sample
from data_engine.sampling.requests import PromptRequest, Queue
from data_engine.seeds import seed_for

ROOT = Path(__file__).parents[2]


def made(*arguments: str, targets: tuple[str, ...] = ("bench-gpu",)) -> subprocess.CompletedProcess:
    command = ["make", *targets, "VENV=", *arguments]
    return subprocess.run(command, cwd=ROOT, env=inner_make.environment(), capture_output=True, text=True, check=False)


def python_without(tmp_path: Path, *hidden: str) -> Path:
    """A Python that does not find these packages."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys\nfrom importlib.machinery import PathFinder\nclass Without(PathFinder):\n"
        "    @classmethod\n    def find_spec(cls, name, path=None, target=None):\n"
        f"        return None if name.partition('.')[0] in {hidden!r} else super().find_spec(name, path, target)\n"
        "sys.meta_path[:] = [Without if one is PathFinder else one for one in sys.meta_path]\n"
    )
    program = tmp_path / "bare-python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={site}:$PYTHONPATH exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return program


def test_all_packages_that_are_missing_are_named_in_one_line_and_nothing_is_run(tmp_path):
    done = made(f"PYTHON={python_without(tmp_path, 'pyarrow', 'accelerate', 'datasets')}")
    assert done.returncode == 2
    [told] = [line for line in done.stderr.splitlines() if line.startswith("bench-gpu:")]
    assert told.endswith("lacks: accelerate pyarrow (pip install accelerate pyarrow)")
    assert "-m pytest" not in done.stdout


def python_that_fails(tmp_path: Path, at: str) -> tuple[Path, Path]:
    """A program that fails where it is given that argument, and the file in which it notes what it is given."""
    log, program = tmp_path / "log", tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *{at}*) exit 1; esac\n')
    program.chmod(0o755)
    return program, log


def test_a_part_that_fails_costs_the_others_nothing_and_fails_the_whole(tmp_path):
    program, log = python_that_fails(tmp_path, "bench/run.py")
    assert made(f"PYTHON={program}", "ARGS=--rounds 1").returncode == 2
    called = log.read_text().splitlines()
    assert called[:2] == ["kernels/bench/needs.py", "kernels/bench/run.py --sweep"]
    assert sum(line.startswith("-m data_engine bench --device cuda") for line in called) == 4
    assert all(line.endswith("--rounds 1") for line in called if "data_engine bench" in line)
    assert called[-1] == "-m pytest -q -rs -m gpu tests/gpu"
    assert "kernels/bench/layers.py" in called


def test_nor_does_one_of_some_parts_that_are_named(tmp_path):
    program, log = python_that_fails(tmp_path, "tests/gpu")
    assert made(f"PYTHON={program}", targets=("gpu-tests", "gpu-layers", "gpu-engine")).returncode == 2
    tests, layers, engine = log.read_text().splitlines()
    assert tests == "-m pytest -q -rs -m gpu tests/gpu"
    assert layers == "kernels/bench/layers.py"
    assert engine.startswith("-m data_engine bench --device cuda --shape llava-1.5-7b")


@pytest.mark.long
@pytest.mark.slow
def test_every_part_runs_dry_without_what_only_a_run_needs(tmp_path):
    hidden = ("datasets", "nltk", "matplotlib", "deepspeed", "trl", "vllm")
    done = made(f"PYTHON={python_without(tmp_path, *hidden)}", "DRY_RUN=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/gpu/test_graphs.py" in done.stdout
    assert "without the kernels: these figures say nothing about a GPU" in done.stdout
    assert "vLLM was not timed: sampler vllm needs vLLM, which is not installed" in done.stdout
    assert "engine, whole job" in done.stdout


def test_the_steady_rate_by_hand():
    """Filled at 0 s with 4; a step; refilled at 2 s with 1; steps of 4 and 3 tokens; refilled at 6 s; then the tail.

    From 2 to 6 s: 1 + 4 + 3 tokens in 4 s.
    """
    calls = [(0.0, 4, True), (1.0, 4, False), (2.0, 1, True), (3.0, 4, False), (5.0, 3, False), (6.0, 1, True)]
    assert Refills([*calls, (9.0, 1, False)]).rate() == 2.0
    assert Refills(calls[:4]).rate() is None
    assert Refills().rate() is None


class Timed(FakeRunner):
    """LLaVA-1.5-7B on an H100 by its clock: a prompt, and a step by the weights and the tokens that it reads."""

    def __init__(self) -> None:
        super().__init__(245, 245, 512, 691)
        self.now_s, self.refills = 0.0, Refills()

    def prefill_all(self, waiting) -> None:
        self.now_s += 0.014 * len(waiting)

    def first(self, places, *rest):
        self.refills.calls.append((self.now_s, len(places), True))
        return super().first(places, *rest)

    def next(self, rows):
        self.refills.calls.append((self.now_s, sum(row.drawn < row.end() for row in rows), False))
        read = sum(row.drawn for row in rows) + 616 * len({row.slot for row in rows})
        self.now_s += 0.008 + read * 184e-9
        return super().next(rows)


@pytest.mark.slow
def test_the_steady_rate_takes_a_long_queue():
    """Of 48 questions, 25 prompts are run before it begins, and few answers hold their prompts yet."""

    def rate(questions: int) -> float:
        runner = Timed()
        requests = asked(drawn_lengths(questions, 10, 512), 616)
        assert len(list(Scheduler(runner, Queue(requests), 1, pauses=False).run())) == 10 * questions
        return runner.refills.rate()

    longest = rate(400)
    assert rate(196) == pytest.approx(longest, rel=0.02)
    assert rate(48) > 1.1 * longest


def test_on_a_gpu_a_steady_rate_of_a_queue_that_is_too_short_is_told_to_be_too_high():
    """515 rows, as an H200 has for LLaVA-1.5-7B, hold the answers to 51.5 questions at once; eight times as many."""

    def told(questions: int, on_gpu: bool = True) -> str:
        return steady_told(9000.4, 7000, {"rows": 515, "k": 10, "drawn_questions": questions}, on_gpu)

    rate = "drawn lengths: 9000 tokens/s between the first and the last refill of a row, 7000 with the beginning and "
    rate += "the tail"
    assert told(411) == f"{rate}; that of a long run is lower, and takes 412 questions with 515 rows"
    assert told(412) == told(98, on_gpu=False) == rate


def test_every_way_draws_by_the_same_values_so_that_none_makes_caches_anew():
    assert sampling_params(Sizes(new_tokens=64, most_tokens=512)).max_new_tokens == 512
    assert sampling_params(Sizes(new_tokens=64, most_tokens=8)).max_new_tokens == 64


def test_a_way_for_which_memory_runs_out_is_left_out_unless_it_is_the_engines():
    def full() -> int:
        raise torch.OutOfMemoryError

    found = measure.measure({"engine, scoring": lambda: 7, "padded batch": full}, 2, torch.device("cpu"))
    assert found.keys() == {"engine, scoring"}
    assert found["engine, scoring"]["tokens"] == 7
    with pytest.raises(torch.OutOfMemoryError):
        measure.measure({"engine, scoring": full}, 1, torch.device("cpu"))


def test_on_a_gpu_a_way_is_made_once_and_told_before_the_next_can_fail(capsys):
    """Its first call captures and compiles. `meta` is in the place of a GPU."""
    calls = []

    def way(name: str, tokens: int):
        return lambda: calls.append(name) or tokens

    def broken() -> int:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    timed = {"engine, scoring": way("ours", 7), "padded batch": way("stock", 9)}
    measure.measure(timed, 2, torch.device("meta"))
    assert calls == ["ours", "ours", "stock", "ours", "stock"]
    capsys.readouterr()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure.measure(timed | {"engine, whole job": broken}, 1, torch.device("meta"))
    told = capsys.readouterr().err
    assert "engine, scoring: " in told
    assert "padded batch: " in told


def test_memory_that_runs_out_by_another_name_or_before_the_clock_starts_leaves_a_way_out_too(caplog):
    def full(*_) -> int:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    def broken(*_) -> int:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    found = measure.measure({"engine, scoring": lambda: 7, "padded batch": full}, 1, torch.device("cpu"))
    assert found.keys() == {"engine, scoring"}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure.measure({"padded batch": broken}, 1, torch.device("cpu"))
    subject = SimpleNamespace(sizes=Sizes(), stock=object(), answers_BKL=torch.zeros(1, 2, 3))
    ways = SimpleNamespace(generate=full, score_padded_batch=lambda: 0, sample_by_engine=lambda lengths: 0,
                           score_by_engine=lambda: 0, score_one_at_a_time_twice=lambda answers: 0)  # fmt: skip
    names = {name for name in WAYS if name.startswith(("generate", "reference"))}
    assert len(names) == 5
    assert measure.warm_up(subject, ways) == names
    assert all(measure.NO_ROOM in record.getMessage() for record in caplog.records)


@pytest.mark.slow
def test_no_timed_call_makes_a_runner(one_thread, narrow_bench, monkeypatch):
    made_at = []
    init = measure.SamplingEngine._runner_for

    def runner_for(engine, rows, params):
        before = engine._runner
        after = init(engine, rows, params)
        made_at.append(before is not after)
        return after

    monkeypatch.setattr(measure.SamplingEngine, "_runner_for", runner_for)
    sizes = Sizes(k=2, questions=2, drawn_questions=3, answer_tokens=5, new_tokens=3, most_tokens=6, rounds=2)
    result = measure.run(sizes, measure.Options(rows=2))
    # The first call warms up; of the many behind it, none makes caches.
    assert made_at[0]
    assert len(made_at) > 5
    assert not any(made_at[1:])
    assert result["steady_tokens_a_second"] > 0


@pytest.fixture
def without_nltk(monkeypatch) -> None:
    """needs.py does not ask for it."""
    monkeypatch.setattr(word_count, "_tokenizers", None)
    monkeypatch.setattr(word_count, "_pieces", type(word_count._pieces)())


@pytest.mark.usefixtures("without_nltk")
def test_no_answer_of_a_built_in_llava_takes_nltk_to_count_its_words(tmp_path):
    """Whichever ids are drawn."""
    shapes._write_words(tmp_path, 4064)
    tokenizer = load_tokenizer(tmp_path)
    # All but <unk>, <s>, </s>, and that of the image.
    assert word_count.count_words(tokenizer.decode(list(range(4064)))) == 4060


@pytest.mark.usefixtures("without_nltk", "one_thread")
def test_nor_one_of_a_built_in_qwen_which_draws_words_and_no_bytes(tmp_path):
    shapes.write_checkpoint(tmp_path, 4064, shapes.QWEN)
    model = load_model(None, str(tmp_path), device="cpu", dtype="float32")
    prompt = model.prompt_without_images(Conversation.of("What is it?"))
    params = sampling_params(Sizes(most_tokens=40, new_tokens=40))
    asked = [PromptRequest(prompt, [seed_for(0, number) for number in range(20)], [40] * 20)]
    answers = sample(model, asked, params, num_rows=20)
    # Of 800 tokens, 50 would be bytes, were each id as likely.
    assert min(min(answer.token_ids) for answer in answers) >= 256
    assert all(word_count.count_words(model.text(answer.token_ids)) == 1 for answer in answers)


def test_the_larger_qwen_shape_has_the_published_size(tmp_path):
    """8.29 billion weights: Qwen2.5-VL-7B's; a picture of the bench is 576 tokens, as for the smaller one."""
    tokens = shapes._write_qwen_processor(tmp_path, 400)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(qwen_config(152064, tokens, QWEN_7B))
    assert sum(one.numel() for one in model.parameters()) / 1e9 == pytest.approx(8.29, abs=0.01)
    assert photo_size(QWEN_7B) == (672, 672)
