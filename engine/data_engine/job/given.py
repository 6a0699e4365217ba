"""What --answers means to a run: what is held against its settings and models."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_engine.config import RunConfig
from data_engine.errors import BadRow, UserError
from data_engine.job.checkpoints import Checkpoint
from data_engine.models import class_for
from data_engine.models.base import TextSide
from data_engine.questions import thoughts
from data_engine.questions.conversation import Conversation
from data_engine.questions.dataset import Questions
from data_engine.questions.given_answers import GivenAnswers, GivenFacts, check_answers, require_usable
from data_engine.questions.given_rows import GivenAnswer, GivenFile
from data_engine.questions.thoughts import ReadAnswer
from data_engine.stages import TRAINED
from data_engine.store.claims import Claims
from data_engine.store.file_hashes import HashFiles

# What tokenizers write for a character that they cannot: "\u2047" is SentencePiece's.
_UNKNOWN = {"\ufffd", "\u2047"}


class Given:
    """The answers of a run, as its stage 0 reads them."""

    def __init__(self, answers: GivenAnswers, side: TextSide, unit_rows: Sequence[range] = ()) -> None:
        """`side` is that of the model whose tokenizer token_ids are of."""
        self.facts, self._answers, self._side, self._unit_rows = answers.facts, answers, side, unit_rows

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
        return cls(answers, _text_side(checkpoints.get(TRAINED), config))

    def of_units(self, unit_rows: Sequence[range]) -> "Given":
        """The same, by units of these questions."""
        return Given(self._answers, self._side, unit_rows)

    def of_unit(self, unit: int) -> list[list[GivenAnswer]]:
        """The answers to each question of a unit."""
        return self._answers.of_rows(self._unit_rows[unit])

    def read(self, conversation: Conversation, answer: GivenAnswer) -> ReadAnswer:
        """The final answer and its thought: token ids tell where it ends, a text without ids by its marks.

        A text beside ids may have been cut already, as those that a run leaves are. Raises BadRow for one of other ids.
        """
        text, ids = answer.text, answer.token_ids
        parts = thoughts.Parts(None, None) if text is None else thoughts.cut(text, self._side.thought_marks)
        final = parts.answer if parts.answer is None or parts.thought is None else parts.answer.rstrip()
        if ids is None:
            return ReadAnswer(final, parts.thought)
        found = self._read_ids(conversation, ids)
        if text is None or found.text is None:
            return found
        _require_theirs(final or "", found.text)
        return found._replace(text=final)

    def _read_ids(self, conversation: Conversation, ids: list[int]) -> ReadAnswer:
        side = self._side
        if side.read_answer is not None:
            return side.read_answer(conversation, ids)
        # A family that has no text without its weights: the file tells the texts.
        return ReadAnswer("") if side.text is None else thoughts.read(ids, side.text, side.text, side.thought_marks)


def _require_theirs(text: str, of_ids: str) -> None:
    """Raise BadRow for a text beside ids that say something else: what is rewarded would not be what is trained on.

    Either may have more at its ends, such as a stop text or special tokens, another Unicode form and other white space.
    A family whose text needs its weights has none here. Characters that a tokenizer has not, or of which the ids hold a
    part, cannot be compared.
    """
    one, other = ("".join(unicodedata.normalize("NFKC", each).split()) for each in (text, of_ids))
    if one not in other and other not in one and not _UNKNOWN & {*of_ids}:
        raise BadRow(
            f"the text {_quoted(text)} is not that of the token_ids beside it, {_quoted(of_ids)}; give "
            "texts alone where they were changed"
        )


def _quoted(text: str) -> str:
    return json.dumps(text[:60], ensure_ascii=False)


def check(config: RunConfig, questions: Questions) -> None:
    """Raise UserError for what a run would refuse of the file of --answers; writes nothing."""
    facts = check_answers(config.answers, questions)
    named = config.instruct_model_path is not None
    checkpoints = {TRAINED: Checkpoint.of_role(config, TRAINED)} if facts.has_ids and named else {}
    _check(facts, config, questions, checkpoints)


def _check(facts: GivenFacts, config: RunConfig, questions: Questions, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Raise UserError for answers that cannot be used in this run."""
    require_usable(facts, config.answers, config.least_answers, not facts.has_ids or TRAINED in checkpoints)
    if not facts.has_ids:
        return
    sizes = [one.sizes["vocab_size"] for one in checkpoints.values()
             if one.vocabulary == checkpoints[TRAINED].vocabulary and "vocab_size" in one.sizes]  # fmt: skip
    if sizes and facts.largest_id >= min(sizes):
        raise GivenFile(config.answers, questions.idx_type).refusal(
            facts.largest_id_at,
            f"token_ids has {facts.largest_id}, and the vocabulary of the {TRAINED} model has {min(sizes)} ids: give "
            "the text as answer, without token_ids, where the ids are another model's",
        )
    checkpoint = checkpoints[TRAINED]
    if facts.ids_alone and _text_side(checkpoint, config).text is None:
        raise UserError(
            f'answers "{config.answers}" has rows with token_ids alone, which the family {checkpoint.family} cannot '
            "write as text without its weights: give the column answer too"
        )


def _text_side(checkpoint: Checkpoint | None, config: RunConfig) -> TextSide:
    """That of the model to train; without one, thoughts are cut by the marks of published models."""
    if checkpoint is None:
        return TextSide("", ())
    return class_for(checkpoint.family, config.chat).text_side(checkpoint.folder, config.chat)
