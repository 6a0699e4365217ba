"""What the hub refuses, and what is refused without asking it: what is said of it, and what is left behind."""

import signal

import pytest
from hub_pusher import Pusher, arrived, local, write_export
from hub_stand_in import USER

from data_engine.errors import UserError
from data_engine.exports import hub as hub_module
from data_engine.exports.hub import repo_paths


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


@pytest.mark.parametrize("is_first", [False, True])
def test_a_change_by_somebody_else_during_the_push_is_not_lost(hub, ask, export, tmp_path, is_first):
    def change():
        repository = hub.repositories[f"{USER}/pairs"]
        repository.commit({**repository.files, "notes.md": b"theirs"})

    if not is_first:
        assert ask("push", other=export)[0] == 0
    hub.before["PUT /storage/"] = change
    code, _, said = ask("push", other=write_export(tmp_path / "other", first=50))
    assert code == 2
    assert "somebody else changed the repository meanwhile" in said
    assert hub.repositories[f"{USER}/pairs"].files["notes.md"] == b"theirs"


def test_an_interrupted_first_push_names_the_empty_dataset(hub, export, tmp_path):
    pusher = Pusher(hub, tmp_path / "process")
    hub.before["PUT /storage/"] = lambda: pusher.process.send_signal(signal.SIGINT)
    with pytest.raises(AssertionError, match=f"{USER}/pairs was created and is still empty"):
        pusher("push", other=export)
    pusher.end()
    assert set(hub.repositories[f"{USER}/pairs"].files) == {".gitattributes"}


def test_more_files_than_a_commit_takes_are_refused_by_their_number(export, monkeypatch):
    assert hub_module.MAX_FILES == 25_000
    monkeypatch.setattr(hub_module, "MAX_FILES", 4)
    with pytest.raises(UserError, match="has 4 files, and the hub takes 3 in one push"):
        repo_paths(export)
