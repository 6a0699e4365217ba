"""sha256 of whole files, taken once for a work directory: a start must not read 28 GB of weights again.

A hash is remembered in hashes/, by the file's path, size and times; a file that was touched is hashed again. Of several
ranks, one hashes a file, under a claim, and the others wait for it or hash another one.
"""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from data_engine.errors import UserError
from data_engine.store.atomic import replacing
from data_engine.store.claims import Claims

CHUNK_BYTES = 1 << 20
POLL_S = 0.2
TOLD_EVERY_S = 10.0
# Smaller files are hashed without a word.
TOLD_BYTES = 1 << 30
# In the cache of the model hub, a large file is stored under its sha256.
_BLOB = re.compile(r"[0-9a-f]{64}")

HashFiles = Callable[[Sequence[Path]], list[str]]
"""The sha256 of each of some files, of all their bytes, in hex: FileHashes, or hash_files"""

log = logging.getLogger(__name__)


class FileHashes:
    """The hashes that a work directory knows; `claims` are those of this process."""

    def __init__(self, work_dir: Path, claims: Claims) -> None:
        self._folder, self._claims = work_dir / "hashes", claims

    def __call__(self, files: Sequence[Path]) -> list[str]:
        """The sha256 of each file, in hex. Raises UserError where one cannot be read, or changes meanwhile."""
        found: dict[Path, str] = {}
        while left := [file for file in files if file not in found]:
            before = len(found)
            for file in left:
                sha256 = _known(self._folder, file) or self._hashed(file)
                if sha256:
                    found[file] = sha256
            if len(found) == before:
                # Other ranks are at what is left.
                time.sleep(POLL_S)
        return [found[file] for file in files]

    def _hashed(self, file: Path) -> str | None:
        """The hash of a file that this process read; None where another one is reading it."""
        record = _record(self._folder, file)
        with self._claims.hold(f"hash-{record.stem}", 0) as mine:
            if not mine:
                return None
            # Remembered by another process since this one looked.
            if known := _known(self._folder, file):
                return known
            sha256 = hash_file(file, _progress(file))
            if _record(self._folder, file) != record:
                raise UserError(f'"{file}" changed while it was read: run again when it is complete')
            with replacing(record) as beside:
                beside.write_text(json.dumps({"path": str(file.resolve()), "sha256": sha256}))
        return sha256


class TooMuchToHash(Exception):
    """Files that no hash is remembered of are larger than a check may read; the message has their size."""


class RememberedHashes:
    """The hashes that a work directory knows; others are taken while that is quick. Nothing is written."""

    def __init__(self, work_dir: Path) -> None:
        self._folder = work_dir / "hashes"

    def __call__(self, files: Sequence[Path]) -> list[str]:
        """The sha256 of each file, in hex. Raises TooMuchToHash, and UserError where one cannot be read."""
        known = [_known(self._folder, file) for file in files]
        left = sum(_status(file).st_size for file, sha256 in zip(files, known, strict=True) if sha256 is None)
        if left > TOLD_BYTES:
            raise TooMuchToHash(f"{left / 1e9:.1f} GB")
        return [sha256 or hash_file(file) for file, sha256 in zip(files, known, strict=True)]


def _known(folder: Path, file: Path) -> str | None:
    """The hash of a file, as it is now, that is remembered in the folder."""
    real = file.resolve()
    if real.parent.name == "blobs" and _BLOB.fullmatch(real.name):
        return real.name
    try:
        return json.loads(_record(folder, file).read_text())["sha256"]
    except (OSError, ValueError, KeyError):
        return None


def _record(folder: Path, file: Path) -> Path:
    """Where it is remembered."""
    status = _status(file)
    key = f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    return folder / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.json"


def _status(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise UserError(f'"{file}" cannot be read: {error.strerror}') from None


def hash_files(files: Sequence[Path]) -> list[str]:
    """The sha256 of each file, in hex, with nothing remembered."""
    return [hash_file(file) for file in files]


def hash_file(file: Path, tell: Callable[[int], None] = lambda done: None) -> str:
    """sha256 of all bytes of a file, in hex; `tell` is called with the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    try:
        with open(file, "rb", buffering=0) as stream:
            buffer = memoryview(bytearray(CHUNK_BYTES))
            while size := stream.readinto(buffer):
                digest.update(buffer[:size])
                done += size
                tell(done)
    except OSError as error:
        raise UserError(f'"{file}" cannot be read: {error.strerror}') from None
    return digest.hexdigest()


def _progress(file: Path) -> Callable[[int], None]:
    """Log how far a large file is hashed."""
    total, last = file.stat().st_size, time.monotonic()
    if total >= TOLD_BYTES:
        log.info("hashing %s, %.1f GB, once for this work directory", file, total / 1e9)

    def tell(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= TOLD_EVERY_S:
            last = time.monotonic()
            log.info("hashing %s: %.1f of %.1f GB", file, done / 1e9, total / 1e9)

    return tell
