"""The benchmark does the work that it times, and its figures are what they are called."""

import io
import json
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from data_engine.bench import figures, job, measure
from data_engine.bench import model as bench_model
from data_engine.bench import ways as bench_ways
from data_engine.bench.model import QUESTION, Sizes, Subject, drawn_lengths, photo, spelled_out, usual_ids
from data_engine.bench.shapes import llava_config, photo_size, write_checkpoint
from data_engine.bench.table import table
from data_engine.bench.ways import WAYS, ForcedLengths, Ways
from data_engine.commands import bench, main
from data_engine.errors import UserError
from data_engine.models.auto.config import load_config
from data_engine.models.auto.text.chat import Chat
from data_engine.models.layers.layer_kind import LayerKind
from data_engine.models.native.embedded import IMAGE_TOKEN, SplicedPrompt
from data_engine.questions.conversation import Conversation
from data_engine.sampling.native.scheduler import SamplingEngine

SMALL = Sizes(k=2, questions=2, drawn_questions=3, answer_tokens=5, new_tokens=3, most_tokens=6, rounds=2)


def options(**changes: object) -> measure.Options:
    return measure.Options(**{"rows": 4, "questions": 1000} | changes)


def test_drawn_lengths_have_the_mean_and_tail_that_are_said():
    lengths = drawn_lengths(400, 10, 10_000)
    assert lengths.mean() == pytest.approx(120, rel=0.01)
    assert np.quantile(lengths, 0.95) == pytest.approx(260, rel=0.01)
    assert drawn_lengths(12, 10, 512).max() <= 512
    assert drawn_lengths(12, 10, 512).mean() == pytest.approx(119, abs=1.5)


def test_the_shape_of_7b_has_its_parameters():
    """7.06 billion: LLaVA-1.5-7B with all of its tower, 24 layers, where the engine loads 23."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(llava_config("llava-1.5-7b", 32064))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(7.06, abs=0.01)


@pytest.mark.slow
def test_a_built_in_model_is_written_without_a_word_on_standard_output(tmp_path):
    """Where the bench's own output stands. In a process of its own: DeepSpeed logs as it is imported."""
    code = "import sys, pathlib; from data_engine.bench.shapes import write_checkpoint as write; " \
           "write(pathlib.Path(sys.argv[1]), 500)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "model"], capture_output=True, check=True)
    assert done.stdout == b""
    assert (tmp_path / "model/model.safetensors").is_file()


def test_generate_is_held_to_the_lengths_by_its_logits():
    """Rows are to end after 1 and 3 tokens behind a prompt of 4; EOS is token 2."""
    forced = ForcedLengths(torch.tensor([1, 3]), 4, eos=2)
    scores = torch.zeros(2, 5)
    first = forced(torch.zeros(2, 4), scores.clone())
    assert first[0].isfinite().tolist() == [False, False, True, False, False]
    assert first[1].isfinite().tolist() == [True, True, False, True, True]
    last = forced(torch.zeros(2, 6), scores.clone())
    assert last[1].isfinite().tolist() == [False, False, True, False, False]


def test_generate_draws_no_token_that_stands_for_an_image():
    """Of five tokens, 2 is EOS and 3 stands for an image."""
    forced = ForcedLengths(torch.tensor([1, 3]), 4, eos=2, never=(3,))
    first = forced(torch.zeros(2, 4), torch.zeros(2, 5))
    assert first[0].isfinite().tolist() == [False, False, True, False, False]
    assert first[1].isfinite().tolist() == [True, True, False, False, True]


def test_a_ratio_is_the_median_over_rounds_of_what_a_round_shows():
    """The engine scores 10 tokens, the batch 5: 2 x 4 / 1, 2 x 6 / 2, 2 x 40 / 2 in the rounds."""
    measured = {
        "engine, scoring": {"seconds": [1.0, 2.0, 2.0], "tokens": 10},
        "padded batch": {"seconds": [4.0, 6.0, 40.0], "tokens": 5},
    }
    assert figures.ratios(measured) == {"padded batch": 8.0}


def test_the_gain_of_one_queue_by_hand():
    """6 / 4, 8 / 4 and 5 / 5 in the rounds."""
    measured = {
        "engine, two units": {"seconds": [6.0, 8.0, 5.0]},
        "engine, drawn lengths": {"seconds": [4.0, 4.0, 5.0]},
    }
    assert figures.one_queue_gain(measured) == 1.5


def test_the_estimate_by_hand():
    """A million questions at 3.6 s are 1,000 hours; at 2 kB they are 2 GB."""
    told = figures.estimate(1_000_000, 3.6, 2000, torch.device("cuda"))
    assert told == {"questions": 1_000_000, "hours": 1000, "gpu_hours": 1000, "disk_bytes": 2_000_000_000}


def test_a_cached_token_is_what_its_layers_keep():
    """Of three layers one keeps 2 x (16 + 8) numbers, one uses those, and one looks at its image alone."""
    kinds = [LayerKind(2, 16, 8), LayerKind(2, 16, 8, same_as=0), LayerKind(2, 16, 8, cross=True)]
    half = SimpleNamespace(weight=torch.zeros(5, 3, dtype=torch.bfloat16))
    assert figures.cached_token_bytes(SimpleNamespace(layers=kinds, head=half)) == 48 * 2


def test_answers_are_made_of_ids_that_neither_end_them_nor_stand_for_an_image():
    """Of 74 ids, the last 64 and the first 3 are left out; of 3 to 9, 4 ends an answer and 7 is an image's."""
    head = SimpleNamespace(weight=torch.zeros(80, 3))
    told = SimpleNamespace(eos_token_ids=(4,), banned_token_ids=(7, 70), num_ids=74, head=head)
    assert usual_ids(told).tolist() == [3, 5, 6, 8, 9]


def test_a_prompt_of_a_native_family_is_spelled_out_for_transformers():
    """Three tokens for the image, whose id there is 99."""
    asked = spelled_out(SplicedPrompt([1, 5, IMAGE_TOKEN, 6], torch.zeros(3, 2, 2), 3), 99)
    assert asked["input_ids"].tolist() == [[1, 5, 99, 99, 99, 6]]
    assert asked["attention_mask"].tolist() == [[1] * 6]
    assert asked["pixel_values"].shape == (1, 3, 2, 2)


def test_the_qwen_shape_has_a_picture_of_576_tokens(tmp_path):
    """48 x 48 patches, four of them a token; 8 layers x 512, 8 query heads and 2 of keys and values, M-RoPE."""
    write_checkpoint(tmp_path, 400, "qwen2.5-vl")
    picture = Image.open(io.BytesIO(photo(0, photo_size("qwen2.5-vl"))))
    inputs = Chat.load(tmp_path).inputs(Conversation.of(QUESTION), [picture])
    config = load_config(tmp_path)
    text = config.get_text_config()
    assert int((inputs["input_ids"] == config.image_token_id).sum()) == 576
    assert inputs["image_grid_thw"].tolist() == [[1, 48, 48]]
    assert (text.num_hidden_layers, text.hidden_size, text.vocab_size) == (8, 512, 400)
    assert (text.num_attention_heads, text.num_key_value_heads) == (8, 2)
    assert text.rope_parameters["mrope_section"] == [8, 12, 12]


@pytest.mark.slow
def test_engine_and_transformers_agree_on_the_qwen_shape(tmp_path, one_thread):
    """A token is kept as 2 x 8 layers x 2 heads x 64 numbers of 4 bytes."""
    sizes = replace(SMALL, questions=1, drawn_questions=1, photo=photo_size("qwen2.5-vl"))
    write_checkpoint(tmp_path, 4064, "qwen2.5-vl")
    subject = Subject(tmp_path, sizes, "cpu", "auto")
    assert Ways(subject, SamplingEngine(subject.engine, 4, 4)).largest_difference() < 1e-4
    assert 576 < subject.prefix_tokens < 700
    assert figures.cached_token_bytes(subject.engine) == 2 * 8 * 2 * 64 * 4


@pytest.mark.slow
def test_each_way_counts_the_tokens_it_was_given_and_makes_as_many(tmp_path, one_thread, narrow_bench, monkeypatch):
    write_checkpoint(tmp_path, 4064)
    subject = Subject(tmp_path, SMALL, "cpu", "auto")
    ways = Ways(subject, SamplingEngine(subject.engine, 4, 4))
    drawn, typical = subject.lengths_BK, subject.typical
    counted = {name: way() for name, way in ways.by_name.items()}
    assert counted == {
        "engine, scoring": 2 * 5,
        "one at a time, twice": 2 * 5,
        "padded batch": 2 * 5,
        "engine, sampling": 2 * 2 * 3,
        "generate, one question": 2 * 3,
        "generate, batches": 2 * 2 * 3,
        "engine, drawn lengths": drawn.sum(),
        "engine, two units": drawn.sum(),
        "generate, one, drawn": drawn[typical].sum(),
        "generate, four, drawn": drawn.sum(),
        "reference, whole job": drawn[typical].sum(),
    }
    ways.subject.answers_BKL = ways.subject.answers_BKL.expand(3, -1, -1)
    passes, score_pass = [], bench_ways.score_pass
    monkeypatch.setattr(
        bench_ways, "score_pass", lambda model, asked: passes.append(len(asked)) or score_pass(model, asked)
    )
    # An answer's last token is not fed.
    ways.tokens_a_pass = 2 * (subject.prefix_tokens + 2 * 4) + 1
    assert ways.score_by_engine() == 3 * 2 * 5
    assert passes == [2, 1]
    out = ways._generate([typical], torch.from_numpy(drawn))
    assert [row.tolist().index(2) + 1 for row in out] == drawn[typical].tolist()


@pytest.fixture(scope="module")
def result(one_thread) -> dict:
    return measure.run(SMALL, options())


@pytest.mark.long
@pytest.mark.slow
def test_every_way_is_timed_in_every_round_but_those_that_one_is_enough_for(result):
    assert set(result["ways"]) == set(WAYS)
    for name, one in result["ways"].items():
        assert len(one["seconds"]) == (1 if WAYS[name].once else 2)
        assert min(one["seconds"]) > 0
        assert one["peak_bytes"] is None or one["peak_bytes"] > 1e8


@pytest.mark.long
@pytest.mark.slow
def test_engine_and_transformers_agree_on_the_model_that_is_timed(result):
    assert result["largest_difference_nat"] < 1e-4
    assert 576 < result["sizes"]["prefix_tokens"] < 700


@pytest.mark.slow
def test_the_least_time_by_hand(tmp_path, one_thread):
    """8 layers of 4 x 512^2 + 3 x 512 x 1376 weights and 2 norms, one last norm, a head of 4064 x 512; 4 bytes each.

    Scored: 1 question, 2 answers of 5 tokens, of which 4 are fed. Sampled: 2 questions of 2 answers, 2 steps behind the
    prompt; a token's keys and values are 2 x 8 x 512 numbers.
    """
    write_checkpoint(tmp_path, 4064)
    subject = Subject(tmp_path, SMALL, "cpu", "auto")
    weights, head, prefix = 8 * (4 * 512**2 + 3 * 512 * 1376 + 2 * 512) + 512, 4064 * 512, subject.prefix_tokens
    found = figures.least_seconds(subject, {"matmul_flops": 1e9, "read_bytes": 1e6})
    assert found["engine, scoring"] == pytest.approx(2 * (weights * (prefix + 8) + head * 10) / 1e9)
    read = 4 * (weights + head) + 2 * prefix * 2 * 8 * 512 * 4 + 4 * 1 * 2 * 8 * 512 * 4
    assert found["engine, sampling"] == pytest.approx(2 * 2 * weights * prefix / 1e9 + 2 * read / 1e6)


@pytest.mark.long
@pytest.mark.slow
def test_a_job_has_overhead_and_leaves_files(result):
    assert all(share > 0 for share in result["share_of_ceiling"].values())
    assert 0 < result["overhead"] < 1
    assert result["estimate"]["hours"] > 0
    assert result["estimate"]["disk_bytes"] > 0


@pytest.mark.slow
def test_every_function_that_counts_as_a_model_call_is_called_by_the_job(
    tmp_path, one_thread, narrow_bench, monkeypatch
):
    write_checkpoint(tmp_path, 4064)
    subject = Subject(tmp_path, SMALL, "cpu", "auto")
    whole = job.TimedJob(subject, SamplingEngine(subject.engine, 4, 4), tmp_path, 1000)
    whole.run()
    assert 0 < whole.figures.overhead < 1
    # A function that exists under this name, and that nobody calls.
    monkeypatch.setattr(job, "MODEL_CALLS", (*job.MODEL_CALLS, (statistics, "fmean")))
    with pytest.raises(RuntimeError, match=r"has not called statistics\.fmean"):
        whole.run()
    monkeypatch.setattr(job, "MODEL_CALLS", ((statistics, "no_such_name"),))
    with pytest.raises(AttributeError, match="no_such_name"):
        whole.run()


def test_time_in_a_call_within_a_call_counts_once(monkeypatch):
    """The clock goes on by 1 at each look: the outer call takes 1, since nobody looks in it, and the one alone 1."""
    clock = iter(range(100))
    monkeypatch.setattr(job.time, "perf_counter", lambda: next(clock))

    class Parts:
        @staticmethod
        def outer() -> None:
            Parts.inner()

        @staticmethod
        def inner() -> None:
            pass

    before = Parts.outer, Parts.inner
    with job.model_calls(((Parts, "outer"), (Parts, "inner"))) as spent:
        Parts.outer()
        Parts.inner()
    assert spent == {(Parts, "outer"): 1, (Parts, "inner"): 1}
    assert (Parts.outer, Parts.inner) == before


@pytest.mark.long
@pytest.mark.slow
def test_the_table_names_every_way_and_the_json_holds_the_same(result, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "run", lambda sizes, options: result)
    assert bench.main(["--quick", "--output", str(tmp_path / "new" / "bench.json")]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in WAYS)
    assert "1000 questions at this pace" in shown
    assert json.loads((tmp_path / "new" / "bench.json").read_text()) == json.loads(json.dumps(result))


def test_a_model_that_does_not_fit_the_memory_ends_the_bench_with_what_to_do(narrow_bench, monkeypatch, capsys):
    def load(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench_model, "load_model", load)
    assert main.main(["bench", "--tiny", "--alone"]) == 2
    told = capsys.readouterr().err
    assert "memory ran out while the model was loaded (CUDA out of memory); end what else holds memory on cpu" in told


@pytest.mark.slow
def test_a_checkpoint_that_transformers_cannot_load_is_timed_alone(goldens, one_thread):
    result = measure.run(SMALL, options(model=str(goldens / "omnilmm/instruct")))
    assert set(result["ways"]) == {name for name in WAYS if name.startswith("engine")}
    assert "transformers cannot load this layout (omnilmm)" in table(result)


@pytest.mark.parametrize("name", ["rows", "rounds", "vocab", "questions", "drawn_questions", "threads"])
@pytest.mark.parametrize("value", ["0", "-1", "2.5"])
def test_a_number_of_which_there_must_be_one_is_refused_before_anything_is_measured(name, value, monkeypatch, capsys):
    monkeypatch.setattr(measure, "run", lambda *_: pytest.fail("it was measured"))
    assert main.main(["bench", f"--{name}={value}"]) == 2
    assert f'argument --{name}: must be a whole number, at least 1, got "{value}"' in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [([], 48), (["--quick"], 2), (["--tiny", "--drawn_questions", "7"], 7)])
def test_the_questions_of_drawn_lengths_are_those_asked_for(given, expected, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(measure, "run", lambda sizes, options: asked.append(sizes.drawn_questions))
    monkeypatch.setattr(bench, "table", str)
    assert bench.main(given) == 0
    assert asked == [expected]


def test_a_place_where_no_result_can_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "run", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(UserError, match=r'^--output ".*" cannot be written: Is a directory$'):
        bench.main(["--output", str(tmp_path)])


def test_a_place_that_is_looked_at_is_left_as_it_was(tmp_path):
    bench._make_place(tmp_path / "new/result.json")
    (tmp_path / "old.json").write_text("{}")
    bench._make_place(tmp_path / "old.json")
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "{}"


@pytest.mark.slow
def test_alone_stock_transformers_is_not_even_loaded_and_each_figure_is_told_at_once(narrow_bench, monkeypatch, capsys):
    monkeypatch.setattr(bench_model, "load_stock", lambda *_: pytest.fail("it was loaded"))
    result = measure.run(replace(SMALL, rounds=1), options(alone=True))
    names = [name for name in WAYS if name.startswith("engine")]
    assert list(result["ways"]) == names
    assert (result["largest_difference_nat"], result["engine_is_faster_by"]) == (None, {})
    told = capsys.readouterr().err
    assert all(re.search(rf"{name}: [\d,]+ tokens/s", told) for name in names)
    assert "GFLOP/s" in told.partition("tokens/s")[0]
