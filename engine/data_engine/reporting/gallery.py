"""The gallery's data: the chosen pairs with their texts, thumbnails and heat, as the page's script reads them."""

import base64
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_engine.plural import plural
from data_engine.preferences.pairs_metadata import metadata_of
from data_engine.questions import images
from data_engine.questions.dataset import Questions
from data_engine.questions.images import Exif
from data_engine.reporting.answers import Answers, pieces_of_run, read_answers
from data_engine.reporting.choice import Choice
from data_engine.reporting.heat import Span
from data_engine.reporting.pair_numbers import SIDES, PairNumbers, read_rows
from data_engine.reporting.render import escaped_json, render
from data_engine.reporting.thumbnails import QUALITIES, Gallery, Shown, read_gallery
from data_engine.stages import SAMPLING, compared
from data_engine.store.units import DamagedUnitError, read_unit_facts

# Of the page; its texts and charts take the rest of 40 MB.
MOST_BYTES = 36_000_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What the pairs of a report come from."""

    work_dir: Path
    run_file: Mapping
    questions: Questions
    max_megapixels: float = 64
    exif: Exif = "apply"


@dataclass
class PageData:
    """What the page's script reads, and what the page says of it."""

    pairs: list[dict]
    images: list[str]
    """base64 of JPEG"""
    answers: Answers
    told: list[str] = field(default_factory=list)
    questions: dict[int | str, Shown] = field(default_factory=dict)
    """those of the pairs"""

    @property
    def disagrees(self) -> bool:
        """Whether some pair has rewards that may disagree: several of them rank."""
        return any(pair.get("disagreement") is not None for pair in self.pairs)

    def warning(self, image_root: Path | None) -> str | None:
        """How many questions lack their pictures on the page, and why; None where every picture could be read."""
        unread = {idx: shown for idx, shown in self.questions.items() if shown.is_unread}
        if not unread:
            return None
        whole = len(unread) + sum(bool(shown.pictures) for shown in self.questions.values())
        first, shown = next(iter(unread.items()))
        told = f"the report lacks the pictures of {len(unread):,} of {whole:,} questions, which cannot be shown; "
        told += f"of idx {first!r:.100}: {shown.problem}"
        if not any(shown.missing for shown in unread.values()):
            return told
        return f"{told}. Where the pictures are now is said by --image_root, which is {image_root or 'not given'}"

    def as_json(self) -> dict:
        """For the page."""
        return {"pairs": self.pairs, "images": self.images, "no_heat": self.answers.no_heat}


def gallery_data(
    run: Run, numbers: PairNumbers, choice: Choice, extra: Mapping[str, np.ndarray], limit: float = MOST_BYTES
) -> PageData:
    """The pairs of `choice` from the file of `numbers`; `extra` are further numbers by row of that file.

    Its data has `limit` bytes at most: pairs beyond are left out, from the end of the choice, and `told` says so.
    """
    rows, rewards = read_rows(numbers.path, choice.rows), {name: numbers.called(name) for name in numbers.rewards()}
    decode = functools.partial(images.decode, max_megapixels=run.max_megapixels, exif=run.exif)
    gallery = read_gallery(run.questions, [row["idx"] for row in rows], decode, _digest_of(run))
    answers = _answers(run, numbers.path, rows)
    found = [
        _pair(row, gallery, answers, rewards) | {name: _number(values[place]) for name, values in extra.items()}
        for row, place in zip(rows, choice.rows.tolist(), strict=True)
    ]
    data = PageData(found, [], answers, list(choice.told))
    _fit(data, gallery, limit)
    data.questions = {pair["idx"]: gallery.questions[pair["idx"]] for pair in data.pairs}
    data.pairs.sort(key=lambda pair: -math.inf if pair["margin"] is None else pair["margin"], reverse=True)
    for number, pair in enumerate(data.pairs):
        pair["number"] = number
    return data


def rendered(template: str, run: Run, data: PageData, **values: object) -> str:
    """A page with a gallery; what it lacks is logged, too."""
    warning = data.warning(run.questions.image_root)
    if warning:
        log.warning("%s", warning)
    return render(
        template, data.as_json(), told=data.told, before=compared(run.run_file)[0], warning=warning,
        no_heat=data.answers.no_heat, disagrees=data.disagrees, **values,
    )  # fmt: skip


def _digest_of(run: Run) -> Callable[[int], str | None]:
    """Row of the dataset -> its digest when its answers were sampled; None where its unit is not there any more."""
    size = run.run_file.get("units", {}).get("unit_size")

    @functools.cache
    def digests(unit: int) -> Sequence[str | None]:
        try:
            return read_unit_facts(run.work_dir, SAMPLING.name, unit)[0]["rows"]
        except DamagedUnitError:
            return ()

    def digest(row: int) -> str | None:
        if size is None:
            return None
        unit, at = divmod(row, size)
        return digests(unit)[at] if at < len(digests(unit)) else None

    return digest


def _answers(run: Run, path: Path, rows: Sequence[Mapping]) -> Answers:
    same = run.run_file.get("same_tokenizer", metadata_of(path, "same_tokenizer").get("same_tokenizer", False))
    has_implicit = not rows or any(row.get("chosen_sum") is not None for row in rows)
    pieces = pieces_of_run(run.run_file, bool(same), has_implicit)
    wanted = {(row["idx"], row[f"{side}_index"]) for row in rows for side in SIDES}
    return read_answers(run.work_dir, wanted, pieces, compared(run.run_file))


def _pair(row: Mapping, gallery: Gallery, answers: Answers, rewards: Mapping[str, str]) -> dict:
    shown, heated = gallery.questions[row["idx"]], [_heat(row, side, answers) for side in SIDES]
    return {
        "number": 0,
        "idx": row["idx"],
        "question": shown.text,
        "before": shown.before,
        "chosen": row["chosen"],
        "rejected": row["rejected"],
        "status": row["status"],
        "margin": _number(row["margin"]),
        "words": [row[f"{side}_words"] for side in SIDES],
        "answers": [row[f"{side}_index"] for side in SIDES],
        "rewards": {called: [_number(row[f"{side}_{name}"]) for side in SIDES] for name, called in rewards.items()},
        "pictures": shown.pictures,
        "problem": None if shown.pictures else shown.problem,
        "more_pictures": shown.num_left_out,
        "heat": [heat for heat, _ in heated],
        "no_heat": [None if answers.no_heat else why for _, why in heated],
    }


def _heat(row: Mapping, side: str, answers: Answers) -> tuple[dict | None, str | None]:
    """The heat of an answer of a pair, or why it has none."""
    key = (row["idx"], row[f"{side}_index"])
    spans = answers.spans.get(key)
    if not spans:
        return None, answers.why_no_heat.get(key, "its unit is not there any more")
    if "".join(span.text for span in spans) != row[side]:
        return None, "it was sampled anew since the pair was made"
    return heat_json(spans), None


def heat_json(spans: Sequence[Span]) -> dict:
    """The spans of an answer as the script reads them: how many UTF-16 units of its text each is long, and its d_t."""
    several = {str(at): span.num_tokens for at, span in enumerate(spans) if span.num_tokens > 1}
    found = {
        "sizes": [len(span.text.encode("utf-16-le")) // 2 for span in spans],
        "values": [round(span.difference, 4) for span in spans],
    }
    return found | ({"several": several} if several else {})


def _number(value: float | None) -> float | None:
    """Six figures; None for what JSON has no number for."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def _fit(data: PageData, gallery: Gallery, limit: float) -> None:
    """Encode the thumbnails, at a lower quality or fewer where the page would be too large."""

    def size() -> int:
        return sum(map(len, gallery.jpegs)) * 4 // 3 + 4 * len(gallery.jpegs)

    sizes = [len(escaped_json(pair)) for pair in data.pairs]
    if size() + sum(sizes) > limit:
        gallery.lower_quality()
        data.told.append(f"thumbnails at JPEG quality {QUALITIES[1]}, so that the page stays below 40 MB")
    if size() + sum(sizes) > limit:
        number, used = _most(data.pairs, sizes, gallery, limit)
        left_out = plural(len(data.pairs) - number, "pair")
        data.told.append(f"{left_out} left out, so that the page stays below 40 MB")
        del data.pairs[number:]
        kept = sorted(used)
        places = {old: new for new, old in enumerate(kept)}
        gallery.jpegs = [gallery.jpegs[old] for old in kept]
        for pair in data.pairs:
            pair["pictures"] = [places[old] for old in pair["pictures"]]
    data.images = [base64.b64encode(jpeg).decode() for jpeg in gallery.jpegs]


def _most(pairs: Sequence[Mapping], sizes: Sequence[int], gallery: Gallery, limit: float) -> tuple[int, set[int]]:
    """How many of the pairs fit, from the first on, and the thumbnails that they use."""
    total, used = 0, set()
    for number, (pair, size) in enumerate(zip(pairs, sizes, strict=True)):
        new = set(pair["pictures"]) - used
        total += size + sum(4 * len(gallery.jpegs[one]) // 3 + 4 for one in new)
        if total > limit:
            return number, used
        used |= new
    return len(pairs), used
