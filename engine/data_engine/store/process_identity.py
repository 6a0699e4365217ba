"""Which process this is, among all processes of all hosts and containers that share a work_dir.

Containers may share a host's name, and hosts may have equal names: a process id means something only to processes of
the same boot of the same kernel, in the same pid namespace.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
# States of a process: zombie, dead.
_ENDED = ("Z", "X")


@dataclass(frozen=True)
class ProcessIdentity:
    """A process and where its id is valid; None where /proc does not tell."""

    host: str
    boot: str | None
    namespace: str | None
    pid: int
    born: str | None
    """when it started, in clock ticks since boot: process ids repeat"""

    @classmethod
    def of_this_process(cls) -> "ProcessIdentity":
        pid = os.getpid()
        return cls(socket.gethostname(), _boot(), _namespace(pid), pid, _born(pid))

    @classmethod
    def from_json(cls, fields: object) -> "ProcessIdentity":
        """From what `vars` of one became in a file. Raises ValueError where it is none."""
        names = ("host", "boot", "namespace", "pid", "born")
        values = [fields.get(name) for name in names] if isinstance(fields, dict) else [None]
        identity = cls(*values) if len(values) == len(names) else None
        if identity is None or type(identity.pid) is not int or identity.pid < 1:
            raise ValueError(f"no process: {fields!r}")
        return identity

    def sees(self, other: "ProcessIdentity") -> bool:
        """Whether the id of `other` means the same to this process: one kernel, one boot, one pid namespace."""
        places = [(one.host, one.boot, one.namespace) for one in (self, other)]
        return None not in places[0] and places[0] == places[1]

    def has_ended(self) -> bool:
        """Whether this process is certainly gone; ask only about one that the asking process `sees`."""
        try:
            fields = _stat(self.pid)
            # Of a process that nobody waits for an entry stays, as in a container whose first process is no init.
            return fields[0] in _ENDED or (self.born is not None and fields[19] != self.born)
        except OSError:
            pass
        try:
            # /proc may hide the processes of other users.
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on. Raises OSError where there is no such process."""
    return (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].decode().split()


def _born(pid: int) -> str | None:
    try:
        return _stat(pid)[19]
    except OSError:
        return None


def _boot() -> str | None:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _namespace(pid: int) -> str | None:
    try:
        # /proc may be that of another namespace, in which this process has another id.
        mounted_for_us = os.readlink(_PROC / "self") == str(pid)
        return os.readlink(_PROC / "self/ns/pid") if mounted_for_us else None
    except OSError:
        return None
