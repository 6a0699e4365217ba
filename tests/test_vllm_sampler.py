"""--sampler vllm without vLLM: what it is given, what becomes of its answers, and what is refused before any work."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import vllm_stand_in
from run_files import read

from data_engine import load_model
from data_engine.commands import engines, validate
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job import worker
from data_engine.models import family_class
from data_engine.models.llava import LlavaPrompts, square
from data_engine.models.prompt_maker import TokenPrompt
from data_engine.models.registry import ModelError
from data_engine.processes import ranks
from data_engine.questions.conversation import Conversation
from data_engine.sampling import vllm as back_end
from data_engine.store import units

K, LENGTH = 3, 6
NUM_QUESTIONS = 6


def tiny():
    """The checkpoints that the tests of the real vLLM use."""
    path = Path(__file__).parent / "by_vllm" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny_for_vllm", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory, one_thread):
    parent = tmp_path_factory.mktemp("models")
    made = tiny()
    return {"instruct": made.llava(parent / "instruct", 0), "reward": made.llava(parent / "reward", 1),
            "qwen": made.qwen(parent / "qwen")}  # fmt: skip


@pytest.fixture(scope="module")
def model(folders):
    return load_model(None, str(folders["instruct"]), device="cpu", dtype="float32")


@pytest.fixture
def vllm(monkeypatch, model):
    state = vllm_stand_in.install(monkeypatch)
    state.model = model
    return state


@pytest.fixture
def settings(folders, goldens, tmp_path, monkeypatch):
    """Settings of a run by vLLM; signals stay pytest's."""
    monkeypatch.setattr(worker.Stop, "listen", lambda stop: stop)

    def make(**changes: object) -> RunConfig:
        paths = {f"{role}_model_path": folders[role] for role in ("instruct", "reward")}
        paths |= {"dataset_path": goldens / "llava/dataset/questions.parquet", "work_dir": tmp_path / "work"}
        common = {"sampler": "vllm", "sample_k": K, "rank": 2, "distance": 1000, "max_new_tokens": LENGTH, "threads": 1,
                  "unit_size": 2, "limit": NUM_QUESTIONS, "dtype": "float32"}  # fmt: skip
        return RunConfig(**{name: str(path) for name, path in paths.items()} | common | changes)

    return make


def refusal(config) -> str:
    with pytest.raises(UserError) as caught:
        worker.run(config() if callable(config) else config)
    return str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"lookahead": True}, {"same_pixels": True}])
def test_every_answer_is_published_once_with_its_ids_and_its_end(settings, vllm, tmp_path, model, capsys, changes):
    assert worker.run(settings(**changes)) == 0
    answers = read(tmp_path / "work/sampled_answer")
    assert Counter(row["idx"] for row in answers) == dict.fromkeys((row["idx"] for row in answers), K)
    assert len(answers) == NUM_QUESTIONS * K
    [end] = model.eos_token_ids
    for row in answers:
        assert row["finish_reason"] == ("stop" if row["token_ids"][-1] == end else "length")
        assert row["answer"] == model.text(row["token_ids"])
    scored = read(tmp_path / "work/instruct_logps")
    assert [(row["idx"], row["sample_index"]) for row in scored] == [
        (row["idx"], row["sample_index"]) for row in answers
    ]
    facts, _ = units.read_unit_facts(tmp_path / "work", "sampled_answer", 0)
    assert facts["drawn"]["by"] == "vllm"
    if changes.get("same_pixels"):
        ours = [row["sum"] for row in scored[: 2 * K]]
        assert facts["drawn"]["logps"] == pytest.approx(ours, abs=1e-4)
    assert "vllm's log-probs of drawn tokens differ by" in capsys.readouterr().err
    run_file = json.loads((tmp_path / "work/run.json").read_text())
    assert run_file["sampler"]["version"] == "0.32.0"
    assert run_file["sampler"]["same_bytes"] is False
    # The engine is gone before a model is loaded.
    assert [engine.closed for engine in vllm.engines] == [True]


def test_a_question_has_a_seed_of_its_own_and_no_setting_of_the_checkpoint_enters(settings, vllm, model):
    worker.run(settings(stop_after_stage=0, top_k=5, top_p=0.9, temperature=0.5))
    [engine] = vllm.engines
    drawing = [params for _, params in engine.given]
    assert len({params.seed for params in drawing}) == NUM_QUESTIONS
    assert all(0 <= params.seed < 2**63 - K for params in drawing)
    for params in drawing:
        assert (params.n, params.temperature, params.top_k, params.top_p) == (K, 0.5, 5, 0.9)
        assert (params.max_tokens, params.ignore_eos, params.stop_token_ids) == (
            LENGTH,
            True,
            list(model.eos_token_ids),
        )
        assert params.logit_bias == {4: back_end.NEVER}
    args = engine.args
    assert (args.generation_config, args.mm_processor_kwargs, args.mm_device_do_normalize) == (
        "vllm", {"use_fast": False}, False,
    )  # fmt: skip


def test_where_seeds_are_refused_answers_are_drawn_without_and_the_unit_says_so(settings, vllm, tmp_path, capsys):
    vllm.takes_seeds = False
    assert worker.run(settings(stop_after_stage=0)) == 0
    assert "takes no seed for each question" in capsys.readouterr().err
    assert units.read_unit_facts(tmp_path / "work", "sampled_answer", 1)[0]["drawn"]["seeded"] is False
    assert len(read(tmp_path / "work/sampled_answer")) == NUM_QUESTIONS * K


def test_a_run_goes_on_where_it_was(settings, vllm, tmp_path):
    assert worker.run(settings(stop_after_stage=0)) == 0
    path = units.unit_path(tmp_path / "work", "sampled_answer", 1)
    kept = units.unit_path(tmp_path / "work", "sampled_answer", 0).read_bytes()
    path.unlink()
    assert worker.run(settings()) == 0
    assert [len(engine.given) for engine in vllm.engines] == [NUM_QUESTIONS, 2]
    assert units.unit_path(tmp_path / "work", "sampled_answer", 0).read_bytes() == kept
    # All is sampled: no engine starts.
    assert worker.run(settings()) == 0
    assert len(vllm.engines) == 2


PLANTED = {
    "template": lambda made, ids: TokenPrompt([one for one in made.ids if one not in ids], made.images,
                                              [one for one in made.expanded if one not in ids]),
    "picture": lambda made, ids: TokenPrompt(made.ids, [image.rotate(90) for image in made.images], made.expanded),
}  # fmt: skip


@pytest.mark.parametrize("same_pixels", [True, False])
@pytest.mark.parametrize("planted", PLANTED)
def test_another_prompt_or_picture_shows_in_the_log_probs(settings, vllm, monkeypatch, planted, same_pixels):
    honest, letters = LlavaPrompts.prompt, set(range(60, 130))
    monkeypatch.setattr(LlavaPrompts, "prompt", lambda *a: PLANTED[planted](honest(*a), letters))
    said = refusal(settings(same_pixels=same_pixels))
    assert said.startswith("vLLM drew these answers from another distribution than they are scored by: ")
    assert "more than 0.05 allows for rounding in float32" in said


def test_an_expansion_that_is_not_the_familys_is_refused_at_once(settings, vllm, tmp_path, monkeypatch):
    honest = LlavaPrompts.prompt

    def other(*asked):
        made = honest(*asked)
        return TokenPrompt(made.ids, made.images, [*made.expanded, 7])

    monkeypatch.setattr(LlavaPrompts, "prompt", other)
    assert "vLLM makes another prompt than the engine, which scores answers" in refusal(settings())
    assert not units.published(tmp_path / "work", "sampled_answer")


def test_the_sampler_and_what_shapes_its_answers_are_bound(settings, vllm):
    args = {"tensor_parallel_size": 1, "max_model_len": 512}
    assert worker.run(settings(stop_after_stage=0, vllm_args=json.dumps(args))) == 0
    assert "sampler was vllm, now native" in refusal(settings(sampler="native"))
    assert "vllm_args was '{\"max_model_len\": 512}', now None" in refusal(settings())
    faster = {"max_model_len": 512, "max_num_seqs": 2}
    assert worker.run(settings(stop_after_stage=0, vllm_args=json.dumps(faster))) == 0
    assert len(vllm.engines) == 1


def test_a_run_of_the_engine_s_own_sampler_does_not_become_vllms(settings, vllm):
    assert worker.run(settings(sampler="native", stop_after_stage=0)) == 0
    assert "sampler was native, now vllm" in refusal(settings())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "0.9.2"}, "vLLM 0.9.2 is installed, and sampler vllm needs 0.32 or newer"),
        ({"architectures": ("Qwen2ForCausalLM",)}, "of the architecture LlavaForConditionalGeneration, which vLLM"),
        ({"device_type": "cuda"}, "the run is on cpu, and the vLLM here computes on cuda"),
        ({"starts": False}, "vLLM 0.32.0 does not start (Engine core initialization failed"),
    ],
)
def test_a_vllm_that_cannot_do_it_is_refused(settings, vllm, changes, says):
    for name, value in changes.items():
        setattr(vllm, name, value)
    sys.modules["vllm"].__version__ = vllm.version
    assert says in refusal(settings())


def test_without_vllm_the_extra_is_named_by_validate_too(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    says = "sampler vllm needs vLLM, which is not installed: pip install 'vlm-data-engine[vllm]'"
    assert refusal(settings()) == says
    with pytest.raises(UserError, match="needs vLLM, which is not installed"):
        validate.check(settings())
    # What is sampled already needs none.
    assert "continue_from_stage 1 needs all units" in _incomplete(settings(continue_from_stage=1))


def _incomplete(config: RunConfig) -> str:
    with pytest.raises(Exception, match="continue_from_stage 1 needs all units") as caught:
        worker.run(config)
    return str(caught.value)


def test_families_that_vllm_does_not_know_are_refused_by_name(settings, vllm, goldens):
    assert "is an OmniLMM, which vLLM does not know" in refusal(
        settings(
            instruct_model_path=str(goldens / "omnilmm/instruct"), reward_model_path=str(goldens / "omnilmm/reward")
        )
    )
    assert "is a LLaVA in its original layout, which vLLM does not know" in refusal(
        settings(instruct_model_path=str(goldens / "llava/instruct"), reward_model_path=str(goldens / "llava/reward"))
    )
    with pytest.raises(ModelError, match=r"llava-hf/llava-1\.5-7b-hf"):
        family_class("llava").prompt_maker(goldens / "llava/instruct")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vllm_args": "tensor"}, "vllm_args must be a JSON object like"),
        ({"vllm_args": "[1]"}, "vllm_args must be a JSON object like"),
        ({"vllm_args": '{"seed": 1}'}, "vllm_args has seed, which it cannot set: --seed does; take it out"),
        (
            {"vllm_args": '{"tensor_parallel_size": 0}'},
            "tensor_parallel_size must be a whole number, at least 1, got 0",
        ),
        ({"sampler": "native", "vllm_args": "{}"}, "vllm_args is for --sampler vllm"),
        ({"repetition_penalty": 1.2}, "repetition_penalty must be 1 with sampler vllm, got 1.2"),
        ({"answers": "x.parquet"}, "sampler vllm draws answers, and --answers brings them"),
        ({"zero3": "on"}, "zero3 is on: models that are split take all ranks"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(settings, changes, says):
    assert says in refusal(lambda: settings(**changes))


def test_an_argument_that_vllm_does_not_know_is_named(settings, vllm):
    assert "vllm_args has sizes, which vLLM 0.32.0 does not know" in refusal(settings(vllm_args='{"sizes": 1}'))


@pytest.mark.parametrize(
    ("args", "more", "gpus", "wanted"),
    [
        ({}, [], 8, 8),
        ({"tensor_parallel_size": 4}, [], 8, 2),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, [], 6, 1),
        ({"tensor_parallel_size": 4}, ["--continue_from_stage", "1"], 8, 8),
    ],
)
def test_a_machine_runs_as_many_engines_as_its_gpus_hold(args, more, gpus, wanted):
    flags = ["--instruct_model_path", "a", "--reward_model_path", "b", "--dataset_path", "c", "--work_dir", "d"]
    flags += ["--sampler", "vllm", "--vllm_args", json.dumps(args), *more]
    assert engines.num_ranks(gpus, flags) == wanted


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [({"tensor_parallel_size": 4}, 0, "2 ranks"), ({"tensor_parallel_size": 16}, 2, "engines of 16 GPUs")],
)
def test_the_launch_script_starts_as_many_ranks_as_there_are_engines(tmp_path, args, code, told):
    """On a machine that is said to have 8 GPUs; what would start the ranks says how many."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$1" in\n-c) echo 8 ;;\n-m) exec {sys.executable} "$@" ;;\n'
        '*) echo "$NUM_PROCESSES ranks" ;;\nesac\n'
    )
    python.chmod(0o755)
    flags = "--instruct_model_path a --reward_model_path b --dataset_path c --work_dir d --sampler vllm --vllm_args"
    kept = {name: value for name, value in os.environ.items() if name not in ("NUM_PROCESSES", "ACCELERATE_CONFIG")}
    script = Path(__file__).parents[1] / "launch/run_engine.sh"
    done = subprocess.run(
        [script, *flags.split(), json.dumps(args)], env=kept | {"PYTHON": str(python)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert told in done.stdout + done.stderr


def test_an_engine_larger_than_the_machine_is_refused(monkeypatch):
    flags = ["--instruct_model_path", "a", "--reward_model_path", "b", "--dataset_path", "c", "--work_dir", "d"]
    with pytest.raises(UserError, match=r"asks for engines of 16 GPUs .* and this machine has 8"):
        engines.num_ranks(8, [*flags, "--sampler", "vllm", "--vllm_args", '{"tensor_parallel_size": 16}'])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    with pytest.raises(UserError, match=r"4 engines of 4 GPUs were asked for .* and torch sees 8"):
        ranks.Ranks(0, 4, 0, 4).with_gpus(4)


def test_each_rank_sees_its_own_group_of_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    second = ranks.Ranks(1, 2, 1, 2).with_gpus(2)
    assert ranks.os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert second.device("auto") == "cuda:0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    ranks.Ranks(1, 2, 1, 2).with_gpus(2)
    assert ranks.os.environ["CUDA_VISIBLE_DEVICES"] == "6,7"


def test_another_librarys_processes_see_nothing_of_the_launcher(monkeypatch):
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "TORCHELASTIC_USE_AGENT_STORE": "True", "OTHER": "x"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with ranks.unlaunched(OTHER="y", NEW="z"):
        inside = {name: ranks.os.environ.get(name) for name in (*told, "NEW")}
    assert inside == dict.fromkeys(told) | {"OTHER": "y", "NEW": "z"}
    assert {name: ranks.os.environ.get(name) for name in (*told, "NEW")} == told | {"NEW": None}


def test_the_pictures_of_llava_are_cut_before_any_processor_sees_them(folders, golden_images):
    maker = family_class("llava").prompt_maker(folders["instruct"])
    for image in golden_images:
        for crop in (True, False):
            made = maker.prompt(Conversation.of("Why?"), [image], crop, 64)
            [shown] = made.images
            assert shown.size == (56, 56)
            assert np.array_equal(np.asarray(shown), np.asarray(square(image, 56, crop, 64)))
            assert made.expanded.count(4) == 16
            assert made.ids.count(4) == 1


@pytest.mark.parametrize("name", ["instruct", "qwen"])
def test_a_template_is_written_with_its_pictures_not_yet_expanded(folders, goldens, name):
    """The processor's ids, each picture's many tokens made one again."""
    image = pq.read_table(goldens / "llava/dataset/questions.parquet")["image"][0].as_py()["bytes"]
    from data_engine.questions.images import decode

    pictures = [decode(image, 64), decode(image, 64).resize((140, 84))]
    maker = family_class("auto").prompt_maker(folders[name])
    token = {"instruct": 4, "qwen": 6 + 2}[name]
    for number in (0, 1, 2):
        conversation = Conversation.of("What is on <b>it</b>?", number, system="Be brief.")
        made = maker.prompt(conversation, pictures[:number], True, 64)
        assert made.ids.count(token) in (number, 0)
        media = set(maker.banned_token_ids)
        kept = [one for at, one in enumerate(made.expanded) if one not in media or made.expanded[at - 1] != one]
        assert made.ids == kept
