"""Judges that think: a critic's number is that of its final text, and none is asked for yes or no within a thought.

Their thinking is switched off by arguments of their own chat template.
"""

import json
from types import SimpleNamespace

import judges
import pytest
import yaml
from asked import Asked
from checkpoints import Checkpoint
from runs import SETTINGS, few, read
from safetensors.torch import load_file
from test_family_judges import sampled
from thinkers import FAMILIES
from tiny_parts import picture

from data_engine import load_model
from data_engine.commands.main import main
from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job import worker
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.pipeline.critic import UNFINISHED, Critic
from data_engine.pipeline.judge import Scalar, YesNo, said_ids
from data_engine.questions.dataset import Question, load_questions
from data_engine.rewards.critic import template_in
from data_engine.rewards.yesno import YesNoTemplate
from data_engine.sampling.requests import Completion

# In make test, test_family_sampling and test_family_scoring stand for the families.
pytestmark = pytest.mark.families

NO_NUMBER = "the critic's text does not match the template's expression"


OFF = '{"enable_thinking": false}'
# What the template writes before an answer in the one case and in the other.
OPEN, CLOSED = "<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"
TEXTS = ("A cat.", "Two red dogs.")
LENGTH = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Whose template opens a thought in the prompt, and whose texts have digits."""
    return Checkpoint("qwen3_5", tmp_path_factory.mktemp("thinker"), FAMILIES["qwen3_5_counting"])


@pytest.fixture(scope="module")
def thinker(checkpoint):
    return load_model(None, str(checkpoint.folder), device="cpu")


class Written:
    """A back end that gives texts in the order of its requests."""

    halvings = 0

    def __init__(self, texts: list[list[int]]) -> None:
        self._texts, self._found = texts, []

    def submit(self, requests) -> None:
        both = enumerate(zip(self._texts, requests, strict=True))
        self._found = [Completion(number, 0, ids, "stop") for number, (ids, _) in both]

    def poll(self) -> list[Completion]:
        return self._found


def test_a_critics_number_is_read_behind_its_thought(thinker):
    texts = {"I think of 3.\n</think>\n\nIt gets 8.": 8.0, "I think of 3": UNFINISHED,
             "It may be 5.\n</think>\n\nGood.": NO_NUMBER}  # fmt: skip
    tokenizer = thinker.chat._tokenizer
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    template = template_in('prompt: "{question} {answer}"\nnumber: "([0-9]+)"\nmax_new_tokens: 8', "template")
    context = SimpleNamespace(model=thinker, config=SimpleNamespace(max_megapixels=64), decode=None)
    critic = Critic(context, template, Written(ids))
    question = Question("q", "What is it?", None, None)
    answers = {"q": [{"idx": "q", "sample_index": n, "answer": f"A cat {n}."} for n in range(len(texts))]}
    written = critic._written(SimpleNamespace(questions=[question]), answers, {}, ([], []))
    rows = [critic._row(row, written, {}) for row in answers["q"]]
    assert [row["score"] if row["reason"] is None else row["reason"] for row in rows] == list(texts.values())
    # The text is kept whole.
    assert "I think of 3" in rows[0]["critique"]


def test_a_model_whose_prompt_opens_a_thought_is_not_asked_for_yes_or_no(thinker, checkpoint):
    """Neither loaded nor by its tokenizer alone, as `validate` looks at it."""
    template = YesNoTemplate("{question} {answer}?")
    for judge in (lambda: YesNo(thinker, template), lambda: said_ids(thinker.text_side(checkpoint.folder), template)):
        with pytest.raises(UserError, match="the yesno model's chat template opens a thought before each answer"):
            judge()


def run_of(tmp_path, role: str, folder, **more: object) -> dict[str, object]:
    """The flags of a run of a judge over given answers to two questions."""
    answers = [{"idx": f"q{n}", "answer": text} for n in range(2) for text in TEXTS]
    (tmp_path / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in answers))
    paths = {f"{role}_model_path": folder, "dataset_path": few(tmp_path, 2), "answers": tmp_path / "answers.jsonl",
             "work_dir": tmp_path / "work"}  # fmt: skip
    more = {"rewards": role, "stop_after_stage": 1} | more
    return SETTINGS | {name: str(path) for name, path in paths.items()} | more


@pytest.mark.families
def test_a_critic_that_is_told_not_to_think_writes_its_verdict_at_once(checkpoint, tmp_path):
    """Against what the stock model writes behind a prompt that closes its thought."""
    template = {"prompt": "{question} {answer}", "number": "([0-9])", "max_new_tokens": LENGTH}
    (tmp_path / "template.yaml").write_text(yaml.safe_dump(template))
    flags = run_of(tmp_path, "critic", checkpoint.folder, critic_template=str(tmp_path / "template.yaml"))
    tokenizer, model = checkpoint.processor.tokenizer, checkpoint.model
    end = tokenizer.convert_tokens_to_ids("</think>")

    def written(opening: str) -> dict[tuple[str, str], list[int]]:
        source = checkpoint.processor.chat_template
        checkpoint.processor.chat_template = source.rpartition("{% if add_generation_prompt %}")[0] + f"{opening}{{##}}"
        try:
            asked = {(n, text): Asked(((100 + 8 * n, 130 - 8 * n),), f"What is it{' called' * n}? {text}")
                     for n in range(2) for text in TEXTS}  # fmt: skip
            return {key: checkpoint.stock.greedy(one, LENGTH, model.banned_token_ids, checkpoint.ends)[0]
                    for key, one in asked.items()}  # fmt: skip
        finally:
            checkpoint.processor.chat_template = source

    with pytest.MonkeyPatch.context() as patch:
        # The pictures of `few` have seeds of their own.
        patch.setattr(Asked, "images", lambda one: [picture(*one.sizes[0], seed=(one.sizes[0][0] - 100) // 8)])
        thinking, at_once = written(OPEN), written(CLOSED)
    assert thinking != at_once
    assert worker.run(RunConfig(**flags | {"critic_chat_template_kwargs": OFF})) == 0
    rows = {(int(row["idx"][1:]), TEXTS[row["sample_index"]]): row for row in read(tmp_path / "work/critic")}
    assert rows.keys() == at_once.keys()
    for key, row in rows.items():
        assert row["critique"] == tokenizer.decode(at_once[key], skip_special_tokens=True).strip()
        # Nothing opened a thought, so that none is unfinished, whether a mark was drawn or not.
        assert row["reason"] != UNFINISHED
    assert any(end not in ids for ids in at_once.values())
    # Another spelling of the same goes on, and thinking again is another run.
    assert worker.run(RunConfig(**flags | {"critic_chat_template_kwargs": ' {"enable_thinking":false}'})) == 0
    with pytest.raises(UserError, match=f"critic_chat_template_kwargs was '{OFF}', now not set"):
        worker.run(RunConfig(**flags))
    # The instruct model's arguments are none of the critic's.
    with pytest.raises(UserError, match="critic_chat_template_kwargs was"):
        worker.run(RunConfig(**flags | {"chat_template_kwargs": OFF}))


@pytest.mark.parametrize("role", ["yesno", "scalar"])
def test_a_judge_of_one_number_is_asked_by_the_template_that_does_not_think(checkpoint, tmp_path, role, capsys):
    folder = tmp_path / "judge"
    if role == "yesno":
        judges.saying_yes(checkpoint.folder, folder)
    else:
        width = load_file(checkpoint.folder / "model.safetensors")["model.language_model.norm.weight"].numel()
        judges.with_tensors(checkpoint.folder, folder, judges.head(width))
    flags = run_of(tmp_path, role, folder)
    if role == "yesno":
        with pytest.raises(UserError, match=f"--yesno_chat_template_kwargs '{OFF}' switches it off"):
            worker.run(RunConfig(**flags))
    assert worker.run(RunConfig(**flags | {f"{role}_chat_template_kwargs": OFF})) == 0
    model = load_model(
        None, str(folder), device="cpu", dtype="float32", headed=role == "scalar",
        chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    reading = YesNo(model, YesNoTemplate.read(None)) if role == "yesno" else Scalar(model)
    rows = read(tmp_path / "work" / role)
    for n, question in enumerate(load_questions(flags["dataset_path"]).rows(range(2))):
        expected = judges.scores(model, reading, question, sampled(list(TEXTS), question.idx))
        assert [row["score"] for row in rows[2 * n : 2 * n + 2]] == pytest.approx(expected, abs=1e-5)


def test_an_argument_that_the_judges_template_does_not_read_is_refused_by_its_flag(checkpoint, tmp_path, capsys):
    flags = run_of(tmp_path, "critic", checkpoint.folder, critic_chat_template_kwargs='{"enable_thinkin": false}')
    assert main(["validate", *(f"--{name}={value}" for name, value in flags.items())]) == 2
    told = capsys.readouterr().err
    assert "critic_chat_template_kwargs has enable_thinkin, which no chat template of this run reads: leave it" in told
    flags["critic_chat_template_kwargs"] = '{"tools": []}'
    with pytest.raises(
        (UserError, ModelError), match="--critic_chat_template_kwargs has 'tools', which the engine sets"
    ):
        worker.run(RunConfig(**flags))
