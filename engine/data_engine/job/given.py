"""What --answers means to a run: what is held against its settings and models, and what a person should know of it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from data_engine.config import RunConfig
from data_engine.errors import UserError
from data_engine.job.checkpoints import Checkpoint
from data_engine.models import chat_options, class_for
from data_engine.questions.dataset import Questions
from data_engine.questions.given_answers import GivenAnswers, GivenFacts, check_answers
from data_engine.questions.given_rows import GivenAnswer, GivenFile
from data_engine.stages import TRAINED
from data_engine.store.claims import Claims
from data_engine.store.file_hashes import HashFiles

OFF_POLICY = (
    "the answers are those of --answers: answers that the instruct model did not sample itself are off-policy for it, "
    "and pairs of them teach it less than pairs of its own"
)


class Given:
    """The answers of a run, as its stage 0 reads them."""

    def __init__(self, answers: GivenAnswers, text: Callable[[list[int]], str] | None) -> None:
        """`text` makes text of ids; None where each answer has one."""
        self.facts, self._answers, self._text = answers.facts, answers, text

    @classmethod
    def of(
        cls,
        config: RunConfig,
        questions: Questions,
        checkpoints: Mapping[str, Checkpoint],
        hash_files: HashFiles,
        claims: Claims,
    ) -> "Given":
        """Read and check the file, or open what an earlier start made of it.

        Raises UserError for what cannot be used in this run.
        """
        answers = GivenAnswers.of(
            Path(config.work_dir), config.answers, questions, hash_files, claims,
            lambda facts: _check(facts, config, questions, checkpoints),
        )  # fmt: skip
        return cls(answers, _text_of_ids(checkpoints[TRAINED], config) if answers.facts.ids_alone else None)

    def of_rows(self, rows: range) -> list[list[GivenAnswer]]:
        """The answers to consecutive questions, each with a text."""
        found = self._answers.of_rows(rows)
        return found if self._text is None else [list(map(self._with_text, answers)) for answers in found]

    def _with_text(self, answer: GivenAnswer) -> GivenAnswer:
        return answer if answer.text is not None else GivenAnswer(self._text(answer.token_ids), answer.token_ids)


def check(config: RunConfig, questions: Questions) -> GivenFacts:
    """What is in the file of --answers. Raises UserError for what a run would refuse, and writes nothing."""
    facts = check_answers(config.answers, questions)
    named = config.instruct_model_path is not None
    checkpoints = {TRAINED: Checkpoint.of_role(config, TRAINED)} if facts.has_ids and named else {}
    _check(facts, config, questions, checkpoints)
    return facts


def warnings(facts: GivenFacts, config: RunConfig) -> list[str]:
    """What a person should know of given answers."""
    found = [OFF_POLICY]
    if few := facts.questions_with(1, config.rank):
        found.append(
            f"{few} of {facts.questions_with(1, facts.most)} questions with answers have no more of them than rank, "
            f"{config.rank}: each is both among the best and among the worst then, and makes no pair; lower --rank"
        )
    return found


def _check(facts: GivenFacts, config: RunConfig, questions: Questions, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Raise UserError for answers that cannot be used in this run."""
    name = f'answers "{config.answers}"'
    if facts.most < 2:
        raise UserError(f"{name} has one answer a question; a pair needs two")
    if config.rank > facts.most:
        raise UserError(
            f"rank must be at most the number of answers that a question has, {facts.most} in {name}, got {config.rank}"
        )
    if not facts.has_ids:
        return
    if TRAINED not in checkpoints:
        raise UserError(
            f"{name} has token_ids, and no --instruct_model_path says which model's they are: name it, or leave the "
            "column out"
        )
    sizes = [one.sizes["vocab_size"] for one in checkpoints.values()
             if one.vocabulary == checkpoints[TRAINED].vocabulary and "vocab_size" in one.sizes]  # fmt: skip
    if sizes and facts.largest_id >= min(sizes):
        raise GivenFile(config.answers, questions.idx_type).refusal(
            facts.largest_id_at,
            f"token_ids has {facts.largest_id}, and the vocabulary of the {TRAINED} model has {min(sizes)} ids: give "
            "the text as answer, without token_ids, where the ids are another model's",
        )
    if facts.ids_alone:
        _text_of_ids(checkpoints[TRAINED], config)


def _text_of_ids(checkpoint: Checkpoint, config: RunConfig) -> Callable[[list[int]], str]:
    side = class_for(checkpoint.family, config.chat).text_side(checkpoint.folder, **chat_options(config.chat))
    if side.text is None:
        raise UserError(
            f'answers "{config.answers}" has rows with token_ids alone, which the family {checkpoint.family} cannot '
            "write as text without its weights: give the column answer too"
        )
    return side.text
