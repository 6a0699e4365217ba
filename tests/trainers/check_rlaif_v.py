"""Is an export what RLAIF-V's trainer reads? check_rlaif_v.py EXPORT_FOLDER rlaif-v|rlaif-v-logps EXPECTED_FOLDER

Without a checkout the written rules of its loader are held. With --checkout, a clone of github.com/RLHF-V/RLAIF-V, its
own loader runs: `main` (83d917b) takes rlaif-v-logps alone, the head of pull request 37 (be9ac29) both. PyPI has
neither; they need torch, "transformers<5", datasets, pandas, requests, pillow and sentencepiece. The pass of the
reference model over rlaif-v needs CUDA; what it would be given is looked at in its place.
"""

import importlib.machinery
import importlib.util
import io
import json
import math
import os
import re
import sys
import types
from pathlib import Path

import checking
import pyarrow.parquet as pq
from checking import PICTURE, Job, Row, Wrong
from PIL import Image

COLUMNS = {"idx", "question", "chosen", "rejected", "image"}
# What its `main` reads besides, in files with log-probs.
LOGPS_COLUMNS = COLUMNS | {"ds_name", "origin_dataset", "origin_split", "image_path", "logps"}
LOGPS_FILE = re.compile(r"RLAIF-V-Dataset-withlogp_\d+-\d+\.parquet")
# The fewest tokens of LLaVA-1.5's prompt: its picture.
IMAGE_TOKENS = 576


def require_files(files: list[Path], with_logps: bool) -> None:
    """Require the names by which the loader tells files with log-probs from those without."""
    for path in files:
        if with_logps != bool(LOGPS_FILE.fullmatch(path.name)) or with_logps != ("logp" in path.name):
            raise Wrong(f"{path.name} is not a name for a file {'with' if with_logps else 'without'} log-probs")
    if not files:
        raise Wrong("no parquet file")


def require_columns(path: Path, with_logps: bool) -> None:
    columns = set(pq.read_schema(path).names)
    if missing := (LOGPS_COLUMNS if with_logps else COLUMNS) - columns:
        raise Wrong(f"{path.name} has no column {', '.join(sorted(missing))}")
    # Pull request 37 reads the one as JSON of another kind, and takes a file with the other for one with log-probs.
    if not with_logps and (extra := {"logps", "origin_split"} & columns):
        raise Wrong(f"{path.name} has the column {', '.join(sorted(extra))}, which its loader misreads")


def require_logps(text: str) -> None:
    """Require sum, mean and per-token log-probs of both answers, as the reference model gave them."""
    values = json.loads(text)
    values = values["logps"] if isinstance(values, dict) else values
    if len(values) != 6:
        raise Wrong(f"logps has {len(values)} values, expected sum, mean and a list for each of two answers")
    for total, mean, per_token in (values[:3], values[3:]):
        if not (math.isfinite(total) and math.isfinite(mean) and total <= mean < 0):
            raise Wrong(f"the sum {total} and mean {mean} are not those of log-probs")
        if abs(total / mean - round(total / mean)) > 1e-3 * total / mean:
            raise Wrong(f"the sum {total} is not a whole number of times the mean {mean}")
        if len(per_token) < IMAGE_TOKENS + round(total / mean) or not all(map(math.isfinite, per_token)):
            raise Wrong(f"{len(per_token)} log-probs per token do not reach over picture and answer")
    if not json.loads(text, parse_constant=lambda name: None) == json.loads(text):
        raise Wrong("logps holds NaN or Infinity")


def seen(row: dict, with_logps: bool) -> Row:
    """A row as the trainer takes it: it puts the picture before the question, and opens it as RGB."""
    if PICTURE in row["question"]:
        raise Wrong(f"a question holds {PICTURE}, and the trainer adds another: {row['question']!r}")
    for name in ("question", "chosen", "rejected"):
        if not isinstance(row[name], str) or (name != "question" and not row[name].strip()):
            raise Wrong(f"idx {row['idx']!r}: {name} is {row[name]!r}")
    if set(row["image"]) != {"bytes", "path"} or not row["image"]["bytes"]:
        raise Wrong(f"idx {row['idx']!r}: image is not a struct of bytes and path, with bytes")
    if with_logps:
        if not isinstance(json.loads(row["origin_split"]), dict):
            raise Wrong(f"idx {row['idx']!r}: origin_split is no JSON object")
        require_logps(row["logps"])
    try:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
    except OSError as error:
        raise Wrong(f"idx {row['idx']!r}: its picture cannot be opened: {error}") from None
    return Row([("user", PICTURE + row["question"])], {name: row[name] for name in ("chosen", "rejected")}, [image])


def load(folder: Path, checkout: Path) -> int:
    """The number of rows that the trainer's own loader takes."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    sys.path.insert(0, str(checkout))
    # Imported, and not needed to load.
    for name in ("wandb", "jieba"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    from muffin.data import datasets as reader
    from muffin.eval import muffin_inference_logp as inference

    for_reference = []

    def infer(model, tokenizer, rows, cache, *args, **kwargs):
        inference.encode_multimodal_preference_sample = lambda sample, *a, **k: (sample, sample)
        samples = inference.PreferenceInferenceDataset(rows, tokenizer, IMAGE_TOKENS, lambda image: image)
        for_reference.extend(samples[number][0] for number in range(len(samples)))
        raise StopIteration

    reader.inference_logp = infer
    try:
        rows = reader.RLAIFVDataset(
            str(folder), reference_model=object(), tokenizer=None, image_token_len=IMAGE_TOKENS, img_processor=None,
            is_llava15=True,
        )  # fmt: skip
    except StopIteration:
        questions = [sample["question"]["value"] for sample in for_reference]
        if any(question.count(PICTURE) != 1 for question in questions):
            raise Wrong("a question has not one place for its picture") from None
        return len(questions)
    for number in range(len(rows)):
        if rows[number]["image"].mode != "RGB" or not isinstance(rows[number]["ref_win_logp"], float):
            raise Wrong(f"row {number} is loaded without a picture or log-probs: {rows[number]}")
    return len(rows)


def check(job: Job) -> dict:
    with_logps = job.format == "rlaif-v-logps"
    files = sorted(job.folder.glob("*.parquet"))
    require_files(files, with_logps)
    for path in files:
        require_columns(path, with_logps)
    rows = (seen(row, with_logps) for path in files for row in pq.read_table(path).to_pylist())
    figures = {"rows": checking.require_same(rows, checking.read_expected(job.expected))}
    if job.checkout is None:
        return figures
    # Its loader makes a folder wherever it stands.
    os.chdir(job.scratch)
    loaded = load(job.folder, job.checkout)
    if loaded != figures["rows"]:
        raise Wrong(f"the trainer's loader takes {loaded} of {figures['rows']} rows")
    return figures | {"loaded": loaded}


if __name__ == "__main__":
    checking.main(check, ["rlaif-v", "rlaif-v-logps"])
