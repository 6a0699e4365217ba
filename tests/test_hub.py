"""Pushing an export to the hub: what arrives, what a second push replaces, what a refusal says and leaves behind."""

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import hub_stand_in
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_stand_in import TOKEN, USER, environment, serve
from PIL import Image

from data_engine.errors import UserError
from data_engine.exports import hub as hub_module
from data_engine.exports.hub import MANIFEST, repo_paths

ENGINE = Path(__file__).parents[1] / "engine"
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


@pytest.fixture(scope="module")
def server():
    with serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def pusher(server, tmp_path_factory):
    made = Pusher(server, tmp_path_factory.mktemp("pusher") / "process")
    yield made
    made.end()


@pytest.fixture
def hub(server):
    """The stand-in, empty."""
    server.forget()
    return server


@pytest.fixture
def ask(hub, pusher):
    return pusher


@pytest.fixture
def export(tmp_path):
    return write_export(tmp_path / "export")


def local(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def arrived(hub, repo=f"{USER}/pairs") -> dict[str, bytes]:
    """The files of a repository but for what is not of the export."""
    files = dict(hub.repositories[repo].files)
    return {name: data for name, data in files.items() if name not in (".gitattributes", MANIFEST)}


def test_what_arrives_is_file_by_file_what_was_written(hub, ask, export):
    before = local(export)
    code, url, said = ask("push", other=export)
    assert code == 0, said
    repository = hub.repositories[f"{USER}/pairs"]
    assert url == f"{hub.url}/datasets/{USER}/pairs/commit/{repository.sha}"
    assert arrived(hub) == {
        "README.md": before["README.md"],
        ".report/rewards.png": before[".report/rewards.png"],
        "data/train-00000-of-00002.parquet": before["dpo_dataset-00000-of-00002.parquet"],
        "data/train-00001-of-00002.parquet": before["dpo_dataset-00001-of-00002.parquet"],
    }
    # One commit after the hub's own.
    assert len(repository.commits) == 2
    assert repository.private is False
    assert local(export) == before
    # No line a request, and no bar in a file.
    assert re.fullmatch(rf"uploading 4 files, 0\.0 MB, to the dataset {USER}/pairs\n", said)


def test_every_row_and_picture_is_read_by_datasets_from_the_hub(hub, ask, export, tmp_path):
    assert ask("push", other=export)[0] == 0
    code = (
        "import datasets, json, sys\n"
        "loaded = datasets.load_dataset(sys.argv[1])\n"
        "rows = {split: [(row['idx'], row['chosen'], row['image'].getpixel((0, 0))) for row in rows]\n"
        "        for split, rows in loaded.items()}\n"
        "print(json.dumps(rows))"
    )
    known = environment(hub, str(tmp_path / "other home"))
    done = subprocess.run([sys.executable, "-c", code, f"{USER}/pairs"], capture_output=True, text=True, env=known)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"train": [[n, f"answer {n}", [n, 0, 0]] for n in range(6)]}


def test_a_second_push_replaces_the_first_in_one_commit_and_leaves_what_is_not_of_it(hub, ask, export, tmp_path):
    assert ask("push", other=export)[0] == 0
    repository = hub.repositories[f"{USER}/pairs"]
    repository.commit({**repository.files, "notes.md": b"mine", "README.md": b"changed by hand"})
    other = write_export(tmp_path / "other", num_parts=1, first=100)
    assert ask("push", other=other)[0] == 0
    assert len(repository.commits) == 4
    assert arrived(hub) == {
        "README.md": local(other)["README.md"],
        ".report/rewards.png": local(other)[".report/rewards.png"],
        "data/train-00000-of-00001.parquet": local(other)["dpo_dataset.parquet"],
        "notes.md": b"mine",
    }
    assert ".gitattributes" in repository.files


def test_the_same_export_again_is_no_new_commit(hub, ask, export):
    _, first, _ = ask("push", other=export)
    code, second, _ = ask("push", other=export)
    assert (code, second) == (0, first)
    assert len(hub.repositories[f"{USER}/pairs"].commits) == 2


def test_a_private_push_makes_a_private_dataset_and_an_organization_can_own_it(hub, ask, export):
    assert ask("push", "club/pairs", export, private=True)[0] == 0
    assert hub.repositories["club/pairs"].private is True


def test_a_private_push_to_a_public_dataset_is_refused(hub, ask, export):
    hub.add(f"{USER}/pairs")
    for what, other in (("check", "mit"), ("push", export)):
        code, _, said = ask(what, other=other, private=True)
        assert code == 2
        assert "is public, which --private would not change" in said
    assert set(hub.repositories[f"{USER}/pairs"].files) == {".gitattributes"}


def test_a_dataset_with_files_of_somebody_else_is_refused_before_and_at_the_push(hub, ask, export):
    hub.add(f"{USER}/pairs", **{"data/train.parquet": b"theirs", "b.csv": b"theirs"})
    for what, other in (("check", "mit"), ("push", export)):
        code, _, said = ask(what, other=other)
        assert code == 2
        assert '"b.csv" and 1 more, which no push of this program wrote' in said
    assert len(hub.repositories[f"{USER}/pairs"].commits) == 1


def test_a_file_that_was_put_there_between_two_pushes_is_not_overwritten(hub, ask, export, tmp_path):
    assert ask("push", other=export)[0] == 0
    repository = hub.repositories[f"{USER}/pairs"]
    repository.commit({**repository.files, "data/train-00000-of-00001.parquet": b"theirs"})
    code, _, said = ask("push", other=write_export(tmp_path / "other", num_parts=1))
    assert code == 2
    assert '"data/train-00000-of-00001.parquet", which no push' in said
    assert repository.files["data/train-00000-of-00001.parquet"] == b"theirs"


def test_a_check_asks_the_hub_and_changes_nothing(hub, ask):
    code, said, _ = ask("check", other="cc-by-4.0")
    assert (code, said) == (0, f"{USER}/pairs")
    assert hub.repositories == {}
    assert {request.split()[0] for request in hub.requests} == {"GET"}


@pytest.mark.parametrize(
    ("licence", "told"),
    [
        (None, "--license"),
        ("apache", "did you mean apache-2.0?"),
        ("CC BY 4.0", "did you mean cc-by-4.0?"),
        ("proprietary", "`other`"),
    ],
)
def test_a_licence_is_asked_for_and_must_be_one_of_the_hubs(hub, ask, licence, told):
    code, _, said = ask("check", other=licence)
    assert code == 2
    assert "--license" in said
    assert told in said
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["a/b/c", "a b", "-a", "a--b", "me/a.git", "", "x" * 97])
def test_a_name_that_the_hub_cannot_have_is_refused_without_asking_it(hub, ask, repo):
    code, _, said = ask("check", repo, "mit")
    assert code == 2
    assert "--push_to_hub must be NAME or OWNER/NAME" in said
    assert hub.requests == []


@pytest.mark.parametrize("what", ["check", "push"])
@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_missing_or_wrong_token_is_told_with_the_way_to_get_one(hub, ask, export, what, token):
    code, _, said = ask(what, other=export if what == "push" else "mit", token=token)
    assert code == 2
    assert "hf auth login" in said
    assert "HF_TOKEN" in said
    assert hub.repositories == {}


def test_a_token_that_may_only_read_and_an_owner_of_somebody_else_are_refused_early(hub, ask):
    code, _, said = ask("check", "stranger/pairs", "mit")
    assert code == 2
    assert f'logged in as {USER}, who is not in an organization "stranger"' in said
    assert f"{USER}/..., club/..." in said
    hub.role = "read"
    code, _, said = ask("check", other="mit")
    assert code == 2
    assert "may only read" in said


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE"), ("HF_ENDPOINT", "http://127.0.0.1:9", "Connection refused")],
)
def test_a_hub_that_cannot_be_asked_is_told(hub, export, tmp_path, variable, value, told):
    pusher = Pusher(hub, tmp_path / "process", **{variable: value})
    for what, other in (("check", "mit"), ("push", export)):
        code, _, said = pusher(what, other=other)
        assert code == 2
        assert told in said
    pusher.end()


REFUSED = {
    "create": "POST /api/repos/create",
    "preupload": "/preupload/main",
    "batch": "/info/lfs/objects/batch",
    "upload": "PUT /storage/",
    "commit": "/commit/main",
}
STATUS_TOLD = {401: "hf auth login", 403: "has no right to write", 429: "wait some minutes", 500: "same command"}


@pytest.mark.parametrize("step", REFUSED)
@pytest.mark.parametrize("how", [401, 403, 429, 500, "reset"])
def test_a_refusal_is_told_with_what_to_do_and_leaves_what_was_there(hub, ask, export, tmp_path, step, how):
    """A first push leaves nothing, or an empty repository that is named; a later one leaves the files of the first."""
    hub.refusals[REFUSED[step]] = how
    before = local(export)
    code, _, said = ask("push", other=export)
    assert code == 2
    told = "try again" if step == "create" and how in (500, "reset") else STATUS_TOLD.get(how, "push again")
    # One line; the library's own tell of each try before it.
    assert told in said.strip().splitlines()[-1]
    if step == "create":
        assert hub.repositories == {}
        assert "still empty" not in said
        return
    assert set(hub.repositories[f"{USER}/pairs"].files) == {".gitattributes"}
    assert f"{USER}/pairs was created and is still empty" in said
    assert local(export) == before

    hub.refusals.clear()
    assert ask("push", other=export)[0] == 0
    first = arrived(hub)
    hub.refusals[REFUSED[step]] = how
    code, _, said = ask("push", other=write_export(tmp_path / "other", first=50))
    assert code == 2
    assert "still empty" not in said
    assert arrived(hub) == first


def test_an_answer_that_is_lost_leaves_a_whole_commit_and_the_same_command_goes_on(hub, ask, export):
    hub.refusals[REFUSED["commit"]] = "lost"
    code, _, said = ask("push", other=export)
    assert code == 2
    assert "same command" in said
    assert "its files have arrived all the same" in said
    hub.refusals.clear()
    assert ask("push", other=export)[0] == 0
    assert len(arrived(hub)) == 4
    assert len(hub.repositories[f"{USER}/pairs"].commits) == 2


def test_a_hub_that_falls_silent_for_good_is_not_said_to_hold_an_empty_dataset(hub, ask, export):
    hub.before["PUT /storage/"] = lambda: hub.refusals.update({"/": "reset"})
    code, _, said = ask("push", other=export)
    assert code == 2
    assert f"{USER}/pairs was created, and may be empty" in said


def test_uploads_that_arrived_are_not_sent_again(hub, ask, export):
    hub.refusals[REFUSED["commit"]] = 500
    assert ask("push", other=export)[0] == 2
    hub.refusals.clear()
    hub.requests.clear()
    assert ask("push", other=export)[0] == 0
    assert not [request for request in hub.requests if request.startswith("PUT")]


def test_a_change_by_somebody_else_during_the_push_is_not_lost(hub, ask, export, tmp_path):
    assert ask("push", other=export)[0] == 0
    repository = hub.repositories[f"{USER}/pairs"]
    hub.before["PUT /storage/"] = lambda: repository.commit({**repository.files, "notes.md": b"theirs"})
    code, _, said = ask("push", other=write_export(tmp_path / "other", first=50))
    assert code == 2
    assert "somebody else changed the repository meanwhile" in said
    assert repository.files["notes.md"] == b"theirs"


def test_an_interrupted_first_push_names_the_empty_dataset(hub, export, tmp_path):
    pusher = Pusher(hub, tmp_path / "process")
    hub.before["PUT /storage/"] = lambda: pusher.process.send_signal(signal.SIGINT)
    with pytest.raises(AssertionError, match=f"{USER}/pairs was created and is still empty"):
        pusher("push", other=export)
    pusher.end()
    assert set(hub.repositories[f"{USER}/pairs"].files) == {".gitattributes"}


def test_files_that_are_called_by_their_names_keep_them(tmp_path):
    def names(*files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for file in ("README.md", ".report/rewards.png", *files):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(b"x")
        return sorted(set(repo_paths(folder)) - {"README.md", ".report/rewards.png"})

    assert names("dpo_dataset.parquet") == ["data/train-00000-of-00001.parquet"]
    kept = ("RLAIF-V-Dataset-withlogp_000-12.parquet",)
    assert names(*kept) == list(kept)
    kept = ("dataset_info.json", "pairs.parquet")
    assert names(*kept) == list(kept)
    kept = ("images/ab.png", "meta.json", "pairs.jsonl")
    assert names(*kept) == list(kept)
    kept = ("one.parquet", "two.parquet")
    assert names(*kept) == list(kept)


def test_card_picture_and_list_of_files_are_no_data_to_a_loader(tmp_path, hub, ask):
    """Where files keep their names, a loader looks at every file of the repository that is not hidden."""
    export = write_export(tmp_path / "export", num_parts=0)
    (export / "pairs.jsonl").write_text("".join(f'{{"idx": {number}}}\n' for number in range(3)))
    assert ask("push", other=export)[0] == 0
    files = hub.repositories[f"{USER}/pairs"].files
    assert {"pairs.jsonl", ".report/rewards.png", MANIFEST} < set(files)
    for name, data in files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    loaded = datasets.load_dataset(str(tmp_path / "copy"), cache_dir=str(tmp_path / "cache"))
    assert {split: rows["idx"][:] for split, rows in loaded.items()} == {"train": [0, 1, 2]}


def test_more_files_than_a_commit_takes_are_refused_by_their_number(export, monkeypatch):
    assert hub_module.MAX_FILES == 25_000
    monkeypatch.setattr(hub_module, "MAX_FILES", 4)
    with pytest.raises(UserError, match="has 4 files, and the hub takes 3 in one push"):
        repo_paths(export)


def test_the_stand_in_refuses_content_that_is_not_that_of_its_hash(hub):
    """The stand-in itself: it would notice a file that arrives damaged."""
    import urllib.error
    import urllib.request

    request = urllib.request.Request(f"{hub.url}/storage/{'0' * 64}", data=b"other", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)
    assert hub.stored == {}
    assert TOKEN not in " ".join(hub.requests)
    assert hub_stand_in.oid("a.md", b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
