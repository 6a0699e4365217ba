"""An export's folder in, a dataset repository of the Hugging Face hub out. No torch, and no HTTP of our own.

One push is one commit: readers of the repository see all of it or none of it. The commit holds the list of its files
(MANIFEST). The next push takes out what is in that list and is not in the new export; what no push wrote stays as it
is, and is never overwritten, but for README.md. A repository that holds such files before its first push is refused: a
loader would mix them with the export.
"""

import contextlib
import json
import logging
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_engine.errors import UserError, first_line
from data_engine.exports.licences import check_licence
from data_engine.store.absent import all_below

MANIFEST = ".report/files.json"
# What the hub itself puts into a new repository.
_OF_THE_HUB = (".gitattributes", "README.md")
# The hub takes no more in one commit.
MAX_FILES = 25_000
_PART = re.compile(r"(?P<name>.+?)(-\d{5}-of-\d{5})?\.parquet")

log = logging.getLogger(__name__)


def check_hub(repo: str, private: bool, licence: str | None) -> str:
    """OWNER/NAME of the repository, once nothing that can be known before an export speaks against a push to it.

    Raises UserError for a wrong name or licence, a missing or refused token, or a repository that cannot be pushed to.
    """
    _check_name(repo)
    if licence is None:
        raise UserError(
            "--push_to_hub needs --license: under which licence may others use the dataset? "
            "E.g. apache-2.0, cc-by-4.0 or cc-by-nc-4.0, or other"
        )
    check_licence(licence)
    api = _api()
    repo = _full_name(api, repo)
    _refuse_foreign(repo, _found(api, repo, private), [])
    return repo


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Commit the files of an export to a dataset repository, which is created where there is none; the commit's URL.

    Raises UserError where the hub refuses or breaks off; the repository then has what it had before.
    """
    _check_name(repo)
    files = repo_paths(folder)
    api = _api()
    repo = _full_name(api, repo)
    found = _found(api, repo, private)
    _refuse_foreign(repo, found, files)
    created = found is None
    if created:
        with _hub_does(f"the hub did not create the dataset {repo}"):
            api.create_repo(repo, repo_type="dataset", private=private, exist_ok=False)
    # From here on an interruption, too, leaves a repository behind.
    try:
        return _commit(api, repo, files, found or _found(api, repo, private))
    except BaseException as error:
        if not created:
            raise
        if isinstance(error, UserError):
            raise UserError(f"{error}; {_left_behind(api, repo)}") from None
        log.warning("%s", _left_behind(api, repo))
        raise


def _left_behind(api: Any, repo: str) -> str:
    """What a push that failed has left of a repository that it created; its commit may have arrived all the same."""
    try:
        found = _found(api, repo, private=False)
    except UserError:
        return f"the dataset {repo} was created, and may be empty: look at it on the hub"
    if found and MANIFEST in found.files:
        return f"the dataset {repo} was created, and its files have arrived all the same"
    return f"the dataset {repo} was created and is still empty: the same command fills it, or delete it on the hub"


def repo_paths(folder: Path) -> dict[str, Path]:
    """Path in the repository -> file of the export.

    Parquet files that are nothing but the parts of one table are called as the hub's own tools call them, which every
    loader finds. Others keep their names: RLAIF-V looks for `logp` in them, and a dataset_info.json names its files.
    """
    files = {path.relative_to(folder).as_posix(): path for path in all_below(folder) if path.is_file()}
    visible = [name for name in files if not name.startswith(".") and name != "README.md"]
    parts = [_PART.fullmatch(name) for name in visible]
    names = {part and part["name"] for part in parts}
    if len(names) == 1 and None not in names and "logp" not in names.copy().pop():
        renamed = {name: f"data/train-{at:05d}-of-{len(visible):05d}.parquet" for at, name in enumerate(visible)}
        files = {renamed.get(name, name): path for name, path in files.items()}
    if len(files) >= MAX_FILES:
        raise UserError(
            f'"{folder}" has {len(files):,} files, and the hub takes {MAX_FILES - 1:,} in one push: choose a --format '
            "that keeps pictures in its parquet files"
        )
    return files


@dataclass(frozen=True)
class _Repository:
    """A dataset repository as it was found."""

    commit: str | None
    files: frozenset[str]
    pushed: frozenset[str]
    """those of an earlier push"""

    @property
    def foreign(self) -> frozenset[str]:
        return self.files - self.pushed - {*_OF_THE_HUB, MANIFEST}


def _api():
    # Imported late: it takes a good part of a second, and most exports stay local.
    from huggingface_hub import HfApi

    # At INFO they tell each request, with addresses that let anybody write to the hub's store for a while.
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return HfApi(library_name="data-engine")


def _check_name(repo: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"--push_to_hub must be NAME or OWNER/NAME of a dataset on the hub, got {json.dumps(repo)}: "
            f"{first_line(error).rstrip('.')}"
        ) from None


def _full_name(api: Any, repo: str) -> str:
    """OWNER/NAME. Raises UserError without a token that the hub takes, or with one that may only read."""
    with _hub_does("the hub did not say whose token this is"):
        who = api.whoami()
    role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise UserError(
            "the hub's token may only read: make one with the role write at https://huggingface.co/settings/tokens, "
            "and log in with it (hf auth login) or set HF_TOKEN to it"
        )
    owner, slash, _ = repo.partition("/")
    own = [who["name"], *(one.get("name") for one in who.get("orgs") or ())]
    # A fine-grained token need not show the organizations of its owner.
    if slash and role == "write" and owner.lower() not in {str(name).lower() for name in own}:
        raise UserError(
            f'--push_to_hub {repo}: you are logged in as {who["name"]}, who is not in an organization "{owner}"; '
            f"choose one of {', '.join(f'{name}/...' for name in own)}, or log in as someone else"
        )
    return repo if slash else f"{who['name']}/{repo}"


def _found(api: Any, repo: str, private: bool) -> _Repository | None:
    """What the repository holds, None where there is none. Raises UserError for a public one that is to be private."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with _hub_does(f"the hub did not say whether there is a dataset {repo}"):
        try:
            info = api.dataset_info(repo)
        except RepositoryNotFoundError as error:
            if error.response is not None and error.response.status_code == 401:
                raise
            return None
        files = frozenset(file.rfilename for file in info.siblings or ())
        pushed = _manifest(api, repo, info.sha) if MANIFEST in files else ()
    if private and not info.private:
        raise UserError(
            f"the dataset {repo} is there already and is public, which --private would not change: make it private in "
            "its settings on the hub, or choose another name"
        )
    return _Repository(info.sha, files, frozenset(pushed) & files)


def _manifest(api: Any, repo: str, commit: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo, MANIFEST, repo_type="dataset", revision=commit, local_dir=folder)
        return list(json.loads(Path(path).read_text(encoding="utf-8"))["files"])


def _refuse_foreign(repo: str, found: _Repository | None, files: Iterable[str]) -> None:
    """Raise UserError where a push would mix the export with files that no push wrote, or overwrite one."""
    if found is None or not found.foreign:
        return
    in_the_way = found.foreign & set(files) if MANIFEST in found.files else found.foreign
    if in_the_way:
        first, *others = sorted(in_the_way)
        more = f" and {len(others):,} more" if others else ""
        raise UserError(
            f"the dataset {repo} has {json.dumps(first)}{more}, which no push of this program wrote, and a loader "
            "would mix it with the export: delete it on the hub, or choose another name"
        )


def _commit(api: Any, repo: str, files: dict[str, Path], found: _Repository | None) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    manifest = json.dumps({"files": sorted(files)}, indent=1).encode()
    operations: list = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    operations.append(CommitOperationAdd(MANIFEST, manifest))
    gone = sorted(found.pushed - set(files)) if found else []
    operations += [CommitOperationDelete(name, is_folder=False) for name in gone]
    size = sum(path.stat().st_size for path in files.values())
    log.info("uploading %d files, %.1f MB, to the dataset %s", len(files), size / 1e6, repo)
    with _progress(), _hub_does(f"the push to the dataset {repo} did not succeed", once_sent=True):
        # With the parent's name, the hub refuses where somebody else has committed meanwhile.
        done = api.create_commit(
            repo, operations, commit_message=f"{len(files)} files of an export of data-engine", repo_type="dataset",
            parent_commit=found.commit if found else None,
        )  # fmt: skip
    return str(done.commit_url)


@contextlib.contextmanager
def _progress() -> Iterator[None]:
    """The library's progress bars, where a person sees them: in a file, each refresh would be one more line."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextlib.contextmanager
def _hub_does(wrong: str, once_sent: bool = False) -> Iterator[None]:
    """Raise UserError, `wrong`, the reason and what to do, whatever the library raises: it promises no exceptions."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        causes = list(_causes(error))
        status = next((status for status in map(_status, causes) if status is not None), None)
        # The innermost one says what happened; those around it say where.
        cause = causes[-1] if status is None else next(one for one in causes if _status(one) is not None)
        reason = first_line(cause).rstrip(".")
        remedy = _remedy(status, causes, once_sent)
        raise UserError(f"{wrong}: {reason}; {remedy}") from None


def _remedy(status: int | None, causes: list[BaseException], once_sent: bool) -> str:
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    again = "push again with the same command; what has been uploaded is not sent twice" if once_sent else "try again"
    if any(isinstance(error, OfflineModeIsEnabled) for error in causes):
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids the network: unset it for a push"
    if status == 401 or any(isinstance(error, LocalTokenNotFoundError) for error in causes):
        return "log in with `hf auth login`, or set HF_TOKEN to a token from https://huggingface.co/settings/tokens"
    if status == 403:
        return "the token has no right to write there: take a token with the role write, or another --push_to_hub"
    if status in (409, 412):
        return f"somebody else changed the repository meanwhile: {again}"
    if status == 429:
        return f"the hub limits how much may be asked of it: wait some minutes, then {again}"
    if status is not None and status < 500:
        return "the hub does not take this push as it is; mend what it names, and push again"
    return f"the hub or the network failed; {again}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it was raised from, outermost first."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
