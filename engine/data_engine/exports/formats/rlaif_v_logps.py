"""What RLAIF-V's trainer reads without running its reference model first: the pairs, with that model's log-probs.

The reference is the instruct model, whose log-probs of the answers are in the work directory. The trainer takes them
for those that it would compute itself, and trains on without a word where they are not. So a pair of which they would
differ is left out: its texts, read by the trainer, must be the very tokens that were scored.
Source of all that is said of the trainer: github.com/RLHF-V/RLAIF-V at 83d917b, muffin/.
"""

import functools
import json
import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_engine import schemas, stages
from data_engine.errors import UserError
from data_engine.exports.base import ExportSource, QuestionRows
from data_engine.exports.cleaned import Cleaned
from data_engine.exports.features import with_features
from data_engine.exports.parquet_files import write_files
from data_engine.exports.shuffle import Key, pair_key, shuffled
from data_engine.models.checkpoints.adapter_folder import reopened, telling_real_places, with_real_places
from data_engine.models.checkpoints.json_files import ModelError
from data_engine.models.tokenizer import Tokenizer, continuation, load_tokenizer
from data_engine.questions.dataset import Question
from data_engine.store import units

STAGE = "instruct_logps"
# The only family that the trainer trains.
FAMILY = "llava"
NAME = "RLAIF-V-Dataset-withlogp"

REWRITTEN = "a text was rewritten, so that its saved log-probs are not those of the new text"
UNSCORED = "the instruct model gave an answer no log-probs (left_out/ says why)"
CUT_OFF = "an answer ended at max_new_tokens, and the trainer would add an end token to it"
MASKED = 'a text holds " ASSISTANT: ", at which the trainer ends the question'
THOUGHT = "a thought stands before an answer, which its saved log-probs follow and the trainer does not read"
OTHER_TOKENS = "the trainer would read a text as other tokens than the model wrote"
TOO_LONG = "question, picture and answer are longer than 2,048 tokens, where the trainer cuts"

# The trainer's template llava_v1: what stands before the picture, and what between question and answer.
BEFORE_PICTURE = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. USER: "
)
ANSWER_STARTS = " ASSISTANT: "
# The id of <unk>, by which the trainer pads: where a text has it, the trainer masks the whole answer.
UNKNOWN = 0
# --model_max_length of the trainer's script; and the tokens of LLaVA-1.5's picture, which is one token before that.
MOST_TOKENS, PICTURE_TOKENS = 2048, 576
MOST_IDS = MOST_TOKENS - PICTURE_TOKENS + 1
# The loss of LLaVA-1.5 is made of sums or means. The log-probs of single tokens are not read, but must be as many as
# there are ids behind the first, padding included: no input that is not cut has more.
UNREAD = json.dumps([0.0] * (MOST_IDS - 1), separators=(",", ":"))


def write(cleaned: Cleaned, folder: Path, scratch: Path) -> int:
    """Write folder/RLAIF-V-Dataset-withlogp_NUMBER-ROWS.parquet, the pairs whose reference log-probs are known to be
    those of RLAIF-V's trainer, shuffled by the seed.

    Raises UserError for a run without such log-probs, and where the instruct model's tokenizer cannot be asked.
    """
    trainer = _Trainer(_tokenizer(cleaned.source))
    schema = with_features(_schema(cleaned.source.questions.idx_type))
    rows = shuffled(_rows(cleaned, trainer), schema, cleaned.source, scratch)
    write_files(folder, NAME, rows, schema)
    # The names that the trainer itself gives such files.
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{NAME}_{number:03d}-{pq.read_metadata(path).num_rows}.parquet")
    return len(rows)


def _schema(idx: pa.DataType) -> pa.Schema:
    """The columns of the trainer's own files; it fails where one of them is missing."""
    texts = [(name, pa.string()) for name in ("question", "chosen", "rejected", "origin_dataset", "origin_split")]
    return pa.schema(
        [("ds_name", pa.string()), ("image", schemas.IMAGE), *texts, ("idx", idx), ("image_path", pa.string()),
         ("logps", pa.string())]
    )  # fmt: skip


def _rows(cleaned: Cleaned, trainer: "_Trainer") -> Iterator[tuple[Key, dict]]:
    for group in cleaned.pairs(lambda question: question.is_single):
        for pair in group.rows:
            reason = REWRITTEN if pair["rewritten"] else _why_other(trainer, group, pair)
            if reason is not None:
                cleaned.leave_out_row(reason, pair)
                continue
            yield pair_key(pair), _row(group, pair)


def _why_other(trainer: "_Trainer", group: QuestionRows, pair: Mapping) -> str | None:
    """Why the trainer's reference model would give an answer of a pair other log-probs."""
    for side in ("chosen", "rejected"):
        index = pair[f"{side}_index"]
        answer, scored = (group.of_stage(stage, index) for stage in (stages.SAMPLING.name, STAGE))
        reason = UNSCORED if scored is None else CUT_OFF if answer["finish_reason"] == "length" else None
        reason = THOUGHT if answer.get("thought") is not None else reason
        if reason is None:
            ids, num_scored = answer["token_ids"], len(scored["token_logps"])
            reason = trainer.why_other(group.question.question, pair[side], ids, num_scored)
        if reason is not None:
            return reason
    return None


def _row(group: QuestionRows, pair: Mapping) -> dict:
    question: Question = group.question
    extra = question.extra
    return {
        "ds_name": extra.get("ds_name"),
        "image": {"bytes": question.image, "path": question.image_path},
        "question": question.question,
        "chosen": pair["chosen"],
        "rejected": pair["rejected"],
        "origin_dataset": extra.get("origin_dataset"),
        "origin_split": "{}",
        "idx": pair["idx"],
        "image_path": extra.get("image_path") or question.image_path,
        "logps": logps_text(*(group.of_stage(STAGE, pair[f"{side}_index"]) for side in ("chosen", "rejected"))),
    }


def logps_text(chosen: Mapping, rejected: Mapping) -> str:
    """The column logps, from two rows of schemas.logps: sum, mean and a list for each, as JSON."""
    sides = []
    for row in (chosen, rejected):
        total = math.fsum(row["token_logps"])
        sides.append(f"{total!r},{total / len(row['token_logps'])!r},{UNREAD}")
    return f'{{"logps":[{",".join(sides)}]}}'


@dataclass(frozen=True)
class _Trainer:
    """How RLAIF-V's trainer reads texts: preprocess_v1 with the template llava_v1, by the model's own tokenizer."""

    tokenizer: Tokenizer

    def why_other(self, question: str, answer: str, token_ids: list[int] | None, num_scored: int) -> str | None:
        """Why it would not read those tokens of an answer that were scored; `token_ids` is None for text."""
        before = f"\n{question}"
        # It masks by this split, whatever the text between.
        if f"{before}{ANSWER_STARTS}{answer}".split(ANSWER_STARTS) != [before, answer]:
            return MASKED
        # The text behind the picture, whose prompt ends before the space.
        prompt, rest = f"{before}{ANSWER_STARTS.rstrip()}", f" {answer}"
        read = [*self.tokenizer.encode(prompt + rest), self.tokenizer.eos]
        scored = token_ids
        if scored is None:
            scored = [*continuation(self.tokenizer, prompt, rest), self.tokenizer.eos]
        same = read == [*self.tokenizer.encode(prompt), *scored] and len(scored) == num_scored
        if not same or UNKNOWN in read:
            return OTHER_TOKENS
        return TOO_LONG if self._ids_before + len(read) > MOST_IDS else None

    @functools.cached_property
    def _ids_before(self) -> int:
        """The begin token, the system text, and the picture, which is one id."""
        return 2 + len(self.tokenizer.encode(BEFORE_PICTURE))


def require(family: str | None, stages: Container[str]) -> None:
    """Raise UserError for an instruct model of another family than the trainer's, or without a stage that scores."""
    if family is None:
        raise UserError("the format rlaif-v-logps needs --instruct_model_path, the model to train; use rlaif-v without")
    if family != FAMILY:
        raise UserError(
            f"the format rlaif-v-logps is for instruct models of the family {FAMILY}, which its trainer trains, and "
            f"this one is of the family {family}; use rlaif-v"
        )
    if STAGE not in stages:
        raise UserError(
            "the format rlaif-v-logps needs log-probs of the instruct model, which no source of --rewards computes in "
            "this run: add contrast (or implicit, without --reference_model_path), or use rlaif-v"
        )


def _tokenizer(source: ExportSource) -> Tokenizer:
    """The instruct model's, from where the run found it. Raises UserError."""
    wanted = "the format rlaif-v-logps"
    if not units.published(source.work_dir, STAGE):
        raise UserError(
            f'{wanted} needs log-probs of the instruct model, which "{source.work_dir}" does not have; use rlaif-v'
        )
    require(source.instruct.get("family"), (STAGE,))
    mend = "put the checkpoint back there, or use rlaif-v"
    try:
        with telling_real_places():
            folder = reopened(source.instruct)
            tokenizer = load_tokenizer(folder)
    except ModelError as error:
        raise UserError(f"{wanted} needs the tokenizer of the instruct model: {error}; {mend}") from None
    if tokenizer.vocabulary != source.instruct["vocabulary"]:
        place = with_real_places(str(folder))
        raise UserError(
            f'{wanted} needs the tokenizer of the instruct model, and "{place}" has another one by now; {mend}'
        )
    return tokenizer
