"""What the command line shows, and how it ends, on terminals and pipes of all kinds."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_engine.commands import main, run
from data_engine.config import Draft
from data_engine.job import progress
from data_engine.processes import counting, cpu_wait
from data_engine.processes.ranks import Ranks
from data_engine.store.units import UnitResult, publish, unit_path

COMMAND = [sys.executable, "-m", "data_engine"]
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def start(*arguments: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess:
    command = ["sh", "-c", f'"$@" {shell}', "sh", *COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, check=False)


@pytest.mark.parametrize("name", ["bild-ä-画像", "half \udcc3"])
def test_a_locale_that_cannot_show_a_name_does_not_change_the_exit_code(name):
    done = start("status", name, **ASCII)
    assert done.returncode == 2
    assert done.stderr.startswith(b'data-engine: error: no folder "')
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "1</dev/null"])
def test_closed_outputs_do_not_change_the_exit_code(closed):
    assert start("--help", shell=closed).returncode == 0
    assert start("status", "nowhere", shell=closed).returncode == 2


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_a_file_never_gets_the_number_of_a_standard_stream(tmp_path, closed):
    """C code writes its messages to 1 and 2, whatever these are."""
    code = (
        "import sys; from data_engine.processes.output import protect; protect(); print(open(sys.argv[1], 'w').fileno()"
    )
    code += ", file=open(sys.argv[2], 'w'))"
    files = [tmp_path / "opened", tmp_path / "number"]
    subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", code, *files], check=True)
    assert int(files[1].read_text()) > 2


def flags(place: Path) -> list[str]:
    goldens = Path(__file__).parents[1] / "goldens/llava"
    questions = pq.read_table(goldens / "dataset/questions.parquet").slice(0, 2)
    place.mkdir()
    with open(place / "q.parquet", "wb") as file:
        pq.write_table(questions, file)
    paths = {"instruct_model_path": goldens / "instruct", "reward_model_path": goldens / "reward"}
    paths |= {"dataset_path": place / "q.parquet", "work_dir": place / "work"}
    settings = {"sample_k": 2, "rank": 1, "max_new_tokens": 4, "threads": 1}
    return [word for name, value in (paths | settings).items() for word in (f"--{name}", str(value))]


@pytest.mark.slow
def test_a_run_between_names_of_any_character_ends_well_in_any_locale(tmp_path):
    done = start("run", *flags(tmp_path / "bild-ä-画像"), **ASCII)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bild-ä-画像/work/report/index.html").exists()
    assert rb"bild-\xe4-\u753b\u50cf" in start("status", str(tmp_path / "bild-ä-画像/work"), **ASCII).stdout


def test_processes_that_a_command_starts_read_names_as_it_does():
    code = (
        "import subprocess, sys; from data_engine.processes import output; output.use_utf8(); "
        "tell = 'import codecs, sys; print(sys.getfilesystemencoding(), codecs.lookup(sys.stdout.encoding).name)'; "
        "subprocess.run([sys.executable, '-c', tell], check=True)"
    )
    environment = {name: value for name, value in (os.environ | ASCII).items() if name != "PYTHONIOENCODING"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    # What they print is in the encoding of the terminal all the same.
    assert done.stdout == b"utf-8 ascii\n"


def test_a_name_that_is_no_utf8_is_refused_by_its_flag(tmp_path, capsys):
    assert main.main(["validate", *flags(tmp_path / "half \udcc3")]) == 2
    told = capsys.readouterr().err
    assert "dataset_path must be text in UTF-8, got" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_name_that_is_no_utf8_is_refused_by_its_flag_in_a_process_of_its_own(tmp_path):
    done = start("validate", *flags(tmp_path / "half \udcc3"))
    assert done.returncode == 2
    assert b"dataset_path must be text in UTF-8, got" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_goes_away_does_not_change_the_exit_code(tmp_path):
    """A pipe whose other end is closed before anything is written."""
    code = tmp_path / "code"
    script = f'({" ".join(COMMAND)} --help; echo $? > "{code}") 2>"{tmp_path}/errors" | true'
    for _ in range(3):
        subprocess.run(["sh", "-c", script], check=False)
        deadline = time.monotonic() + 30
        while not (code.exists() and code.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert code.read_text() == "0\n"
        assert (tmp_path / "errors").read_text() == ""
        code.unlink()


def shown(tmp_path: Path, monkeypatch, capsys) -> list[str]:
    """The lines of a job of four units, of which three are published one after the other."""
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.05)
    monkeypatch.setattr(progress, "LINE_S", 0.05)
    progress.log_to_stderr(Ranks())
    table = pa.table({"a": [1] * 10})
    publish(unit_path(tmp_path, "sampled_answer", 0), table)
    with progress.Progress(tmp_path, ["sampled_answer"], range(4), 4, Ranks()) as told:
        for unit in (1, 2):
            publish(unit_path(tmp_path, "sampled_answer", unit), table)
            told.unit_done("sampled_answer", unit, UnitResult(table, []), questions=1, seconds=0.1, peak_bytes=0)
            time.sleep(0.3)
    return capsys.readouterr().err.splitlines()


def test_without_a_terminal_progress_is_plain_lines(tmp_path, monkeypatch, capsys):
    lines = shown(tmp_path, monkeypatch, capsys)
    assert len(lines) > 3
    pattern = r"\d\d:\d\d:\d\d rank 0: \d of 4 units, [\d.]+ answers/s(, \d+ s left)?"
    assert all(re.fullmatch(pattern, line) for line in lines), lines
    assert "2 of 4 units" in lines[0]
    assert "3 of 4 units" in lines[-1]
    # Two units in 0.6 s, one is left.
    assert lines[-1].endswith("0 s left")


def test_on_a_terminal_progress_is_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    text = "\n".join(shown(tmp_path, monkeypatch, capsys))
    assert "units:" in text
    assert "of 4 units" not in text


def test_without_a_terminal_a_loop_tells_how_far_it_is_after_ten_seconds_and_then_every_minute(monkeypatch, caplog):
    """200 items of a second each."""
    caplog.set_level("INFO", "data_engine")
    monkeypatch.setattr(counting.time, "monotonic", iter(range(1000)).__next__)
    assert list(counting.counting(range(200), 200, "items")) == [*range(200)]
    # The clock is asked once before the first item, too.
    assert caplog.messages == [
        "9 of 200 items, 4 min left", "69 of 200 items, 2 min left", "129 of 200 items, 1 min left",
        "189 of 200 items, 11 s left",
    ]  # fmt: skip


@pytest.mark.parametrize(("after_s", "is_shown"), [(0.0, True), (1000.0, False)])
def test_on_a_terminal_a_loop_has_a_bar_once_it_takes_long(monkeypatch, capsys, after_s, is_shown):
    monkeypatch.setattr(counting, "BAR_AFTER_S", after_s)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(counting.counting(range(3), 3, "items")) == [0, 1, 2]
    assert ("0/3" in capsys.readouterr().err) == is_shown


@pytest.mark.parametrize(("terminal", "meanwhile", "left"), [(True, "looking ...", "\r\x1b[K"), (False, "", "")])
def test_what_is_waited_for_is_shown_on_a_terminal_alone_and_then_gone(monkeypatch, capsys, terminal, meanwhile, left):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with counting.waiting("looking"):
        assert capsys.readouterr().err == meanwhile
    assert capsys.readouterr().err == left


# How threads wait.


class Stat:
    """What /proc/stat says, look after look: each core's idle ticks, and those that it worked."""

    def __init__(self, *looks: tuple[tuple[int, int], ...]) -> None:
        self.looks = list(looks)

    def read_text(self) -> str:
        cores = self.looks.pop(0)
        # A core that this process may not use is always busy.
        others = f"cpu{len(cores)} {1000 - 100 * len(self.looks)} 0 0 0 0 0 0 0 0 0\n"
        # A core that waits for a disk is idle; the time of a guest is in user time, too.
        return "cpu  1 2 3 4\n" + "".join(
            f"cpu{number} {work} 0 0 {idle - idle // 2} {idle // 2} 0 0 0 {work} 0\n"
            for number, (idle, work) in enumerate(cores)
        ) + others + "intr 1 2 3\n"  # fmt: skip


@pytest.mark.parametrize(
    ("second_look", "threads", "reason"),
    [
        # 30 ticks each: both idle; one busy; both half busy; one busy beside a single thread.
        (((130, 50), (130, 50)), 2, None),
        (((130, 50), (100, 80)), 2, "other work keeps 1.0 of 2 cores busy"),
        (((115, 65), (115, 65)), 2, "other work keeps 1.0 of 2 cores busy"),
        (((130, 50), (100, 80)), 1, None),
        (((130, 50), (124, 56)), 2, None),
        (((130, 50), (130, 50)), 3, "3 threads share 2 cores"),
    ],
)
def test_threads_sleep_where_other_work_needs_the_cores(monkeypatch, second_look, threads, reason):
    monkeypatch.setattr(cpu_wait.os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(cpu_wait, "LOOK_S", 0)
    assert cpu_wait.choose({}, threads, Stat(((100, 50), (100, 50)), second_look)) == reason


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_has_set_stays(monkeypatch, name):
    monkeypatch.setattr(cpu_wait.os, "sched_getaffinity", lambda pid: {0})
    assert cpu_wait.choose({}, 8) is not None
    assert cpu_wait.choose({name: "x"}, 8) is None


def test_a_system_that_does_not_tell_its_load_counts_as_quiet(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_wait.os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(cpu_wait, "LOOK_S", 0)
    assert cpu_wait.choose({}, 2, tmp_path / "stat") is None


def test_the_choice_is_made_before_torch_and_reaches_a_lone_process(monkeypatch, capfd):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(cpu_wait, "choose", lambda environment, threads: f"{threads} threads")
    config = type("Config", (), {"threads": 7, "work_dir": "runs/none"})
    monkeypatch.setattr(run, "read", lambda argv: Draft(config, [], frozenset()))
    monkeypatch.setattr(run.stacks, "dump_on_signal", lambda number: None)
    seen = []
    monkeypatch.setattr(run.importlib, "import_module", lambda name: type("Module", (), {
        "run": lambda config: seen.append(os.environ["OMP_WAIT_POLICY"]) or 0}))  # fmt: skip
    assert run.main([]) == 0
    assert seen == ["PASSIVE"]
    assert "OMP_WAIT_POLICY=PASSIVE: 7 threads, so waiting threads sleep" in capfd.readouterr().err
    os.environ.pop("OMP_WAIT_POLICY")
