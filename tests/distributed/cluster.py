"""A real SLURM on this machine for as long as a test needs it: munge, controller, and two nodes that can be killed.

All of it lives in one temporary folder: own key, own socket, own configuration (SLURM_CONF), free ports.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NODES = ("n1", "n2")
UP = ("idle", "mixed", "allocated", "completing")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
# Where Debian puts the daemons, which not every user's PATH names.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
PATIENCE_S = 90

# cred_expire is also how long a job waits that was put back into the queue (120 s by default, and for less than 5).
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,bf_interval=1,sched_interval=1
BatchStartTimeout=2
ReturnToService=2
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} Gres=gpu:8
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} Gres=gpu:8
PartitionName=gpu Nodes=n1,n2
"""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


def until(holds: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Poll `holds`, and fail with `what` when it stays false."""
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _environ(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _is_step_daemon(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "slurmstepd"
    return False


class Cluster:
    """`with Cluster() as cluster`: SLURM runs inside, and nothing of it afterwards."""

    def __init__(self) -> None:
        # Not under pytest's folder, whose name is too long for a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}
        self._daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def call(self, *command: str) -> str:
        """Standard output of a SLURM command."""
        done = self._run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What the controller knows of a job, or of one task of an array: JobState, Restarts, NodeList, ..."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_node(self, node: str) -> None:
        self._daemon(node, "slurmd", "-D", "-N", node)
        # A state ends in * while the node does not answer.
        until(lambda: self._run("sinfo", "-h", "-n", node, "-o", "%T").stdout.strip() in UP, node)

    def kill_node(self, node: str) -> None:
        """SIGKILL to everything on a node: its daemon, then what starts jobs, then the jobs."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        self._kill_jobs(node)

    def log(self) -> str:
        """The daemons' own words, for a test that failed."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-8000:]}" for path in self.folder.glob("*.log"))

    def _run(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def _start(self) -> None:
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        for number in range(8):
            # A GPU is a device file for SLURM, which looks no closer.
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-7]\n")
        values = {"host": socket.gethostname(), "user": getpass.getuser(), "cpus": os.cpu_count()}
        text = CONFIGURATION.format(folder=self.folder, ports=_free_ports(3), **values)
        (self.folder / "slurm.conf").write_text(text)
        files = ("key-file", "socket", "pid-file", "seed-file", "log-file")
        names = ("munge.key", "munge.socket", "munge.pid", "munge.seed", "munge.log")
        paths = [f"--{option}={self.folder}/{name}" for option, name in zip(files, names, strict=True)]
        self._daemon("munged", "munged", "--foreground", "--force", *paths)
        until((self.folder / "munge.socket").exists, "munge")
        self._daemon("slurmctld", "slurmctld", "-D")
        until(lambda: self._run("scontrol", "ping").returncode == 0, "the controller")
        for node in NODES:
            self.start_node(node)

    def _daemon(self, name: str, *command: str) -> None:
        program = shutil.which(command[0], path=PATH)
        with open(self.folder / f"{name}.out", "a") as output:
            self._daemons[name] = subprocess.Popen(
                [program, *command[1:]], env=self.environment, stdout=output, stderr=output, cwd=self.folder
            )

    def _job_processes(self, node: str) -> set[int]:
        wanted = {f"SLURM_CONF={self.folder}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode()}
        pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return {pid for pid in pids if wanted <= set(_environ(pid))}

    def _kill_jobs(self, node: str) -> None:
        while found := self._job_processes(node):
            steps = {pid for pid in map(_parent, found) if _is_step_daemon(pid)}
            for pid in [*steps, *found]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _stop(self) -> None:
        for node in NODES:
            if node in self._daemons:
                self.kill_node(node)
        for daemon in self._daemons.values():
            daemon.terminate()
        for daemon in self._daemons.values():
            daemon.wait(timeout=PATIENCE_S)
        shutil.rmtree(self.folder)
