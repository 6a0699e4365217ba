"""Check the configuration once, start the ranks, pass signals to them, return one exit code: see run_engine.sh.

`accelerate launch` alone turns every exit code into 1, dies of SIGUSR1 while its ranks go on, leaves its only rank
running on SIGTERM, and kills the slower ranks 30 s after the first has stopped. So each rank appends a JSON line
{"rank": r, "pid": p} to $DATA_ENGINE_EXIT_FILE once its signal handlers are installed, and {"rank": r, "code": c} when
it ends.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data_engine.errors import UserError
from data_engine.exit_codes import DONE, FAILED, INCOMPLETE, NOTHING_WRITTEN, STOPPED, WRONG_INPUT
from data_engine.processes import cpu_wait, output
from data_engine.processes.ranks import require_one_launcher

# Signal received -> signal sent to the ranks, which do not handle SIGHUP.
PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,
}
POLL_S = 0.1
# A signal repeated within this time counts once: SLURM signals every process of a job, and the batch script passes its
# own on. A second Ctrl-C always counts.
SAME_SIGNAL_S = 2.0


def exit_code(codes: list[int], num_begun: int, num_processes: int, signalled: bool) -> int:
    """The job's exit code from its ranks' codes; a rank that died or was killed has written none.

    So has one that the launcher stopped before it began, which it does where another one is INCOMPLETE or has
    NOTHING_WRITTEN.
    """
    stopped_early = {INCOMPLETE, NOTHING_WRITTEN} & set(codes) and not signalled
    silent = (num_begun if stopped_early else num_processes) - len(codes)
    if WRONG_INPUT in codes:
        return WRONG_INPUT
    # Before STOPPED: when one rank fails, the launcher stops the others, although no user signalled.
    if set(codes) - {DONE, INCOMPLETE, NOTHING_WRITTEN, STOPPED} or (silent and not signalled):
        return FAILED
    if signalled and (silent or STOPPED in codes):
        return STOPPED
    return INCOMPLETE if INCOMPLETE in codes else max(codes)


class JobProcesses:
    """The processes of one job, recognised by the exit file's name in their environment, also when orphaned."""

    def __init__(self, exit_file: Path) -> None:
        self.exit_file = exit_file
        exit_file.touch()
        self.tag = b"DATA_ENGINE_EXIT_FILE=" + os.fsencode(exit_file) + b"\0"

    def values(self, name: str) -> list[int]:
        """What the ranks wrote under `name`: pid or code."""
        lines = [json.loads(line) for line in self.exit_file.read_text().splitlines()]
        return [line[name] for line in lines if name in line]

    def died(self) -> list[int]:
        """Ranks that began and told no code: they were killed, or crashed in code that is not Python's."""
        lines = [json.loads(line) for line in self.exit_file.read_text().splitlines()]
        return sorted({line["rank"] for line in lines} - {line["rank"] for line in lines if "code" in line})

    def is_alive(self, pid: int) -> bool:
        # A zombie's environment is empty; another user's cannot be read.
        with contextlib.suppress(OSError):
            return self.tag in Path(f"/proc/{pid}/environ").read_bytes()
        return False

    def alive(self) -> set[int]:
        return {pid for pid in self.values("pid") if self.is_alive(pid)}

    def kill_all(self) -> None:
        """Ranks, launcher and whatever they started; again until none is left, since one may be starting another."""
        while left := [int(name) for name in os.listdir("/proc") if name.isdigit() and self.is_alive(int(name))]:
            for pid in left:
                send(pid, signal.SIGKILL)
            time.sleep(POLL_S)


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def supervise(launcher: subprocess.Popen, ranks: JobProcesses, num_processes: int, received: list[int]) -> None:
    """Return when launcher and ranks have ended, at a second signal in `received`, or at the first before a rank began.

    Where all ranks have told a code and some did not end well, the launcher is held still, then killed: it has nothing
    more to do, and would print a traceback under what they said. So is that of one machine of several, however its
    ranks ended: it would wait 5 minutes for one that has failed or is slower, and then print a traceback.
    """
    told: set[int] = set()
    while launcher.poll() is None or ranks.alive():
        orphaned = launcher.poll() is not None
        codes = ranks.values("code")
        over = len(codes) == num_processes and (any(codes) or num_machines() > 1)
        if over and not ranks.alive():
            launcher.kill()
            return
        begun = ranks.values("pid")
        # Of several machines, the launcher may wait a quarter of an hour for another one, and hears nothing meanwhile.
        if received and not begun:
            return
        if received or orphaned:
            alive = ranks.alive()
            for pid in alive - told:
                send(pid, received[0] if received else signal.SIGTERM)
            told |= alive
            # The launcher is held still while its ranks stop, or it would kill the slower ones.
            hold = over or (alive and len(begun) == num_processes)
            launcher.send_signal(signal.SIGSTOP if hold else signal.SIGCONT)
        elif over:
            launcher.send_signal(signal.SIGSTOP)
        if len(received) > 1:
            return
        time.sleep(POLL_S)


def check(command: list[str], received: list[int]) -> int:
    """The exit code of the command that checks the configuration; the first signal in `received` ends it."""
    # A session of its own, as the launcher has: Ctrl-C comes here only.
    child, told = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True), False
    while child.poll() is None:
        if received and not told:
            told = True
            child.terminate()
        time.sleep(POLL_S)
    return child.returncode


def num_machines() -> int:
    """Of the job; run_engine.sh has checked what the environment says."""
    return int(os.environ.get("NUM_MACHINES") or 1)


def listen(received: list[int]) -> None:
    """Append to `received` each signal that the ranks are to get."""
    last = -SAME_SIGNAL_S

    def note(number: int, _frame: object) -> None:
        nonlocal last
        if number == signal.SIGINT or time.monotonic() - last >= SAME_SIGNAL_S:
            received.append(PASSED_ON[number])
            last = time.monotonic()

    for number in PASSED_ON:
        # A signal that is ignored, as a hang-up is under nohup, stays so.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, note)


def launch_command(program: str, num_processes: int, folder: str, flags: list[str]) -> list[str]:
    """`accelerate launch` of `num_processes` ranks on this machine, which may be one of several.

    What it writes for itself goes to `folder`: torch's launcher makes a folder for each job, and leaves it.
    """
    machines = num_machines()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", os.environ["ACCELERATE_CONFIG"]]
    command += ["--log_dir", folder]
    command += ["--num_processes", str(num_processes * machines)]
    if machines > 1:
        command += ["--num_machines", str(machines), "--machine_rank", os.environ["MACHINE_RANK"]]
        command += ["--main_process_ip", os.environ["MAIN_ADDRESS"], "--main_process_port", os.environ["MAIN_PORT"]]
        command += ["--same_network"]
    return [*command, "--module", program, "run", *flags]


def told_of(died: list[int]) -> str:
    """Of ranks that can say nothing themselves; a launcher shows the signal, not what to do."""
    return (
        f"rank {' and rank '.join(map(str, died))} died without a word: killed, most often for want of memory, which "
        "dmesg or the container's events say, or crashed. Every published unit is kept: run the same command again, "
        "where memory was short with fewer ranks (NUM_PROCESSES) or more of it"
    )


def main(flags: list[str]) -> int:
    output.open_missing()
    received: list[int] = []
    listen(received)

    # Tests run a stand-in instead of the command line.
    program = os.environ.get("DATA_ENGINE_PROGRAM", "data_engine")
    if {"-h", "--help"} & {*flags}:
        return subprocess.call([sys.executable, "-m", program, "run", *flags])
    try:
        require_one_launcher()
    except UserError as error:
        output.tell(error)
        return WRONG_INPUT
    # Once, before any rank starts: the launcher would bury the message under tracebacks.
    code = check([sys.executable, "-m", program, "validate", *flags], received)
    if code or received:
        return STOPPED if received else code

    num_processes = int(os.environ["NUM_PROCESSES"])
    cpu_wait.apply(num_processes * int(os.environ.get("OMP_NUM_THREADS") or 1))
    with tempfile.TemporaryDirectory(prefix="data-engine-") as folder:
        ranks = JobProcesses(Path(folder, "ranks.jsonl"))
        command = launch_command(program, num_processes, folder, flags)
        environment = {**os.environ, "DATA_ENGINE_EXIT_FILE": str(ranks.exit_file)}
        try:
            # A session of its own: Ctrl-C comes here only.
            launcher = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            supervise(launcher, ranks, num_processes, received)
        finally:
            ranks.kill_all()
        launcher.wait()
        codes = ranks.values("code")
        # After a signal, or another rank's error, who takes too long to stop is killed by the launcher.
        if (died := ranks.died()) and not received and not set(codes) - {DONE, STOPPED}:
            output.complain(told_of(died))
        return exit_code(codes, len(ranks.values("pid")), num_processes, bool(received))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
