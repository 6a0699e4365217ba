"""An export in miniature, a process that pushes it to the stand-in for the hub, and what has arrived there."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hub_stand_in import TOKEN, USER, environment
from PIL import Image

from data_engine.exports.hub import MANIFEST

ENGINE = Path(__file__).parents[2] / "engine"
# A process that pushes and checks as it is told by lines of JSON: huggingface_hub reads its variables at import, and
# takes a second for that. It answers a UserError as the command does.
PROGRAM = """
import json, logging, os, sys
from pathlib import Path
import huggingface_hub.utils._http as http
from data_engine.errors import UserError
from data_engine.exports import hub

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
http.time.sleep = lambda seconds: None  # between tries
for line in sys.stdin:
    what, repo, private, other, token = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    try:
        if what == "check":
            answer = 0, hub.check_hub(repo, private, other)
        else:
            answer = 0, hub.push(Path(other), repo, private=private)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        answer = 2, ""
    print(json.dumps(answer), flush=True)
"""
FEATURES = {
    "idx": {"dtype": "int64", "_type": "Value"}, "chosen": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
}  # fmt: skip


def png(colour: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, "PNG")
    return data.getvalue()


def write_export(folder: Path, num_parts: int = 2, first: int = 0) -> Path:
    """An export in parquet: 3 rows a part, with pictures, a card and its picture."""
    (folder / ".report").mkdir(parents=True)
    (folder / ".report/rewards.png").write_bytes(png((9, 9, 9)))
    card = "---\nlicense: mit\n---\n\n# Pairs\n\n![picture](.report/rewards.png)\n"
    (folder / "README.md").write_text(card)
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    for part in range(num_parts):
        numbers = range(first + 3 * part, first + 3 * part + 3)
        rows = [
            {"idx": n, "chosen": f"answer {n}", "image": {"bytes": png((n, 0, 0)), "path": f"{n}.png"}} for n in numbers
        ]
        several = f"-{part:05d}-of-{num_parts:05d}" if num_parts > 1 else ""
        pq.write_table(
            pa.Table.from_pylist(rows).replace_schema_metadata(metadata), folder / f"dpo_dataset{several}.parquet"
        )
    return folder


class Pusher:
    """A process of PROGRAM."""

    def __init__(self, hub, folder: Path, **variables: str):
        folder.mkdir()
        self.said = folder / "stderr"
        known = environment(hub, str(folder / "home"), PYTHONPATH=str(ENGINE), **variables)
        with open(self.said, "wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=known
            )

    def __call__(self, what, repo="pairs", other=None, private=False, token=TOKEN) -> tuple[int, str, str]:
        """Exit code, result, and what it says to a person."""
        start = self.said.stat().st_size
        words = [what, repo, private, other and str(other), token]
        self.process.stdin.write(json.dumps(words).encode() + b"\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        said = self.said.read_bytes()[start:].decode()
        assert answer, said
        return *json.loads(answer), said

    def end(self) -> None:
        self.process.communicate(timeout=60)


def local(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def arrived(hub, repo=f"{USER}/pairs") -> dict[str, bytes]:
    """The files of a repository but for what is not of the export."""
    files = dict(hub.repositories[repo].files)
    return {name: data for name, data in files.items() if name not in (".gitattributes", MANIFEST)}
