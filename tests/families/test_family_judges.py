"""Judges of each family against stock transformers: yes or no by the full softmax, reward models by hidden states."""

import judges
import product
import pyarrow as pa
import pytest
import torch
from asked import ASKED
from families import FAMILIES, named
from reference import Stock
from run_files import png

from data_engine import load_model, schemas
from data_engine.errors import BadRow
from data_engine.pipeline.judge import JudgeScores, Scalar, YesNo
from data_engine.questions.conversation import Conversation, Message
from data_engine.questions.dataset import Question
from data_engine.rewards.yesno import YesNoTemplate

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

TOLERANCE = 1e-4
# The first and the last are equal, and one is the beginning of another.
ANSWERS = ["A dog.", "A dog and a cat, on a table.", "No", "A dog and", "A dog."]
TEMPLATE = YesNoTemplate("Q: {question} A: {answer} Right?")
FAST = ["llava", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_5", "gemma3", "mllama"]


def question(name: str, *turns: Message) -> Question:
    """That of ASKED about its pictures, or the turns about them."""
    asked = ASKED[name]
    pictures = tuple(map(png, asked.images()))
    conversation = Conversation(turns) if turns else Conversation.of("What is it?", len(pictures))
    return Question("q", conversation.question, None, None, conversation=conversation, images=pictures)


def sampled(answers: list[str], idx: str = "q") -> pa.Table:
    rows = [
        {"idx": idx, "sample_index": number, "answer": answer, "token_ids": [1], "finish_reason": "stop"}
        for number, answer in enumerate(answers)
    ]
    return pa.Table.from_pylist(rows, schemas.sampled_answer(pa.string()))


def scores(model, reading, asked: Question) -> torch.Tensor:
    return torch.tensor(judges.scores(model, reading, asked, sampled(ANSWERS), check=True))


def messages(asked: Question, images: list, *more: tuple[str, str]) -> list[dict]:
    """In transformers' format."""

    def part(of: str | int) -> dict:
        return {"type": "text", "text": of} if isinstance(of, str) else {"type": "image", "image": images[of]}

    turns = [(one.role, [*map(part, one.content)]) for one in asked.conversation.messages]
    turns += [(role, [{"type": "text", "text": text}]) for role, text in more]
    return [{"role": role, "content": content} for role, content in turns]


@torch.no_grad()
def stock_end(stock: Stock, turns: list[dict], asks: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden state and log-softmax behind the last token of a whole prompt."""
    given = stock.processor.apply_chat_template(
        turns, add_generation_prompt=asks, tokenize=True, return_dict=True, return_tensors="pt"
    )
    given = {name: value for name, value in given.items() if name != "labels"}
    out = stock.model(**given, output_hidden_states=True)
    # InstructBLIP's are those of its text model.
    states = getattr(out, "language_model_outputs", out).hidden_states
    return states[-1][0, -1], out.logits[0, -1].log_softmax(-1)


def yesno_by_softmax(stock: Stock, ids: dict[str, int], turns: list[dict]) -> float:
    """log p(yes) - log p(no) from all probabilities."""
    _, logps = stock_end(stock, turns, asks=True)
    yes, no = (sum(logps[ids[piece]].exp() for piece in group) for group in (("Yes", "ĠYes"), ("No", "no", "Ġno")))
    return (yes.log() - no.log()).item()


@pytest.fixture(scope="module")
def judge_of(checkpoints, tmp_path_factory):
    """Name -> the folder of a judge of that family, made when it is first asked for."""
    made, parent = {}, tmp_path_factory.mktemp("judges")

    def get(name: str):
        if name not in made:
            made[name] = judges.saying_yes(checkpoints(name).folder, parent / name)
        return made[name]

    return get


def stock_of(folder) -> Stock:
    from data_engine.models.auto.config import load_config
    from data_engine.models.auto.text.processor import load_processor

    processor = load_processor(folder, load_config(folder))
    # Some processors leave the template to their tokenizer.
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    return Stock(folder, processor)


@pytest.mark.parametrize("name", named(["paligemma", "instructblip", "qwen4_exp", *FAST]))
def test_yes_or_no_is_that_of_the_full_softmax_behind_each_whole_prompt(judge_of, name):
    folder, asked = judge_of(name), question("wide")
    model, stock, images = product.load(folder), stock_of(folder), ASKED["wide"].images()
    expected = []
    for answer in ANSWERS:
        turns = messages(asked, images)
        turns[0]["content"][-1]["text"] = f"Q: What is it? A: {answer} Right?"
        expected.append(yesno_by_softmax(stock, judges.ids_of(folder), turns))
    found = scores(model, YesNo(model, TEMPLATE), asked)
    torch.testing.assert_close(found, torch.tensor(expected), atol=TOLERANCE, rtol=0)
    # Answers are told apart: the judge reads them.
    assert len(set(expected)) == len(set(ANSWERS))


@pytest.mark.parametrize("name", named(["paligemma", "qwen2_5_vl", "internvl", "llava"]))
@pytest.mark.parametrize("plain", [False, True])
def test_each_of_several_aspects_is_that_of_the_full_softmax_behind_its_own_whole_prompt(judge_of, name, plain):
    folder, asked = judge_of(name), question("wide")
    model, stock, images = product.load(folder), stock_of(folder), ASKED["wide"].images()
    if plain:
        model.why_plain, model.is_settled = "it was told so", True
    endings = {"score_right": "Right?", "score_kind": "Is it kind to the one who asks?", "score_short": "Short?"}
    readings = {column: YesNo(model, YesNoTemplate(f"Q: {{question}} A: {{answer}} {asks}"))
                for column, asks in endings.items()}  # fmt: skip
    scored = judges.judged(model, readings, asked, sampled(ANSWERS), check=True).scored
    found = torch.stack([scores for _, scores in scored])
    for number, asks in enumerate(endings.values()):
        expected = []
        for answer in ANSWERS:
            turns = messages(asked, images)
            turns[0]["content"][-1]["text"] = f"Q: What is it? A: {answer} {asks}"
            expected.append(yesno_by_softmax(stock, judges.ids_of(folder), turns))
        torch.testing.assert_close(found[:, number], torch.tensor(expected), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", named(["qwen2_5_vl", "internvl"]))
def test_a_judge_on_the_plain_path_says_the_same(judge_of, name):
    fast, slow = (product.load(judge_of(name)) for _ in range(2))
    slow.why_plain, slow.is_settled = "it was told so", True
    one, other = (scores(model, YesNo(model, TEMPLATE), question("wide")) for model in (fast, slow))
    torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


def test_the_beginning_is_run_once_for_all_answers(judge_of):
    model, calls = product.load(judge_of("qwen2_5_vl")), []
    reading = YesNo(model, TEMPLATE)
    assert not JudgeScores(model, {"score": reading}, 64).whole
    with model.vision.register_forward_pre_hook(lambda *_: calls.append(1)):
        judges.judged(model, {"score": reading}, question("wide"), sampled(ANSWERS))
    assert len(calls) == 1


def test_earlier_turns_stay_pictures_come_before_the_text_and_a_system_text_goes(judge_of):
    folder = judge_of("qwen2_5_vl")
    model, stock, images = product.load(folder), stock_of(folder), ASKED["two images"].images()
    turns = (
        Message("system", ("Be short.",)), Message("user", (0, "A dog?")), Message("assistant", ("Yes.",)),
        Message("user", ("And ", 1, " here?")),
    )  # fmt: skip
    asked = question("two images", *turns)
    expected = []
    for answer in ANSWERS:
        written = messages(asked, images)[1:]
        text = {"type": "text", "text": f"Q: And  here? A: {answer} Right?"}
        written[-1]["content"] = [{"type": "image", "image": images[1]}, text]
        expected.append(yesno_by_softmax(stock, judges.ids_of(folder), written))
    found = scores(model, YesNo(model, TEMPLATE), asked)
    torch.testing.assert_close(found, torch.tensor(expected), atol=TOLERANCE, rtol=0)


def test_memory_that_runs_out_halves_the_answers_and_changes_no_score(judge_of, monkeypatch):
    from data_engine.pipeline import judge

    model = product.load(judge_of("qwen2_5_vl"))
    reading, last_hidden = YesNo(model, TEMPLATE), judge.last_hidden
    expected = scores(model, reading, question("wide"))

    def small(model, asked):
        if len(asked[0].answers) > 2:
            raise torch.OutOfMemoryError("no room")
        return last_hidden(model, asked)

    monkeypatch.setattr(judge, "last_hidden", small)
    unit = judges.judged(model, {"score": reading}, question("wide"), sampled(ANSWERS))
    # 5 answers -> 2 and 3 -> 1 and 2
    assert unit.retries == 2
    torch.testing.assert_close(torch.cat([scores for _, scores in unit.scored]), expected, atol=1e-5, rtol=0)


def test_an_answer_that_is_too_long_leaves_its_question_out(judge_of):
    model = product.load(judge_of("qwen2_5_vl"))
    unit = judges.judged(model, {"score": YesNo(model, TEMPLATE)}, question("wide"), sampled(["why " * 2000]))
    [(_, reason)] = unit.quarantined
    assert reason.startswith("too long to score: prompt of ")


@pytest.mark.parametrize("name", named(["paligemma", "instructblip", "qwen4_exp", *FAST]))
def test_a_value_head_reads_the_last_token_of_the_rendered_conversation(checkpoints, tmp_path, name):
    """Without an output layer, as a sequence classifier is saved; the stock model's hidden states know no head."""
    checkpoint, asked, images = checkpoints(name), question("wide"), ASKED["wide"].images()
    head = judges.head(width=64)
    tied = checkpoint.built.config.get_text_config().tie_word_embeddings
    folder = judges.with_tensors(checkpoint.folder, tmp_path / "scalar", head, () if tied else ("lm_head.weight",))
    model = load_model("auto", str(folder), device=product.DEVICE, dtype="float32", headed=True)
    expected = []
    for answer in ANSWERS:
        hidden, _ = stock_end(checkpoint.stock, messages(asked, images, ("assistant", answer)), asks=False)
        expected.append((head["v_head.summary.weight"][0] @ hidden + 0.25).item())
    found = scores(model, Scalar(model), asked)
    torch.testing.assert_close(found, torch.tensor(expected), atol=TOLERANCE, rtol=1e-5)
    assert len(set(expected)) == len(set(ANSWERS))


@pytest.mark.parametrize("name", named(["qwen2_5_vl", "gemma3"]))
def test_a_reward_model_on_the_plain_path_gives_the_same(checkpoints, tmp_path, name):
    folder = judges.with_tensors(checkpoints(name).folder, tmp_path / "scalar", judges.head(64))
    fast, slow = (load_model("auto", str(folder), device=product.DEVICE, dtype="float32", headed=True) for _ in "ab")
    slow.why_plain, slow.is_settled = "it was told so", True
    one, other = (scores(model, Scalar(model), question("wide")) for model in (fast, slow))
    torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


@pytest.mark.families
def test_a_model_whose_layers_look_at_an_image_cannot_be_asked_without_one(checkpoints):
    model = checkpoints("mllama").model
    with pytest.raises(BadRow, match="layers of their own, and cannot run without one"):
        model.prompt_without_images(Conversation.of("What is it?"))
    alone = Conversation.of("What is it?", 0)
    with pytest.raises(BadRow, match="layers of their own, and the row has none"):
        model.prompt(alone, [], True, 64)
    # Answers of a pass go through the layers together, those of questions with an image too.
    with pytest.raises(BadRow, match="layers of their own, and the row has none"):
        model.shared_prompt([alone.answered("a tree"), alone.answered("a house")], [], 64)


class Counted:
    """An image processor, and how often it was asked for pixels."""

    def __init__(self, processor) -> None:
        self._processor, self.calls = processor, 0

    def __getattr__(self, name: str):
        return getattr(self._processor, name)

    def __call__(self, *given, **options):
        self.calls += 1
        return self._processor(*given, **options)


@pytest.mark.parametrize("name", named(list(FAMILIES)))
def test_prompts_of_several_questions_about_a_picture_are_those_of_each_and_its_pixels_are_made_once(
    checkpoints, name, monkeypatch
):
    model, images = checkpoints(name).model, ASKED["wide"].images()
    asked = [Conversation.of(text, len(images)) for text in ("What is it?", "How many are there, and where?", "Why?")]
    expected = [model.prompt(one, images, True, 64) for one in asked]
    counted = Counted(model.chat._processor.image_processor)
    monkeypatch.setattr(model.chat._processor, "image_processor", counted)
    found = model.prompts(asked, images, True, 64)
    assert counted.calls == 1
    for one, other in zip(found, expected, strict=True):
        assert one.inputs.keys() == other.inputs.keys()
        assert all(torch.equal(one.inputs[key], other.inputs[key]) for key in other.inputs)
