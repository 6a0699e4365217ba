"""A stand-in of the Hugging Face hub: what huggingface_hub and `datasets` ask of its HTTP interface, in this process.

It keeps repositories of datasets as commits of {path: bytes}, stores uploads of large files by their sha256, which it
checks, and refuses or breaks off where a test says so. Large files go the way of git LFS, over HTTP. The hub's newer
way, Xet, is switched off (HF_HUB_DISABLE_XET): there a compiled library talks to storage servers of its own.
"""

import base64
import contextlib
import hashlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_stand_in"
USER = "somebody"
# Endings of files that go to the store of large files, as the hub's .gitattributes has them.
LARGE = (".parquet", ".png", ".jpg")
ATTRIBUTES = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE).encode()


@dataclass
class Repository:
    """A dataset repository: its commits, newest last."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    @property
    def sha(self) -> str:
        return self.commits[-1][0]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        return next((one for one in self.commits if one[0] == revision), self.commits[-1])


@dataclass
class Hub:
    """What the stand-in holds, and how it is told to behave."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """large files by sha256"""
    requests: list[str] = field(default_factory=list)
    """method and path of each"""
    refusals: dict[str, int | str] = field(default_factory=dict)
    """part of "METHOD path" -> status to answer with; "reset": the connection breaks off, half of the body read;
    "lost": it breaks off instead of the answer, once the request was carried out"""
    before: dict[str, Callable[[], object]] = field(default_factory=dict)
    """part of "METHOD path" -> what happens once, before the first such request is carried out"""
    role: str = "write"
    url: str = ""

    def forget(self) -> None:
        """Empty again."""
        for held in (self.repositories, self.stored, self.requests, self.refusals, self.before):
            held.clear()
        self.role = "write"

    def refused(self, request: str) -> int | str | None:
        return next((how for part, how in self.refusals.items() if part in request), None)

    def add(self, repo: str, private: bool = False, **files: bytes) -> Repository:
        made = self.repositories[repo] = Repository(private)
        made.commit({".gitattributes": ATTRIBUTES, **files})
        return made


class Handler(BaseHTTPRequestHandler):
    """One request; the routes are in `answer`."""

    protocol_version = "HTTP/1.1"
    # Headers and body in one packet: a second one would wait for the first one's receipt.
    wbufsize, disable_nagle_algorithm = 2**16, True
    hub: Hub

    def handle_one(self) -> None:
        request = f"{self.command} {self.path}"
        self.hub.requests.append(request)
        for part in [part for part in self.hub.before if part in request]:
            self.hub.before.pop(part)()
        how = self.hub.refused(request)
        if how == "reset":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            return self.break_off()
        body = self.body()
        if isinstance(how, int):
            return self.say(how, {"error": f"the stand-in says {how}"}, error=True)
        if how == "lost":
            self.reply = lambda *args, **kwargs: None
            self.answer(body)
            return self.break_off()
        return self.answer(body)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_one

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def break_off(self) -> None:
        """A reset, not an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RD)
        self.close_connection = True
        self.connection.close()

    def say(self, status: int, value: object, error: bool = False, **headers: str) -> None:
        if error:
            headers["X_Error_Message"] = str(value["error"])
        self.reply(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def reply(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer(self, body: bytes) -> None:
        parts = urlsplit(self.path)
        words = [unquote(word) for word in parts.path.strip("/").split("/")]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and words[0] != "storage":
            return self.say(401, {"error": "Invalid username or password."}, error=True)
        if words == ["api", "whoami-v2"]:
            token = {"displayName": "test", "role": self.hub.role}
            return self.say(200, {"type": "user", "name": USER, "orgs": [{"name": "club"}],
                                  "auth": {"type": "access_token", "accessToken": token}})  # fmt: skip
        if words == ["api", "validate-yaml"]:
            return self.say(200, {"errors": [], "warnings": []})
        if words == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if words[0] == "storage":
            return self.store(words[1], body)
        if words[-4:] == ["info", "lfs", "objects", "batch"]:
            return self.batch(json.loads(body))
        repo = "/".join(words[2:4] if words[0] == "api" else words[1:3])
        if repo not in self.hub.repositories:
            return self.say(404, {"error": "Repository not found"}, error=True, X_Error_Code="RepoNotFound")
        if words[0] == "api":
            return self.about(repo, words[4:], parse_qs(parts.query), body)
        return self.resolve(repo, words[4], "/".join(words[5:]))

    def create(self, asked: dict) -> None:
        repo = f"{asked.get('organization') or USER}/{asked['name']}"
        if repo in self.hub.repositories:
            return self.say(409, {"error": "You already created this dataset repo"}, error=True)
        self.hub.add(repo, asked.get("private") or asked.get("visibility") == "private")
        return self.say(200, {"url": f"{self.hub.url}/datasets/{repo}", "name": repo})

    def store(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            return self.say(400, {"error": "the content is not that of its sha256"}, error=True)
        self.hub.stored[oid] = data
        return self.reply(200, b"")

    def batch(self, asked: dict) -> None:
        objects = [
            {"oid": one["oid"], "size": one["size"]}
            | ({} if one["oid"] in self.hub.stored
               else {"actions": {"upload": {"href": f"{self.hub.url}/storage/{one['oid']}"}}})
            for one in asked["objects"]
        ]  # fmt: skip
        self.reply(200, json.dumps({"transfer": "basic", "objects": objects}).encode())

    def about(self, repo: str, words: list[str], query: dict, body: bytes) -> None:
        """/api/datasets/OWNER/NAME/..."""
        found = self.hub.repositories[repo]
        match words:
            case [] | ["revision", _]:
                sha, files = found.at(words[1] if words else "main")
                siblings = [{"rfilename": path} for path in sorted(files)]
                self.say(200, {"id": repo, "sha": sha, "private": found.private, "siblings": siblings, "tags": []})
            case ["preupload", _]:
                self.say(200, {"files": [self.how_to_upload(found, one) for one in json.loads(body)["files"]]})
            case ["commit", _]:
                self.commit(repo, found, body)
            case ["paths-info", revision]:
                _, files = found.at(revision)
                self.say(200, [entry(path, files) for path in form(body)["paths"] if exists(path, files)])
            case ["tree", revision, *folder]:
                _, files = found.at(revision)
                deep = query.get("recursive", ["False"])[0].lower() in ("true", "1")
                self.say(200, [entry(path, files) for path in inside("/".join(folder), files, deep)])
            case _:
                self.say(404, {"error": "no such page"}, error=True, X_Error_Code="EntryNotFound")

    def how_to_upload(self, found: Repository, one: dict) -> dict:
        path = one["path"]
        mode = "lfs" if path.endswith(LARGE) else "regular"
        here = {"oid": oid(path, found.files[path])} if path in found.files else {}
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, **here}

    def commit(self, repo: str, found: Repository, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(found.files)
        for kind, value in ((line["key"], line["value"]) for line in lines):
            if kind == "header" and value.get("parentCommit") not in (None, found.sha):
                return self.say(
                    412, {"error": "A commit has happened since. Please refresh and try again."}, error=True
                )
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        sha = found.commit(files)
        return self.say(200, {"commitUrl": f"{self.hub.url}/datasets/{repo}/commit/{sha}", "commitOid": sha})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        sha, files = self.hub.repositories[repo].at(revision)
        if path not in files:
            return self.say(404, {"error": "Entry not found"}, error=True, X_Error_Code="EntryNotFound")
        data, status = files[path], 200
        headers = {"ETag": f'"{oid(path, data)}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        if self.headers.get("Range"):
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            end = min(int(last) + 1 if last else len(data), len(data))
            headers["Content_Range"] = f"bytes {first}-{end - 1}/{len(data)}"
            data, status = data[int(first) : end], 206
        return self.reply(status, data, **headers)

    def log_message(self, *_: object) -> None:
        """Nothing: a test looks at Hub.requests."""


def oid(path: str, data: bytes) -> str:
    """What the hub calls a file's content: the sha256 of a large one, git's own hash of another."""
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def exists(path: str, files: dict[str, bytes]) -> bool:
    return path in files or any(name.startswith(f"{path}/") for name in files)


def entry(path: str, files: dict[str, bytes]) -> dict:
    if path not in files:
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    data = files[path]
    large = {"lfs": {"oid": oid(path, data), "size": len(data), "pointerSize": 1}} if path.endswith(LARGE) else {}
    return {"type": "file", "path": path, "oid": oid(path, data), "size": len(data), **large}


def inside(folder: str, files: dict[str, bytes], deep: bool) -> list[str]:
    """Paths of the files and folders in a folder."""
    start = f"{folder}/" if folder else ""
    found = set()
    for path in (name for name in files if name.startswith(start)):
        words = path[len(start) :].split("/")
        found |= {start + "/".join(words[: depth + 1]) for depth in range(len(words) if deep else 1)}
    return sorted(found)


def form(body: bytes) -> dict[str, list[str]]:
    """A body as JSON or as a form."""
    return json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A hub of this process, empty."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.handle_error = lambda *_: None
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: Hub, home: str, **others: str) -> dict[str, str]:
    """Variables for a process that takes the stand-in for the hub; caches and logins are under `home`."""
    named = {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    named |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return kept | named | {"HF_HUB_DISABLE_TELEMETRY": "1"} | others
