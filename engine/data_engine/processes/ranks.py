"""The rank of this process, its device and threads, and the process group of all ranks of a job."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from data_engine.errors import LostRankError, UserError
from data_engine.plural import plural
from data_engine.processes import cpu_limit

log = logging.getLogger(__name__)

# What to do about variables that a launcher did not set, or not all of them.
_BY_LAUNCHERS = (
    "ranks are numbered from 0 to WORLD_SIZE - 1. Start them by launch/run_engine.sh or torchrun, which set these "
    "variables; for one process unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE"
)


@dataclass(frozen=True)
class Ranks:
    """This process's place in its job."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    group: int | None = None
    """of so many GPUs, the rank's own, which alone it sees; None: all ranks see all GPUs, and each takes one"""

    @classmethod
    def from_environment(cls) -> "Ranks":
        """From the variables that torchrun and accelerate set; without them, one rank of one.

        Raises UserError where they name no place in a job, and where NUM_PROCESSES, which launch/run_engine.sh sets,
        asked for more ranks than were started.
        """
        ranks = cls(*map(_from_launcher, _LAUNCHED, (0, 1, 0, 1)))
        if ranks.rank >= ranks.world_size:
            raise UserError(
                f"the environment says RANK={ranks.rank}, and WORLD_SIZE is {os.environ.get('WORLD_SIZE', 'not set')}: "
                f"{_BY_LAUNCHERS}"
            )
        asked = os.environ.get("NUM_PROCESSES") if "DATA_ENGINE_EXIT_FILE" in os.environ else None
        if asked and int(asked) > ranks.local_world_size:
            raise UserError(
                f"{asked} ranks were asked for, {ranks.local_world_size} started: the accelerate config must say "
                "`distributed_type: MULTI_GPU` (with `use_cpu: true` on CPU), as launch/accelerate/cpu.yaml does"
            )
        return ranks

    def device(self, asked: str) -> str:
        """The GPU of this rank's local number for "auto" or plain "cuda"; any other device as asked."""
        import torch

        number = self.local_rank if self.group is None else 0
        return f"cuda:{number}" if asked in ("auto", "cuda") and torch.cuda.is_available() else asked

    def with_gpus(self, each: int) -> "Ranks":
        """Let this process, and what it starts, see `each` GPUs alone: the local rank's share of those there are.

        To be called before torch works with a GPU. Without GPUs nothing changes. Raises UserError where there are too
        few of them.
        """
        import torch

        there = torch.cuda.device_count()
        if not there:
            return self
        if each * self.local_world_size > there:
            raise UserError(
                f"{plural(self.local_world_size, 'engine')} of {each} GPUs were asked for (the sizes of vllm_args), "
                f"and torch sees {there}: lower NUM_PROCESSES or the sizes"
            )
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        # CUDA sees the names up to the first that is no GPU, as -1 is: as many as there are GPUs.
        names = list(map(str, range(there))) if visible is None else visible.split(",")
        first = self.local_rank * each
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[first : first + each])
        return replace(self, group=each)


def _from_launcher(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < default:
        raise UserError(f'the environment says {name}="{text}", expected a number from {default} on: {_BY_LAUNCHERS}')
    return int(text)


_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# The same by mpirun: of Open MPI, and of MPICH and Intel MPI.
_MPIRUN = (
    tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


def take_place() -> None:
    """Make this process a rank where srun or mpirun started several of it, and no launcher: set what torchrun sets.

    Else each of them would be the only rank, work on the first GPU, and make the pairs. To be called before these
    variables are read.
    """
    if any(name in os.environ for name in (*_LAUNCHED, "DATA_ENGINE_EXIT_FILE")):
        return
    for names in _MPIRUN:
        if all(os.environ.get(name, "").isdecimal() for name in names):
            # Its daemons may be tasks of srun, whose variables are then not about the ranks.
            os.environ.update({ours: os.environ[name] for ours, name in zip(_LAUNCHED, names, strict=True)})
            return
    # accelerate sets no place for a single process, only variables of its own.
    if "ACCELERATE_MIXED_PRECISION" not in os.environ and (task := _Task.of_this_process()) is not None:
        # Of GPUs that SLURM has given to this task alone, none is another rank's.
        local = (0, 1) if task.has_own_gpus else (task.local_rank, task.num_here)
        place = map(str, (task.rank, task.num_tasks, *local))
        os.environ.update(zip(_LAUNCHED, place, strict=True))
        # SLURM may have bound the task to its share of the cores, or may not.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, task.num_cores_here // task.num_here)))


def require_one_launcher() -> None:
    """Raise UserError where srun started several launchers on this machine, and each would take all of its GPUs."""
    task = _Task.of_this_process()
    if task is not None and task.num_here > 1 and task.num_gpus_here and not task.has_own_gpus:
        raise UserError(
            f"srun started run_engine.sh {task.num_here} times on this machine, and each would start a rank on every "
            "GPU of the job: start it once a machine (srun --ntasks-per-node=1), or give each task a GPU of its own "
            "(srun --gpus-per-task=1)"
        )


def idle_nodes() -> str | None:
    """A warning where a SLURM job has several nodes, and this start, which is no step of the job, uses one."""
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "")
    if not nodes.isdecimal() or int(nodes) < 2 or "SLURM_STEP_ID" in os.environ or asked_machines() > 1:
        return None
    return (
        f"this SLURM job has {nodes} nodes, and the ranks start on this one alone: launch/slurm/multinode.sbatch "
        "starts them on all"
    )


@dataclass(frozen=True)
class _Task:
    """A task of srun, one of several; `here` is on its machine."""

    rank: int
    num_tasks: int
    local_rank: int
    num_here: int
    num_cores_here: int
    num_gpus_here: int
    has_own_gpus: bool

    @classmethod
    def of_this_process(cls) -> "_Task | None":
        """None for what is no task, or the only one."""
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_CPUS_ON_NODE")
        values = [os.environ.get(name, "") for name in names]
        # A shell of `srun --pty` hands on the variables of its own task; SLURM gives other tasks no terminal.
        if not all(map(str.isdecimal, values)) or int(values[1]) < 2 or _has_terminal():
            return None
        rank, num_tasks, local_rank, node, num_cores = map(int, values)
        counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        num_on = [int(count) for count, times in counts for _ in range(int(times or 1))]
        # A batch script that was submitted inside of a step has the step's variables too, and its own SLURM_NTASKS.
        if sum(num_on) != num_tasks or os.environ.get("SLURM_NTASKS") != str(num_tasks):
            return None
        visible, on_node = os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.environ.get("SLURM_GPUS_ON_NODE", "")
        num_gpus = int(on_node) if on_node.isdecimal() else 0
        has_own = bool(visible) and len(visible.split(",")) < num_gpus
        return cls(rank, num_tasks, local_rank, num_on[node], num_cores, num_gpus, has_own)


def _has_terminal() -> bool:
    """Whether a terminal controls this process."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


# What torchrun and accelerate tell their ranks. Processes of another library, started by a rank, would take it for
# their own: with TORCHELASTIC_USE_AGENT_STORE, torch looks for the launcher's store at whatever address it is given.
LAUNCHERS = re.compile(
    r"(TORCHELASTIC|ACCELERATE|FSDP|PET|GROUP|ROLE)_.*|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)"
)


@contextlib.contextmanager
def unlaunched(*changed: str, **more: str) -> Iterator[None]:
    """Inside, the environment is that of a process which no launcher started, with `more` in it.

    Afterwards all of these variables are what they were before, and those of `changed`, which the body may have set.
    """
    kept = {name: os.environ.pop(name) for name in list(os.environ) if LAUNCHERS.fullmatch(name)}
    before = {name: os.environ.get(name) for name in (*changed, *more)}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        os.environ.update(kept)


def join_process_group(ranks: Ranks, device_type: str):
    """Join torch's process group of all ranks. Returns a store that rank 0 serves as long as it lives.

    The launcher's own store is not used: launch/supervise.py stops the launcher while its ranks exit.
    """
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    if ranks.world_size == 1 and "MASTER_ADDR" not in os.environ:
        # Without a launcher, DeepSpeed misses the variables that one sets.
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
        os.environ.update(alone)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return dist.HashStore()
    _meet(ranks, backend)
    host, port = os.environ["MASTER_ADDR"], [0]
    if ranks.rank == 0:
        served = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        port = [served.port]
    dist.broadcast_object_list(port, group=dist.new_group(backend="gloo"), device="cpu")
    return served if ranks.rank == 0 else dist.TCPStore(host, port[0], is_master=False)


def _meet(ranks: Ranks, backend: str) -> None:
    """Wait for all ranks. Raises UserError where nothing says how they find each other, LostRankError where not all
    come in time.
    """
    import torch.distributed as dist

    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        names = ", ".join(missing)
        raise UserError(f"a split model takes all ranks, and the environment lacks {names}: {_BY_LAUNCHERS}")
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    log.info("waiting for all %d ranks, which meet at %s", ranks.world_size, place)
    try:
        dist.init_process_group(backend)
    except dist.DistError as error:
        first = str(error).strip().partition("\n")[0]
        raise LostRankError(f"not all of {ranks.world_size} ranks came to {place}: {first}") from None


def asked_ranks() -> Ranks:
    """The first rank of a job that is to be started, by the variables that launch/run_engine.sh takes and sets; without
    them, one rank of one.
    """
    here = _asked("NUM_PROCESSES")
    return Ranks(world_size=here * asked_machines(), local_world_size=here)


def asked_machines() -> int:
    """Of how many machines such a job is; 1 without the variable."""
    return _asked("NUM_MACHINES")


def _asked(name: str) -> int:
    number = os.environ.get(name, "")
    return int(number) if number.isdecimal() and int(number) else 1


def since_start_s() -> float:
    """Seconds since this process was started, its imports included; 0 where the system does not say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))


def is_launched() -> bool:
    """Whether a launcher started this process, as one of its ranks."""
    return "RANK" in os.environ


def num_threads(threads: int | None, ranks: Ranks) -> int:
    """CPU threads of a rank: as asked, else OMP_NUM_THREADS, else an equal share of the cores."""
    from_environment = os.environ.get("OMP_NUM_THREADS", "")
    if threads is None and from_environment.isdecimal():
        threads = int(from_environment)
    # 0 threads are none that were asked for.
    return threads or max(1, cpu_limit.num_cores() // ranks.local_world_size)


def set_threads(threads: int | None, ranks: Ranks) -> None:
    """Give this rank its CPU threads."""
    import torch

    torch.set_num_threads(num_threads(threads, ranks))


def set_device(device, memory_fraction: float) -> None:
    """Make the rank's `torch.device` the current one, where libraries allocate unless told otherwise.

    Of a GPU's memory, its tensors get that share at most: what asks for more is out of memory.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_per_process_memory_fraction(memory_fraction, device)
