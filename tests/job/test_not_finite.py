"""A model whose weights give NaN or infinity for one question: it is set aside, and nobody else notices."""

import pytest
from PIL import Image
from prompts import EmbeddedPrompt, prefix
from run_files import noise, png, read, write

from data_engine import sample_answers
from data_engine.job import model_holder, worker
from data_engine.models import load_model
from data_engine.pipeline import score
from data_engine.sampling.draw import SamplingParams
from data_engine.sampling.native import scheduler
from data_engine.sampling.native.kv_cache import num_slots
from data_engine.sampling.native.scheduler import SamplingEngine
from data_engine.sampling.requests import BROKEN, PromptRequest
from data_engine.seeds import seed_for
from data_engine.store import units

STAGES = ("sampled_answer", "instruct_logps", "reward_logps")
PARAMS = SamplingParams(temperature=1.0, top_k=20, max_new_tokens=24)


@pytest.fixture
def dataset(tmp_path):
    """Four questions, of which the third has a white image."""
    photos = [noise((60, 60), spread) for spread in (20, 40, 60)]
    photos.insert(2, Image.new("RGB", (60, 60), "white"))
    return write(tmp_path / "questions.parquet", [(f"q{i}", "What is it?", png(p)) for i, p in enumerate(photos)])


def breaks_on_white(model, value: float) -> None:
    """Its vision encoder gives `value` for a white image."""
    encode = model.encode_images

    def call(pixels_BCHW):
        features = encode(pixels_BCHW)
        # The one image without any contrast.
        contrast = pixels_BCHW.amax((2, 3)) - pixels_BCHW.amin((2, 3))
        return features * value if contrast.max() < 1e-3 else features

    model.encode_images = call


def run_with(monkeypatch, config, role: str, value: float) -> None:
    """A run in which the model of a role is broken."""

    def load(name, path, **settings):
        model = load_model(name, path, **settings)
        if path.endswith(role):
            breaks_on_white(model, value)
        return model

    monkeypatch.setattr(model_holder, "load_model", load)
    assert worker.run(config) == 0


@pytest.mark.parametrize(
    ("role", "stage", "value"),
    [
        ("instruct", "sampled_answer", float("nan")),
        pytest.param("reward", "reward_logps", float("nan"), marks=pytest.mark.slow),
        pytest.param("reward", "reward_logps", float("inf"), marks=pytest.mark.slow),
    ],
)
def test_a_question_with_numbers_that_are_none_is_quarantined(
    config, dataset, tmp_path, monkeypatch, role, stage, value
):
    assert worker.run(config(dataset, work_dir=str(tmp_path / "sound"))) == 0
    run_with(monkeypatch, config(dataset), role, value)
    [row] = list(units.left_out(tmp_path / "work"))
    assert (row["idx"], row["stage"]) == ("q2", stage)
    assert "not finite (NaN or infinite): answer 0" in row["reason"]
    for number, name in enumerate(STAGES):
        sound = [row for row in read(tmp_path / "sound" / name) if row["idx"] != "q2" or number < STAGES.index(stage)]
        found = read(tmp_path / "work" / name)
        key = "token_ids" if name == "sampled_answer" else "token_logps"
        assert [(row["idx"], row["sample_index"]) for row in found] == [
            (row["idx"], row["sample_index"]) for row in sound
        ]
        assert [row[key] for row in found] == [pytest.approx(row[key], abs=1e-5) for row in sound]
    assert {row["idx"] for row in read(tmp_path / "work/pairs")} <= {"q0", "q1", "q3"}


def test_a_question_that_breaks_in_the_first_pass_is_not_what_the_self_check_looks_at(config, tmp_path, monkeypatch):
    photos = [Image.new("RGB", (60, 60), "white"), noise((60, 60), 40)]
    dataset = write(tmp_path / "questions.parquet", [(f"q{i}", "What is it?", png(p)) for i, p in enumerate(photos)])
    checked = []
    original = score.self_check
    monkeypatch.setattr(score, "self_check", lambda *a: checked.append(float(original(*a))) or checked[-1])
    run_with(monkeypatch, config(dataset), "reward", float("nan"))
    assert len(checked) == 2
    assert all(difference < 1e-4 for difference in checked)


def test_the_public_function_names_the_token(goldens, one_thread):
    model = load_model(None, str(goldens / "llava/instruct"), device="cpu")
    breaks_on_white(model, float("nan"))
    with pytest.raises(ArithmeticError, match=r"not finite \(NaN or infinite\): answer 0, token 0"):
        sample_answers(model, Image.new("RGB", (60, 60), "white"), "What is it?", max_new_tokens=4)


@pytest.mark.parametrize(
    ("lag", "fused", "slots"), [pytest.param(0, None, 5, marks=pytest.mark.slow), (1, None, 2), (1, 10, 5)]
)
def test_a_row_that_breaks_late_leaves_nothing_behind_in_its_place(
    instruct, golden_rows, golden_images, monkeypatch, lag, fused, slots
):
    """Row 2 breaks when it feeds its 4th token; its place, full of NaN, is taken over by shorter and longer rows."""
    asked = []
    for number in range(8):
        pixels = instruct.pixels(golden_images[number], False, 64)
        shared = prefix(instruct, pixels, golden_rows[4 * number]["question"])
        asked.append(PromptRequest(EmbeddedPrompt(shared), [seed_for(0, number, i) for i in range(10)]))
    expected = SamplingEngine(instruct, 16, num_slots(16, 10)).sample(asked, PARAMS)
    steps = []
    advance = scheduler.ModelRunner.advance

    def breaking(self, which, layout):
        steps.append(None)
        embed = self.model.embed_tokens

        def call(token_ids_T):
            embeds = embed(token_ids_T).clone()
            if len(steps) in (4, 5):
                embeds[2] = float("nan")
            return embeds

        monkeypatch.setattr(self.model, "embed_tokens", call)
        try:
            return advance(self, which, layout)
        finally:
            monkeypatch.setattr(self.model, "embed_tokens", embed)

    monkeypatch.setattr(scheduler.ModelRunner, "advance", breaking)
    decoder = SamplingEngine(instruct, 16, slots, fused)
    decoder.lag = lag
    found = decoder.sample(asked, PARAMS)
    broken = [answer for answer in found if answer.finish_reason == BROKEN]
    assert len(broken) in (1, 2)
    assert broken[0].token_ids == expected[[(a.request, a.sample_index) for a in expected].index(
        (broken[0].request, broken[0].sample_index)
    )].token_ids[: len(broken[0].token_ids)]  # fmt: skip
    others = [answer for answer in found if answer not in broken]
    places = {(answer.request, answer.sample_index) for answer in broken}
    assert others == [answer for answer in expected if (answer.request, answer.sample_index) not in places]
