"""The card of an export: what a run and an export know about themselves in, the text of README.md out.

The same facts give the same bytes. A card goes public, so of a local path it shows the last part alone; a hub id is
shown whole. It has no `configs:` and no `dataset_info:`: `datasets` caches a local folder whose README has `configs:`
by the folder's name alone, and refuses one whose `dataset_info` disagrees with its files.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_engine import of_pairing, stages
from data_engine.config_checks import has_effect
from data_engine.flag_files import each_path, told_of_hashes
from data_engine.flags import DEFAULTS, FIELD_NAMES
from data_engine.plural import plural
from data_engine.preferences import strategies
from data_engine.preferences.answers import REASONS
from data_engine.preferences.funnel import Funnel
from data_engine.rewards.sentences import SENTENCES

PICTURE = ".report/rewards.png"
"""Where the picture lies in an export; `datasets` takes nothing in a hidden folder for data."""

# By the last part of a format's name; the others hold pairs for DPO.
_METHODS = {"kto": "kto", "sft": "sft", "rm": "reward-modeling", "mpo": "mpo", "scored": "reward-modeling"}
_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
          (10**8, "10M<n<100M"), (10**9, "100M<n<1B")]  # fmt: skip
# Which part of a run a start does, on how many processes, and what else it writes: the pairs are the same without it.
_OF_A_START = (
    "continue_from_stage", "stop_after_stage", "num_shards", "shard_index", "threads", "memory_fraction", "grace_s",
    "debug", "export",
)  # fmt: skip
# Bound under the flag's name, but not in the form in which the flag takes it.
_NOT_AS_GIVEN = (
    "dataset", "columns", "chat_template", stages.TEMPLATE_KWARGS, *map(stages.kwargs_flag, stages.JUDGES),
    "yesno_template", "critic_template", "rule", "reference_columns", "device", "dtype", "unit_size",
)  # fmt: skip
# Flags that name a file, by names that do not say so.
_FILES = ("chat_template", "yesno_template", "critic_template", "rule", "zero3_config", "answers")
# Bound values that the sentences of the sources name.
_TOLD = ("yesno_template", "critic_template", "rule")
_FIELD = re.compile(r"\{(\w+)\}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# A folder of the hub's local cache names the model and the commit that it holds.
_SNAPSHOT = re.compile(r"/models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})/?$")
# The flag of a role's model, not that of an adapter's base.
_MODEL = re.compile(r"(?<!_base)_model_path$")
# From the root, a home or the folder above to the last part of a path, wherever it stands in a value.
_FOLDERS = re.compile(r"""(?<![\w./~-])(?:file://|~[\w.-]*|\.{1,2})?/(?:[^\s/][^/\n"',=|;:<>]*/)+""")


@dataclass(frozen=True)
class Card:
    """What the card of an export tells."""

    format: str
    """its name in the table of formats"""
    sentence: str
    """what the format is; plain text"""
    columns: Sequence[tuple[str, str]]
    """(name, meaning) of each column, plain text"""
    usage: str
    """how it is loaded and trained on; Markdown"""
    rows: int
    changed: Sequence[tuple[str, int]]
    """what the export changed or left out: (sentence, count), plain text"""
    run_file: Mapping
    """run.json"""
    settings: Mapping
    """of the pairing, from the metadata of pairs.parquet"""
    funnel: Funnel
    licence: str | None
    """an identifier of the hub; None for an export that stays local"""
    has_picture: bool
    """whether the picture PICTURE lies beside the card"""


def text(card: Card) -> str:
    """README.md of an export."""
    sections = [
        ("", _opening(card)),
        ("Models", _models(card.run_file)),
        ("Answers", _answers(card.run_file)),
        ("Rewards and pairs", _pairing(card)),
        ("Funnel", _table(("", "count"), [(name.strip(), f"{count:,}") for name, count in _funnel(card.funnel)])),
        ("Changed or left out by this export", _changed(card)),
        ("Columns", _table(("column", "meaning"), card.columns) if card.columns else ""),
        ("Use", card.usage.strip()),
        ("Made with", _made_with(card)),
    ]
    written = [f"## {title}\n\n{body}" if title else body for title, body in sections if body]
    return _front_matter(card) + "\n" + "\n\n".join(written) + "\n"


def _front_matter(card: Card) -> str:
    values = {"license": card.licence} if card.licence else {}
    values |= {
        "pretty_name": _title(card),
        "task_categories": ["image-text-to-text"],
        "tags": ["preference", method(card.format), "data-engine"],
        "size_categories": [next((name for limit, name in _SIZES if card.rows < limit), "n>1T")],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10**6)}---\n"


def method(format_name: str) -> str:
    """How one trains on a format: "dpo", "kto", ..."""
    return _METHODS.get(format_name.rpartition("-")[2], "dpo")


def _title(card: Card) -> str:
    # One line of plain text: this is a heading, and a value that the hub shows.
    return _one_line(f"Preferences for {_dataset(card.run_file)}, {card.format}")


def _opening(card: Card) -> str:
    lines = [f"# {_escaped(_title(card))}", f"{_escaped(card.sentence)} {plural(card.rows, 'row')}."]
    if card.has_picture:
        alt = "Rewards and lengths of chosen and rejected answers, and the funnel"
        lines.append(f"![{alt}]({PICTURE})")
    return "\n\n".join(lines)


def _models(run_file: Mapping) -> str:
    config, bound, models = _of_stages(run_file), run_file.get("bound", {}), run_file.get("models", {})
    rows = []
    for role in _roles(config):
        revision, family = config.get(f"{role}_model_revision") or "", models.get(role, {}).get("family", "")
        shown = _linked(*_model(role, run_file), revision)
        rows.append([role, *shown, *map(_escaped, (family, bound.get(stages.model_key(role), "")))])
        if models.get(role, {}).get("adapter"):
            # The hash above is of both: of the adapter, and of what it is merged into.
            rows[-1][0] += ", an adapter"
            rows.append([f"base of {role}", *_linked(*_base(role, run_file)), _escaped(family), ""])
    return _table(("role", "model", "revision", "family", "sha256 of its content"), rows, escaped=True) if rows else ""


def _linked(name: str, commit: str, revision: str = "") -> list[str]:
    """Two cells: a model, and its revision."""
    if commit and revision != commit:
        # The commit is what a branch or a tag pointed to when the run began.
        revision = f"{revision} ({commit})" if revision else commit
    shown = f"[{_escaped(name)}](https://huggingface.co/{name})" if commit else _escaped(name)
    return [shown, _escaped(revision or "local folder")]


def _model(role: str, run_file: Mapping) -> tuple[str, str]:
    """What the model of a role is called, and its commit: a hub id whole; of a local folder the last part, and ""."""
    told = run_file.get("models", {}).get(role, {})
    return _called(told.get("adapter") or (told.get("folders") or [""])[0], run_file["config"][f"{role}_model_path"])


def _base(role: str, run_file: Mapping) -> tuple[str, str]:
    """What the base of a role's adapter is called, and its commit: see _model."""
    folder = (run_file.get("models", {}).get(role, {}).get("folders") or [""])[0]
    return _called(folder, folder or run_file["config"].get(f"{role}_base_model_path") or "")


def _called(folder: str, given: str) -> tuple[str, str]:
    found = _SNAPSHOT.search(folder)
    return (f"{found['owner']}/{found['name']}", found["commit"]) if found else (_shown_path(given), "")


def _answers(run_file: Mapping) -> str:
    config, bound = run_file.get("config", {}), run_file.get("bound", {})
    lines = [f"Questions: {_escaped(_dataset(run_file))}"]
    details = [f"{name} {config[f'dataset_{name}']}" for name in ("split", "revision") if config.get(f"dataset_{name}")]
    details += [f"sha256 of its content {bound['dataset']}"] if bound.get("dataset") else []
    lines[0] += f" ({_escaped(', '.join(details))})." if details else "."
    elsewhere = config.get("answers")
    if elsewhere:
        lines.append(f"The answers were not sampled by this run: they come from {_escaped(_shown_path(elsewhere))}.")
    told = run_file.get("sampler") or {}
    if told.get("same_bytes") is False:
        lines.append(_escaped(f"The answers were drawn by {told['name']} {told['version']}: {told['told']}."))
    # What would have shaped sampled answers is bound all the same.
    shaping = stages.GIVEN if elsewhere else stages.SAMPLING_BY_VLLM
    names = [*shaping.settings, "question", "system", "columns", "limit", "device", "dtype"]
    names, bound = [name for name in names if name != "answers_vocabulary"], bound | {"limit": config.get("limit")}
    # Not `in (None, False)`: 0 equals False, and greedy answers have a temperature of 0.
    set_to = [(name, bound[name]) for name in names if bound.get(name) is not None and bound[name] is not False]
    hashed = ("chat_template", "answers")
    rows = [(name, f"sha256 {value}" if name in hashed else _value(value)) for name, value in set_to]
    return "\n\n".join([*lines, _table(("setting", "value"), rows)])


def _pairing(card: Card) -> str:
    config, settings = card.run_file.get("config", {}), card.settings
    sources = stages.chosen(config.get("rewards") or stages.DEFAULT)
    lines = [f"Sources of reward: {_escaped(', '.join(sources))}."]
    told = {"beta": _value(settings.get("beta", config.get("beta")))}
    bound = {name: value for name, value in card.run_file.get("bound", {}).items() if name in _TOLD}
    told |= {name: told_of_hashes(one) if isinstance(one, Mapping) else str(one) for name, one in bound.items()}
    told |= {role: _model(role, card.run_file)[0] for role in _roles(config)}
    before = stages.compared(card.run_file)[0]
    told["before"] = f"{before} model {told.get(before, 'not named')}"
    lines += [_filled(SENTENCES[name], told) for name in sources if name in SENTENCES]
    shown = {"strategy": strategies.DEFAULT} | dict(settings)
    shown = {name: value for name, value in shown.items() if has_effect(name, shown["strategy"], sources)}
    return "\n\n".join([*lines, _table(("setting", "value"), [(name, _value(value)) for name, value in shown.items()])])


def _filled(sentence: str, told: Mapping[str, str]) -> str:
    """A sentence with what is told of a run, as Markdown; what is not told is not named."""
    return _FIELD.sub(lambda found: _escaped(told.get(found[1], "not named")), sentence)


def _funnel(funnel: Funnel) -> list[tuple[str, int]]:
    """The lines of the funnel, in words that a reader who has not run the program knows."""
    lines = []
    for name, count in funnel.lines():
        reason = name.strip().removeprefix("not ranked: ")
        lines.append(
            (f"not ranked: {REASONS[reason]}" if name.strip() != reason and reason in REASONS else name, count)
        )
    # The last line counts the pairs of the default dataset; an export has rows of its own.
    return [("pairs in the default dataset" if name == "written" else name, count) for name, count in lines]


def _changed(card: Card) -> str:
    if not any(count for _, count in card.changed):
        return "Nothing."
    rows = [(sentence, f"{count:,}") for sentence, count in card.changed if count]
    return _table(("what", "count"), rows)


def _made_with(card: Card) -> str:
    versions = [f"{name} {version}" for name, version in card.run_file.get("versions", {}).items()]
    command = command_line(card.run_file, card.settings)
    # Longer than any run of backticks inside.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return (
        f"The answers and pairs were made by this command; names stand in the place of local paths:\n\n"
        f"{fence}sh\n{command}\n{fence}\n\nVersions: {_escaped(', '.join(versions))}."
    )


def command_line(run_file: Mapping, settings: Mapping) -> str:
    """The `data-engine run` that makes these pairs again: the flags that differ from their defaults, paths shortened.

    run.json has the flags of the first start. What was bound later, and the settings of the last pairing, win.
    """
    config = _of_stages(run_file)
    # The settings of a pairing tell what is not the default.
    config |= {name: DEFAULTS[name] for name in of_pairing.FLAGS}
    newer = {name: value for name, value in run_file.get("bound", {}).items() if name not in _NOT_AS_GIVEN}
    config |= {name: value for name, value in (newer | dict(settings)).items() if name in config}
    strategy, sources = config["strategy"], stages.chosen(config.get("rewards") or stages.DEFAULT)
    config = {name: value for name, value in config.items() if has_effect(name, strategy, sources)}
    words = []
    for name, value in config.items():
        # What an earlier version's flag was called, this one may not know.
        if name not in FIELD_NAMES or name in _OF_A_START or value is None or value == DEFAULTS.get(name):
            continue
        if value is True or value is False:
            words += [[f"--{name}"]] if value else []
            continue
        shown = _path_of(name, run_file) if _is_path(name) else _without_folders(_value(value))
        words.append([f"--{name}", _quoted(shown)])
    return " \\\n  ".join(["data-engine run", *(" ".join(flag) for flag in words)])


def _roles(config: Mapping) -> list[str]:
    """The roles whose models are named."""
    return [name.removesuffix("_model_path") for name, value in config.items() if value and _MODEL.search(name)]


def _of_stages(run_file: Mapping) -> dict:
    """The flags of run.json without those of models that no stage of the run needs, which run.json does not have."""
    config, models = run_file.get("config", {}), run_file.get("models", {})
    unused = {flag for role in _roles(config) if models and role not in models for flag in stages.model_flags(role)}
    return {name: value for name, value in config.items() if name not in unused}


def _quoted(value: str) -> str:
    """A word of a command line, on one line: a card with control characters would be no text any more."""
    if value.isprintable():
        return shlex.quote(value)
    letters = value.replace("\\", "\\\\").replace("'", "\\'")
    shown = "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in letters)
    return f"$'{shown}'"


def _is_path(name: str) -> bool:
    return name.endswith(("_path", "_dir", "_root")) or name in _FILES


def _path_of(name: str, run_file: Mapping) -> str:
    """The value of a flag that names a folder, a file or a hub id, as it may be shown."""
    if name == "work_dir":
        # The same card wherever a run lies.
        return "WORK_DIR"
    if name == "dataset_path":
        return _dataset(run_file)
    if name.endswith("_base_model_path"):
        return _base(name.removesuffix("_base_model_path"), run_file)[0]
    if name.endswith("_model_path"):
        return _model(name.removesuffix("_model_path"), run_file)[0]
    return each_path(run_file["config"][name], _shown_path)


def _dataset(run_file: Mapping) -> str:
    """The name of the dataset: the last part of a path, a hub id whole."""
    given = str(run_file.get("config", {}).get("dataset_path", ""))
    # A start makes the path of a file or folder absolute, and leaves a hub id as it is.
    found = str(run_file.get("places", {}).get("dataset_path") or given)
    return given if found == given and _HUB_ID.fullmatch(given) else _shown_path(found)


def _shown_path(path: str) -> str:
    """The last part of a local path."""
    return Path(str(path).replace("\\", "/")).name or "."


def _without_folders(value: str) -> str:
    return _FOLDERS.sub("", value)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _one_line(value: str) -> str:
    """On one line, without control characters, and no longer than a heading."""
    shown = "".join(letter if letter.isprintable() else " " for letter in value)
    shown = " ".join(shown.split())
    return shown if len(shown) <= 200 else f"{shown[:197]}..."


def _escaped(value: object) -> str:
    """Plain text as Markdown that shows it, on one line: no markup, no HTML, no cell of a table ends in it."""
    line = _one_line(_without_folders(str(value)))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore within a word, or a dash or a full stop within a line, marks nothing up.
    return re.sub(r"([\\`*\[\]#|~!$]|(?<!\w)_|_(?!\w))", r"\\\1", line)


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]], escaped: bool = False) -> str:
    cells = [heading, ["---"] * len(heading), *(row if escaped else map(_escaped, row) for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
