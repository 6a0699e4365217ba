"""What weights.py asks for, with torch: `python -m data_engine.planning.heavy` reads the question from standard input.

Nothing is loaded: weights are known by the headers of their files, models by the meta device, prompts by tokenizers.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from PIL.Image import Image

from data_engine.config import RunConfig
from data_engine.errors import BadRow, UserError
from data_engine.job import by_vllm, given, run_file
from data_engine.job.checkpoints import Checkpoint, kinship_warnings, why_sums_alone
from data_engine.job.plan import NO_IMAGES
from data_engine.models import class_for, family_class
from data_engine.models.check import Checked, check_loadable
from data_engine.models.checkpoints.checkpoint import num_weights
from data_engine.models.describe import told
from data_engine.models.device import Target, pick_device, pick_dtype
from data_engine.models.registry import family_of
from data_engine.models.roles import folder_of, naming_flag
from data_engine.models.sharding import placement
from data_engine.pipeline.judge import said_ids
from data_engine.planning import sizes
from data_engine.planning.context_length import Room
from data_engine.planning.found import Found, telling_unread
from data_engine.planning.weights import Wanted
from data_engine.processes import ending
from data_engine.processes.ranks import Ranks
from data_engine.questions.dataset import Question, open_questions, read_images
from data_engine.questions.first_rows import most_frequent, none_usable
from data_engine.questions.images import BadImage
from data_engine.rewards.yesno import YesNoTemplate
from data_engine.stages import COMPARED, PAIR, TRAINED
from data_engine.store.file_hashes import RememberedHashes
from data_engine.vllm_settings import require_gpus

# Rows whose prompts are counted.
PROMPTS = 8
# Judges that are asked about a row in words of their own: a system text or earlier turns they are not shown as such.
REPHRASING = ("yesno", "critic")
PromptCounter = Callable[[Question, list[Image]], int]
"""tokens of the prompt of a question with these pictures"""


def look(wanted: Wanted) -> dict:
    """Problems as [check, message or UserError], warnings, and what the plan goes by: see _Look's methods."""
    return _Look(wanted).told


class _Look:
    """The checks, a method each. `noted` has what they find wrong, `wanted.found` what was found without torch."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted, self.config = wanted, wanted.found.config
        self.noted = Found(self.config)
        self.told: dict = {"warnings": [], "models": {}, "prompts": {}}
        self.folders: dict[str, Path] = {}
        self.families: dict[str, str] = {}
        self.sound: list[str] = []
        self._weights()
        self._yesno()
        self._answers()
        target = self._target()
        if target is not None:
            self._vllm(target)
            self._bound(target)
            self._memory(target)
        self._prompts()
        self.told["problems"] = [(problem.check, problem.error) for problem in self.noted.problems]

    def _weights(self) -> None:
        given = self.wanted.found
        for role in self.wanted.roles:
            with self.noted.noting("weights"), naming_flag(self.config, role):
                # Links to an adapter and its base last as long as the process that laid them.
                self.folders[role] = given.folders.get(role) or folder_of(self.config, role)
                self.families[role] = given.families.get(role) or self._family(role)
        with self.noted.noting("weights"):
            check_loadable(self.config, self.folders, self.families, self.sound)
        both, checkpoints = self.config.stages.compared, {}
        with self.noted.noting("weights"):
            roles = [role for role in COMPARED if role in self.sound]
            checkpoints = {role: Checkpoint.of_role(self.config, role) for role in roles}
        if checkpoints.keys() >= set(both):
            self.told["warnings"] += kinship_warnings(*map(checkpoints.get, both), role=both[0])
            if told := why_sums_alone(checkpoints, both, False):
                self.told["warnings"].append(told)

    def _yesno(self) -> None:
        """A judge that cannot say yes or no, which a run would find out behind its stage of sampling."""
        if "yesno" in self.sound:
            with self.noted.noting("weights"):
                chat = self.config.chat_of("yesno")
                side = class_for(self.families["yesno"], chat).text_side(self.folders["yesno"], chat)
                if side.word_ids is not None:
                    # The words of its template are checked elsewhere, and make no prompt open a thought.
                    said_ids(side, YesNoTemplate.read(None))

    def _family(self, role: str) -> str:
        return family_of(self.folders[role], getattr(self.config, f"{role}_model_name"))

    def _answers(self) -> None:
        """--answers held against the model whose ids they have."""
        if self.wanted.answers and (TRAINED in self.sound or self.config.instruct_model_path is None):
            with self.noted.noting("answers"):
                given.check(self.config, self._questions())

    def _questions(self):
        if self.wanted.found.questions is None:
            self.wanted.found.questions = open_questions(self.config, self.wanted.found.further_columns)
        return self.wanted.found.questions

    @property
    def _pairs_alone(self) -> bool:
        return self.config.continue_from_stage == PAIR

    def _target(self) -> Target | None:
        with self.noted.noting("device"):
            # Pairs are made without a GPU.
            device = pick_device("cpu" if self._pairs_alone else self.config.device)
            target = Target(device, pick_dtype(self.config.dtype, device))
            self.told |= {"device": device.type, "dtype": target.dtype_name}
            return target
        return None

    def _vllm(self, target: Target) -> None:
        if self.config.draws_by_vllm and TRAINED in self.sound:
            with self.noted.noting("vllm_args"):
                trained = Checked(self.folders[TRAINED], self.families[TRAINED])
                by_vllm.check(self.config, trained, target.device.type)
                if target.device.type == "cuda":
                    require_gpus(self.config.vllm_options, torch.cuda.device_count())

    def _bound(self, target: Target) -> None:
        """What units of the work_dir were computed with: models, and device and dtype where they are chosen here."""
        if self.wanted.bound:
            work_dir = Path(self.config.work_dir)
            with self.noted.noting("work_dir"):
                # Jobs that are submitted from a machine without a GPU may have one.
                elsewhere = self.config.device == "auto" and target.device.type == "cpu"
                chosen = None if elsewhere or self._pairs_alone else target
                bound = run_file.bound_settings(self.config, len(self._questions()), chosen)
                bound = self.wanted.found.known(bound)
                if run_file.has_units(work_dir):
                    with telling_unread(work_dir, "models", self.told["warnings"]):
                        models = {role: Checkpoint.of_role(self.config, role) for role in self.sound}
                        bound |= run_file.content(RememberedHashes(work_dir), checkpoints=models)
                run_file.require_same(work_dir, bound, self.config.stages)

    def _memory(self, target: Target) -> None:
        """What each model takes, and whether the largest fits a rank, or is split."""
        sizes = {}
        for role in self.sound:
            with self.noted.noting("weights"), naming_flag(self.config, role):
                folder, family = self.folders[role], self.families[role]
                sizes[role] = num_weights(family_class(family).folders(folder)) * target.dtype.itemsize
                line = told(Checked(folder, family), target.dtype)
                self.told["models"][role] = {"family": family, "weight_bytes": sizes[role], "told": line}
        if sizes:
            decision = placement.decide(
                self.config.zero3, max(sizes.values()), self.wanted.ranks, target.device, self.config.memory_fraction
            )
            self.told["memory"] = decision.as_json()
            needed = decision.weights_bytes + decision.working_room_bytes
            if not decision.split and needed > decision.memory_bytes:
                self.told["warnings"].append(f"the largest model may not fit: {decision}")

    def _prompts(self) -> None:
        """Tokens of the prompts of the first rows, those of pictures included, by role, on average; and whether the
        model has room for them.
        """
        if not self.wanted.dataset:
            return
        rows, is_refused, is_told = list(self._readable(self._first_unit()[:PROMPTS])), False, False
        for role in self.sound:
            # A count that a family cannot give without its weights is left out of the plan.
            with contextlib.suppress(UserError):
                counter, refused = self._prompt_counter(role), []
                counts = list(self._counts(counter, rows, refused))
                if role not in REPHRASING:
                    is_refused = is_refused or self._refused(role, counts, refused, counter)
                # What one model leaves out, no other one is shown.
                if counts:
                    self.told["prompts"][role] = sum(counts) / len(counts)
                    is_told = is_told or self._room(role, counts, counter)

    def _first_unit(self) -> range:
        self._questions()
        return sizes.unit_rows(self.wanted.found)[0]

    def _readable(self, rows: range) -> Iterator[tuple[Question, list[Image]]]:
        """The rows that can be used, and their pictures."""
        for question in self._questions().rows(rows):
            with contextlib.suppress(BadRow, BadImage):
                yield question, read_images(question, self.config.max_megapixels)

    def _counts(
        self, counter: PromptCounter, rows: Iterable[tuple[Question, list[Image]]], refused: list[str]
    ) -> Iterator[int]:
        """Of those of which the model makes a prompt; why it makes none of the others goes to `refused`."""
        for question, images in rows:
            try:
                yield counter(question, images)
            except (BadRow, BadImage) as problem:
                refused.append(str(problem))
            except UserError:
                continue

    def _prompt_counter(self, role: str) -> PromptCounter:
        folder, chat = self.folders[role], self.config.chat_of(role)
        code = class_for(self.families[role], chat)
        native = getattr(code, "prompt_counter", None)
        if native is not None:
            count = native(folder)
            return lambda question, images: count(question.conversation)
        maker, most = code.prompt_maker(folder, chat), self.config.max_megapixels
        return lambda question, images: maker.prompt(question.conversation, images, False, most).length

    def _refused(self, role: str, counts: list[int], refused: list[str], counter: PromptCounter) -> bool:
        """Note the rows of which the model makes no prompt, if any: a problem where they are the whole first unit, for
        which a run is refused. Counts and reasons of more rows are added.
        """
        room = Room.of(self.wanted.found, role, family_class(self.families[role]).describe(self.folders[role]), counts)
        if room is None or not refused:
            return False
        if room.may_refuse and not counts:
            counts += self._counts(counter, self._readable(self._first_unit()[PROMPTS:]), refused)
        reason, number = most_frequent(refused)
        if room.may_refuse and number == len(self._first_unit()):
            without = "" if self._questions().has_images else f"; {NO_IMAGES}"
            self.noted.note("prompts", UserError(
                f'{role}_model_path "{room.path}": {none_usable(number)}, for this reason: {reason}{without}'
            ))  # fmt: skip
        else:
            self.told["warnings"].append(
                f"{len(refused)} of the first {len(refused) + len(counts)} rows that can be read would be left out for "
                f"the {role} model; most often: {reason}"
            )
        return True

    def _room(self, role: str, counts: list[int], counter: PromptCounter) -> bool:
        """Note the questions that the run would leave out as too long, if any: a problem where they are the whole first
        unit, for which a run is refused.
        """
        model = family_class(self.families[role]).describe(self.folders[role])
        room = Room.of(self.wanted.found, role, model, counts)
        if room is None or not room.too_long(counts):
            return False
        if room.may_refuse and room.none_fits(counts):
            for count in self._counts(counter, self._readable(self._first_unit()[PROMPTS:]), []):
                counts.append(count)
                if not room.none_fits([count]):
                    break
        # A row that is left out for another reason keeps a run from being refused.
        if room.may_refuse and room.none_fits(counts) and len(counts) == len(self._first_unit()):
            self.noted.note("room", UserError(room.told(counts)))
        else:
            self.told["warnings"].append(room.told(counts))
        return True


def _wanted(told: Mapping) -> Wanted:
    # Fields that were wrong have their defaults here, which other fields may contradict.
    config = RunConfig.draft(told["config"], told["wrong"]).config
    found = Found(config, frozenset(told["wrong"]))
    return Wanted(found, tuple(told["roles"]), told["dataset"], told["answers"], told["bound"], Ranks(**told["ranks"]))


def main() -> None:
    """Answer in one line of JSON, the last one that is written."""
    answer = look(_wanted(json.load(sys.stdin)))
    answer["problems"] = [(check, str(error)) for check, error in answer["problems"]]
    print(f"\n{json.dumps(answer)}", flush=True)


if __name__ == "__main__":
    main()
    ending.without_collection()
