"""The models of a run, found and fingerprinted but not loaded."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_engine.chat_settings import NO_CHAT_SETTINGS, ChatSettings
from data_engine.config import RunConfig
from data_engine.models import class_for
from data_engine.models.check import TOKENIZERS
from data_engine.models.checkpoints.adapter_folder import model_folder, parts, with_real_places
from data_engine.models.checkpoints.checkpoint import fingerprint, num_weights
from data_engine.models.checkpoints.json_files import read_json, reading_part
from data_engine.models.registry import AUTO, family_of
from data_engine.models.roles import folder_of, naming_flag
from data_engine.stages import COMPARED, TRAINED
from data_engine.store.absent import matching
from data_engine.store.file_hashes import HashFiles

# By these, two checkpoints are told apart that cannot be one model before and after tuning.
SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")
# Warned of where the two are one folder, or have the same bytes.
ONE_MODEL = (
    "the reward model is the {role} model itself: every reward of implicit is 0, and pairs by it tell no better "
    "answer from a worse one"
)

# What else, of a checkpoint of transformers, decides which ids a text becomes: how a template ends an answer.
_TEMPLATES = (
    "*token*.json", "*token*.model", "special_tokens_map.json", "vocab*", "merges.txt", "*chat_template*",
    "*processor_config.json", "generation_config.json", "conversation.py",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A model of the run."""

    folders: tuple[Path, ...]
    """its own, and those of its parts that lie elsewhere"""
    family: str
    vocabulary: str
    markers: tuple[str, ...]
    control_tokens: tuple[str, ...]
    """texts that a trainer of it would not read as text"""
    model_type: str | None
    """as config.json has it"""
    sizes: dict[str, int]
    """those of SIZES that config.json tells"""
    image_processor: str | None = None
    """class that makes its pixels, where the installed libraries choose it"""

    @classmethod
    def of_role(cls, config: RunConfig, role: str) -> "Checkpoint":
        """The checkpoint that the flags of a role name. Raises ModelError where it cannot be used."""
        with naming_flag(config, role):
            folder = str(folder_of(config, role))
            return cls.find(folder, getattr(config, f"{role}_model_name"), config.chat_of(role))

    @classmethod
    def find(cls, path: str, name: str | None = None, chat: ChatSettings = NO_CHAT_SETTINGS) -> "Checkpoint":
        """A folder or hub id, of the family that its config.json tells, which `name` may only confirm."""
        folder = model_folder(path)
        family = family_of(folder, name)
        code = class_for(family, chat)
        side = code.text_side(folder, chat)
        return cls(
            tuple(code.folders(folder)), family, side.vocabulary, side.markers, side.control_tokens,
            read_json(folder / "config.json").get("model_type"), _sizes(folder), side.image_processor,
        )  # fmt: skip

    @property
    def folder(self) -> Path:
        return self.folders[0]

    @property
    def told(self) -> str:
        """Where it lies, for a person to read."""
        return with_real_places(str(self.folder))

    @property
    def name(self) -> str | None:
        """The model name by which this family is loaded where config.json alone would mean another."""
        return AUTO if self.family == AUTO else None

    @property
    def num_weights(self) -> int:
        """How many numbers its weights are."""
        return num_weights(self.folders)

    def fingerprint(self, hash_files: HashFiles) -> str:
        """Names its content, see models.checkpoints.checkpoint.fingerprint."""
        content = fingerprint(self.folders, hash_files)
        if self.image_processor is None:
            return content
        return hashlib.sha256(f"{content} {self.image_processor}".encode()).hexdigest()

    def encodes_as(self, other: "Checkpoint") -> bool:
        """Whether both are certain to put the same ids to any text: same family, and same files that decide it."""
        return self.family == other.family and self._encoding() == other._encoding()

    def _encoding(self) -> dict[str, object]:
        """All that the ids of a text answer depend on, by name."""
        told: dict[str, object] = {"vocabulary": self.vocabulary}
        # A family of its own has its prompt in code.
        names = _TEMPLATES if self.family == AUTO else TOKENIZERS
        for file in sorted({file for name in names for file in matching(self.folder, name)}):
            told[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        if self.family == AUTO:
            raw = reading_part(read_json(self.folder / "config.json"))
            text = _text_part(raw) or {}
            told |= {name: raw.get(name, text.get(name)) for name in {*raw, *text} if "token" in name}
            # Of InternVL's own layout, whose chat formats have names.
            told |= {name: raw.get(name) for name in ("template", "system_message")}
        return told

    def as_json(self) -> dict:
        """Its folders are those that a person knows: of an adapter, the base's, and its own beside them."""
        told = {**asdict(self), "folders": list(map(str, self.folders)), "markers": list(self.markers)}
        if both := parts(self.folder):
            told |= {"adapter": str(both[0]), "folders": list(map(str, (both[1], *self.folders[1:])))}
        return told


def _text_part(raw: dict) -> dict | None:
    """What a config.json tells of the text decoder alone."""
    return next((raw[name] for name in ("text_config", "llm_config") if isinstance(raw.get(name), dict)), None)


def _sizes(folder: Path) -> dict[str, int]:
    raw = reading_part(read_json(folder / "config.json"))
    text = _text_part(raw) or raw
    return {name: text[name] for name in SIZES if isinstance(text.get(name), int)}


def have_same_tokenizer(checkpoints: Mapping[str, Checkpoint], has_texts: bool) -> bool:
    """Whether the models whose log-probs are compared score the same token ids of an answer.

    `has_texts`: answers come as text, which each model encodes by its own template.
    """
    trained, compared = checkpoints.get(TRAINED), [checkpoints[role] for role in COMPARED if role in checkpoints]
    if trained is None or any(one.vocabulary != trained.vocabulary for one in compared):
        return not compared
    return not has_texts or all(trained.encodes_as(one) for one in compared)


def why_sums_alone(checkpoints: Mapping[str, Checkpoint], compared: Sequence[str], has_texts: bool) -> str | None:
    """Why rewards of the models of the roles `compared` have no min and last; None where they have."""
    if have_same_tokenizer(checkpoints, has_texts):
        return None
    trained = checkpoints.get(TRAINED)
    other = [role for role in compared if trained and checkpoints[role].vocabulary != trained.vocabulary]
    why = "the files of tokenizer or chat template differ between the models, which encode given texts each"
    if trained is None:
        why = f"no {TRAINED} model is named, whose tokens those of the answers could be: answers go over as text"
    elif other:
        why = f"{' and '.join((TRAINED, *other))} model have different tokenizers: answers go over as text"
    return f"{why}, rewards compare sums and means, and min and last are null"


def kinship_warnings(
    before: Checkpoint, reward: Checkpoint, role: str = TRAINED, same_files: bool = False
) -> list[str]:
    """What speaks against the reward model being another model after DPO, as far as folders and configs tell.

    `role` is that of the model before. `same_files`: the content of both folders is known to be the same.
    """
    if same_files or before.folder == reward.folder:
        return [ONE_MODEL.format(role=role)]
    differing = [] if before.family == reward.family else [f"family {before.family} against {reward.family}"]
    differing += [
        f"{name} {size} against {reward.sizes[name]}"
        for name, size in before.sizes.items()
        if reward.sizes.get(name, size) != size
    ]
    if not differing:
        return []
    return [
        f"the reward model does not look tuned from the {role} model ({', '.join(differing)}): "
        "rewards then compare two different models, not one before and after DPO"
    ]
