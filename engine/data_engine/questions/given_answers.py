"""The answers of --answers, checked as a whole and sorted by question, so that those of a unit are read at once.

The sorted copy is made once a work directory, in answers/, and shared by all ranks. Memory holds some 50 bytes of each
answer while it is made, and never the texts.
"""

import hashlib
import itertools
import json
import logging
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_engine.config import RunConfig
from data_engine.config_checks import WITHOUT_RANK
from data_engine.errors import UserError
from data_engine.plural import plural
from data_engine.processes.counting import counting
from data_engine.questions.dataset import Questions
from data_engine.questions.given_rows import GivenAnswer, GivenFile, GivenRow
from data_engine.store.claims import Claims
from data_engine.store.file_hashes import HashFiles
from data_engine.store.folders import move_in_once, scratch_folder

FOLDER = "answers"
POLL_S = 0.2
# How many of the rows that are wrong in the same way a message names.
_NAMED = 5
_ROWS, _STARTS, _FIRST, _FACTS = "rows.jsonl", "starts.npy", "first.npy", "facts.json"

log = logging.getLogger(__name__)

OFF_POLICY = (
    "the answers are those of --answers: answers that the instruct model did not sample itself are off-policy for it, "
    "and pairs of them teach it less than pairs of its own"
)


@dataclass
class GivenFacts:
    """What a person and the checks of a start should know of all answers together."""

    rows: int = 0
    """answers that are used"""
    beyond_limit: int = 0
    """answers to questions that --limit leaves out"""
    empty: int = 0
    """rows without an answer, which are not used"""
    repeated: int = 0
    """rows with an answer that an earlier row of their question has, which are not used"""
    questions_by_answers: dict[int, int] = field(default_factory=dict)
    """number of answers -> questions that have so many; of none, too"""
    largest_id: int = -1
    largest_id_at: int = 0
    """number of the row that has it"""
    text_alone: int = 0
    """answers without token ids"""
    ids_alone: int = 0
    """answers without text"""
    text_bytes: int = 0
    """of all texts"""
    most_tokens: int = 0
    """of all answers: their ids; of a text alone, which no tokenizer has read, a token a byte and an end token"""

    @property
    def has_ids(self) -> bool:
        return self.largest_id >= 0

    @property
    def most(self) -> int:
        """The most answers that a question has."""
        return max(self.questions_by_answers)

    def questions_with(self, most: int) -> int:
        """How many questions have answers, and so many at most."""
        return sum(count for number, count in self.questions_by_answers.items() if 1 <= number <= most)

    def told(self) -> str:
        """In words."""
        asked = sum(self.questions_by_answers.values())
        found = f"{plural(self.rows, 'answer')} to {self.questions_with(self.most):,} of {plural(asked, 'question')}"
        beyond = f"; to questions beyond --limit: {plural(self.beyond_limit, 'answer')}" if self.beyond_limit else ""
        return found + beyond + self.unused()

    def warnings(self, config: RunConfig) -> list[str]:
        """What a person should know of these answers before a run of them begins."""
        found = [OFF_POLICY] if config.instruct_model_path is not None else []
        few = self.questions_with(config.rank)
        if few and config.strategy not in WITHOUT_RANK:
            mend = "lower --rank, or give more answers" if config.rank > 1 else "give more answers"
            found.append(
                f"{few} of {self.questions_with(self.most)} questions with answers have no more of them than rank, "
                f"{config.rank}: each is both among the best and among the worst then, and makes no pair; {mend}"
            )
        return found

    def unused(self) -> str:
        """Which rows are not used, in words behind others."""
        counts = {"empty": self.empty, "repeated for their question": self.repeated}
        found = ", ".join(f"{count} {which}" for which, count in counts.items() if count)
        return f"; not used: {found}" if found else ""


class _Gathering:
    """The pass over a file: its rows are checked and written to a stream, and of each a few numbers are kept."""

    def __init__(self, file: GivenFile, questions: Questions) -> None:
        self._file, self._questions = file, questions
        self.facts = GivenFacts()
        self._places, self._sizes, self._digests = array("q"), array("q"), bytearray()
        # -1: the row has none.
        self._text_bytes, self._num_ids = array("q"), array("q")
        self._used = np.zeros(0, np.int64)

    def run(self, stream: BinaryIO | None) -> None:
        """Raises UserError naming what is wrong with the file."""
        place_of = {idx: place for place, idx in enumerate(self._questions.idx)}
        unknown: list[GivenRow] = []
        num_unknown = 0
        for row in counting(self._file.rows(), self._file.num_rows(), "answers"):
            place = place_of.get(row.idx)
            if place is None and row.idx in self._questions.beyond_limit:
                self.facts.beyond_limit += 1
            elif place is not None and row.answer is None:
                self.facts.empty += 1
            elif place is not None:
                self._take(row, place, stream)
            else:
                num_unknown += 1
                unknown += [row] if num_unknown <= _NAMED else []
        if unknown:
            raise UserError(
                f"{self._file.name}: the dataset has no question of the idx of {plural(num_unknown, 'row')}: "
                f"{self._named(((row.number, row.idx) for row in unknown), num_unknown)}. Take these rows out, or give "
                "the dataset that they are answers to"
            )
        if not self._places:
            asked = f" to the first {plural(len(place_of), 'question')}, which --limit leaves"
            others = asked if self.facts.beyond_limit else ""
            raise UserError(f"{self._file.name} has no answers{others}{self.facts.unused()}")
        self._used = self._first_of_each()
        self._count()

    def in_order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The places of the rows that are used, ordered by question, and the starts and sizes of their records."""
        sizes, places = _numbers(self._sizes), _numbers(self._places)[self._used]
        order = np.argsort(places, kind="stable")
        rows = self._used[order]
        return places[order], (np.cumsum(sizes) - sizes)[rows], sizes[rows]

    def _take(self, row: GivenRow, place: int, stream: BinaryIO | None) -> None:
        text, ids = row.answer.text, row.answer.token_ids
        record = json.dumps([text, ids]).encode() + b"\n"
        if stream is not None:
            stream.write(record)
        self._places.append(place)
        self._sizes.append(len(record))
        # By the text, since two equal ones make no pair; by the ids where there is none.
        same = json.dumps([place, text if text and text.strip() else ids]).encode()
        self._digests += hashlib.blake2b(same, digest_size=16).digest()
        self._text_bytes.append(-1 if text is None else len(text.encode()))
        self._num_ids.append(-1 if ids is None else len(ids))
        if ids is not None and max(ids) > self.facts.largest_id:
            self.facts.largest_id, self.facts.largest_id_at = max(ids), row.number

    def _first_of_each(self) -> np.ndarray:
        """The rows that are used, in the order of the file: of those that are the same, the first."""
        halves = np.frombuffer(self._digests, np.uint64).reshape(-1, 2)
        # Equal ones stay in their order.
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        again = order[1:][(halves[order[1:]] == halves[order[:-1]]).all(1)]
        used = np.ones(len(order), bool)
        used[again] = False
        return np.flatnonzero(used)

    def _count(self) -> None:
        facts, used, places = self.facts, self._used, _numbers(self._places)
        text_bytes, num_ids = _numbers(self._text_bytes)[used], _numbers(self._num_ids)[used]
        facts.rows, facts.repeated = len(used), len(places) - len(used)
        facts.text_alone, facts.ids_alone = int((num_ids < 0).sum()), int((text_bytes < 0).sum())
        facts.text_bytes = int(text_bytes.clip(0).sum())
        facts.most_tokens = int(np.where(num_ids < 0, text_bytes + 1, num_ids).sum())
        counts = np.bincount(np.bincount(places[used], minlength=len(self._questions.idx)))
        facts.questions_by_answers = {number: int(count) for number, count in enumerate(counts) if count}

    def _named(self, rows: Iterable[tuple[int, int | str]], count: int) -> str:
        """A few rows, as (number, idx), for a message."""
        shown = ", ".join(f"{json.dumps(idx)} in {self._file.place(number)}" for number, idx in rows)
        return f"{shown}, ..." if count > _NAMED else shown


def _numbers(values: array) -> np.ndarray:
    return np.frombuffer(values, np.int64)


def check_answers(path: str, questions: Questions) -> GivenFacts:
    """What is in a file of answers. Raises UserError for what a run would refuse; writes nothing."""
    gathering = _Gathering(GivenFile(path, questions.idx_type), questions)
    gathering.run(None)
    return gathering.facts


def require_usable(facts: GivenFacts, path: str, rank: int, has_model: bool) -> None:
    """Raise UserError for answers that cannot be used where --rank is `rank`; `has_model`: one to train is named."""
    name = f'answers "{path}"'
    if facts.most < 2:
        raise UserError(f"{name} has one answer a question; a pair needs two{facts.unused()}")
    if rank > facts.most:
        raise UserError(
            f"rank must be at most the number of answers that a question has, {facts.most} in {name}, got {rank}"
            f"{facts.unused()}"
        )
    if facts.has_ids and not has_model:
        raise UserError(
            f"{name} has token_ids, and no --instruct_model_path says which model's they are: name it, or leave the "
            "column out"
        )


class GivenAnswers:
    """The sorted copy: the answers to each question, in the order of their file."""

    def __init__(self, folder: Path) -> None:
        known = json.loads((folder / _FACTS).read_text())
        by_answers = {int(number): count for number, count in known.pop("questions_by_answers").items()}
        self.facts = GivenFacts(**known, questions_by_answers=by_answers)
        # Where the answers to each question begin, in bytes and in rows; one more than there are questions.
        self._starts, self._first = (np.load(folder / name, mmap_mode="r") for name in (_STARTS, _FIRST))
        self._rows = folder / _ROWS

    @classmethod
    def of(
        cls,
        work_dir: Path,
        path: str,
        questions: Questions,
        hash_files: HashFiles,
        claims: Claims,
        check: Callable[[GivenFacts], None] = lambda facts: None,
    ) -> "GivenAnswers":
        """The copy in a work_dir, made by one rank while the others wait.

        Raises UserError naming what is wrong with the file, and what `check` raises; no copy is made then.
        """
        [content] = hash_files([Path(path)])
        ids = hashlib.sha256(json.dumps(questions.idx).encode()).hexdigest()
        key = hashlib.sha256(f"1 {content} {ids}".encode()).hexdigest()[:16]
        folder = work_dir / FOLDER / key

        def check_whole(facts: GivenFacts) -> None:
            check(facts)
            # Before other ranks see the copy.
            if hash_files([Path(path)]) != [content]:
                raise UserError(f'answers "{path}" changed while it was read: run again when it is complete')

        while not folder.is_dir():
            with claims.hold(f"{FOLDER}-{key}", 0) as mine:
                if mine and not folder.is_dir():
                    _make(work_dir, folder, GivenFile(path, questions.idx_type), questions, check_whole)
            if not folder.is_dir():
                time.sleep(POLL_S)
        found = cls(folder)
        check(found.facts)
        return found

    def of_rows(self, rows: range) -> list[list[GivenAnswer]]:
        """The answers to consecutive questions."""
        start, stop = int(self._starts[rows.start]), int(self._starts[rows.stop])
        with open(self._rows, "rb") as stream:
            stream.seek(start)
            found = [GivenAnswer(*json.loads(line)) for line in stream.read(stop - start).splitlines()]
        first = self._first[rows.start : rows.stop + 1] - self._first[rows.start]
        return [found[one:following] for one, following in itertools.pairwise(first.tolist())]


def _make(
    work_dir: Path, folder: Path, file: GivenFile, questions: Questions, check: Callable[[GivenFacts], None]
) -> None:
    log.info("reading %s, once for this work directory", file.name)
    with scratch_folder(work_dir, FOLDER) as scratch:
        gathering = _Gathering(file, questions)
        with open(scratch / "unsorted", "wb") as stream:
            gathering.run(stream)
        check(gathering.facts)
        places, starts, sizes = gathering.in_order()
        made = scratch / "made"
        made.mkdir()
        _write_sorted(scratch / "unsorted", made / _ROWS, starts, sizes)
        first = np.searchsorted(places, np.arange(len(questions) + 1))
        ends = np.concatenate([[0], np.cumsum(sizes)])
        np.save(made / _FIRST, first.astype(np.int64))
        np.save(made / _STARTS, ends[first].astype(np.int64))
        (made / _FACTS).write_text(json.dumps(asdict(gathering.facts)))
        folder.parent.mkdir(exist_ok=True)
        move_in_once(made, folder)


def _write_sorted(unsorted: Path, target: Path, starts: np.ndarray, sizes: np.ndarray) -> None:
    """Records of a file, one behind the other in the order given."""
    with open(unsorted, "rb") as source, open(target, "wb") as stream:
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            source.seek(start)
            stream.write(source.read(size))
