"""A rule in its process: what it does to itself is recorded with the question, and the next one is judged."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import textwrap
from multiprocessing import resource_tracker

import pytest

from data_engine.errors import UserError
from data_engine.processes.job_signals import JOB_SIGNALS
from data_engine.rules import client
from data_engine.rules import worker as rules_worker
from data_engine.rules.chosen import Rule
from data_engine.rules.client import COMMAND, Judged, RuleProcess
from data_engine.rules.worker import Limits, SetUp

LITTLE = Limits(memory_bytes=120 << 20)
HASTY = Limits(processor_s=0.4, import_s=0.4)
ANSWERS = ["one", "two"]


def process(body: str, limits: Limits = LITTLE) -> RuleProcess:
    """A rule f of which `body` is what it does for idx 1; any other question is told the lengths of its answers."""
    body = textwrap.indent(textwrap.dedent(body).strip("\n"), " " * 8)
    source = f"def f(row, answers):\n    if row['idx'] == 1:\n{body}\n    return [len(answer) for answer in answers]\n"
    return RuleProcess(Rule("mine.py:f", function="f", source=source), limits)


@pytest.fixture
def judged():
    """What a rule makes of a question, after which the next question is judged as if nothing had been."""
    running = []

    def judge(body: str, limits: Limits = LITTLE) -> Judged:
        running.append(process(body, limits))
        found = running[-1].judge({"idx": 1}, ANSWERS)
        assert running[-1].judge({"idx": 2}, ["three", "no"]) == Judged((5.0, 2.0), (None, None))
        return found

    yield judge
    for one in running:
        one.close()


def test_a_cell_that_a_built_in_rule_refuses_is_told_by_the_name_of_the_rule():
    judging = RuleProcess(Rule("final_answer", "data_engine.rules.final_answer"), LITTLE)
    told = 'the column "answer" must hold text, a number, true or false, or a list of these, got an object'
    assert judging.judge({"answer": {"a": 1}}, ["x"]).problem == f"final_answer raised ValueError: {told}"
    judging.close()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("import os; os._exit(3)", "the rule ended its process (exit code 3), 2 times"),
        ("import ctypes; ctypes.string_at(0)", "the rule crashed its process (SIGSEGV), 2 times"),
        ("while True: pass", "the rule took more than 0.4 s of processor time, 2 times"),
        ("return [len(bytearray(1 << 33))]", "it needs more memory than a rule may have, 2 times"),
        ("x = [0]\nwhile True: x += x", "it needs more memory than a rule may have, 2 times"),
        (
            "import os; os.closerange(3, 1 << 20)\nwhile True: pass",
            "the rule closed or wrote into a file of its process that is not its own, 2 times",
        ),
    ],
)
def test_what_ends_the_process_is_tried_twice_and_recorded(judged, monkeypatch, body, problem):
    monkeypatch.setattr("data_engine.processes.isolated.END_S", 0.2 if "closerange" in body else 60)
    limits = HASTY if "processor time" in problem else LITTLE
    assert judged(body, limits) == Judged(problem=problem, is_limit=True)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("import os; os.kill(os.getpid(), 9)", "the rule was killed, most often for want of memory"),
        ("raise OSError(errno.EIO, 'Input/output error')", "f raised OSError: [Errno 5] Input/output error (line 4)"),
        # The limit on processes of this user is the machine's.
        ("raise BlockingIOError(errno.EAGAIN, 'none')", "f raised BlockingIOError: [Errno 11] none (line 4)"),
    ],
)
def test_what_the_machine_does_is_tried_twice_and_missing(judged, body, problem):
    assert judged(f"import errno\n{body}") == Judged(problem=f"{problem}, 2 times", is_limit=True, is_missing=True)


def test_a_disk_that_fails_once_costs_nothing(judged, tmp_path):
    body = f"""
        import errno, pathlib
        if not pathlib.Path({str(tmp_path / "again")!r}).exists():
            pathlib.Path({str(tmp_path / "again")!r}).touch()
            raise OSError(errno.ESTALE, 'Stale file handle')
        return [1, 2]
        """
    assert judged(body) == Judged((1.0, 2.0), (None, None))


def test_a_worker_that_is_killed_while_it_imports_the_rule_is_a_try_of_the_question(tmp_path):
    """As where memory is short: importing is what fills it."""
    short = tmp_path / "short of memory"
    source = (
        "import os, signal\n"
        f"if os.path.exists({str(short)!r}): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def f(row, answers): return [1.0] * len(answers)\n"
    )
    short.touch()
    with contextlib.closing(RuleProcess(Rule("mine.py:f", function="f", source=source), LITTLE)) as running:
        told = "importing the file was killed, most often for want of memory"
        assert running.judge({}, ANSWERS) == Judged(problem=f"{told}, 2 times", is_limit=True, is_missing=True)
        with pytest.raises(UserError, match=f'rule "mine.py:f": {told}'):
            running.start()
        short.unlink()
        assert running.judge({}, ANSWERS) == Judged((1.0, 1.0), (None, None))


def test_a_process_that_a_rule_has_forked_off_does_not_answer_for_the_next_question(judged):
    """`judged` asks the next one, which would get the numbers of this one again."""
    assert judged("import os; os.fork(); return [1, 2]") == Judged((1.0, 2.0), (None, None))
    assert judged("import os, sys; os.fork() or sys.exit(); return [1, 2]") == Judged((1.0, 2.0), (None, None))


def test_a_rule_may_write_into_its_list_where_the_order_stays(judged):
    body = "for place, one in enumerate(answers): answers[place] = one[:2]"
    assert judged(f"{body}\nreturn [len(one) for one in answers]") == Judged((2.0, 2.0), (None, None))
    shortened = judged("return [len(answers.pop()), len(answers.pop())]")
    assert "changed the list of answers" in shortened.problem


def test_a_rule_that_sleeps_is_ended_by_the_clock_even_without_its_alarm(judged):
    limits = Limits(clock_s=0.3)
    assert judged("import time; time.sleep(100)", limits).problem == "the rule took more than 0.3 s, 2 times"


def test_a_rule_that_switches_its_alarm_off_is_ended_by_the_rank(judged, monkeypatch):
    monkeypatch.setattr("data_engine.rules.client.SPARE_S", 0.2)
    body = "import signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0)\ntime.sleep(100)"
    assert judged(body, Limits(clock_s=0.3)).problem == "the rule took more than 0.3 s, 2 times"


def test_a_file_that_ignores_signals_is_held_to_its_time_all_the_same():
    source = (
        "import signal\nsignal.signal(signal.SIGPROF, signal.SIG_IGN)\ndef f(row, answers):\n    while True: pass\n"
    )
    rule = RuleProcess(Rule("mine.py:f", function="f", source=source), Limits(processor_s=0.4, clock_s=20))
    with contextlib.closing(rule):
        assert rule.judge({}, ANSWERS).problem == "the rule took more than 0.4 s of processor time, 2 times"


def test_a_worker_whose_rank_is_gone_before_it_was_asked_ends():
    """Then no signal tells it, and other processes may hold the other end of its stream."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [*COMMAND, str(theirs.fileno()), str(os.getppid())]
        worker = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        try:
            assert worker.wait(60) == 0
        finally:
            worker.kill()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("raise SystemExit", "f raised SystemExit (line 3)"),
        ("import sys; sys.exit('bye')", "f raised SystemExit: bye (line 3)"),
        ("raise KeyboardInterrupt", "f raised KeyboardInterrupt (line 3)"),
        ("raise ValueError('one\\ntwo')", "f raised ValueError: one (line 3)"),
        ("raise ValueError(object())", "f raised ValueError: <object object at 0x…> (line 3)"),
        ("raise ValueError('a\\ud800b')", "f raised ValueError: a?b (line 3)"),
        ("class Odd(Exception):\n    __str__ = None\nraise Odd", "f raised Odd (line 5)"),
        ("return f(row, answers)", "f raised RecursionError: maximum recursion depth exceeded (line 3)"),
        ("return [1]", "f returned 1 number for 2 answers"),
        (
            "answers.reverse()\nreturn [len(one) for one in answers]",
            "f changed the list of answers, so that its numbers are of others; sort a copy",
        ),
        ("return [1, 2, 3]", "f returned 3 numbers for 2 answers"),
        ("return None", "f returned None, expected a list with a number or None an answer"),
        ("return 3", "f returned a value of type int, expected a list with a number or None an answer"),
        ("return '12'", "f returned a value of type str, expected a list with a number or None an answer"),
        ("return {0: 1, 1: 2}", "f returned a value of type dict, expected a list with a number or None an answer"),
        ("return {2, 1}", "f returned a value of type set, expected a list with a number or None an answer"),
        ("return (1 / n for n in (1, 0))", "f raised ZeroDivisionError: division by zero (line 3)"),
    ],
)
def test_what_a_rule_raises_or_returns_amiss_is_the_questions_reason(judged, body, problem):
    found = judged(body)
    assert (found.problem.replace(" in comparison", ""), found.is_limit) == (problem, False)


@pytest.mark.parametrize(
    ("value", "score"),
    [
        ("1", 1.0), ("2.5", 2.5), ("-0.0", 0.0), ("True", 1.0), ("False", 0.0), ("None", None),
        ("__import__('fractions').Fraction(1, 4)", 0.25), ("__import__('numpy').float32(0.5)", 0.5),
        ("__import__('numpy').int64(7)", 7.0), ("__import__('numpy').bool_(True)", 1.0), ("10 ** 300", 1e300),
    ],
)  # fmt: skip
def test_a_number_of_any_kind_counts(judged, value, score):
    # numpy reserves more than the rest of a worker.
    assert judged(f"return [{value}, 0]", Limits()) == Judged((score, 0.0), (None, None))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("'1'", "the rule gave a value of type str, expected a number or None"),
        ("[1]", "the rule gave a value of type list, expected a number or None"),
        ("1j", "the rule gave a value of type complex, expected a number or None"),
        ("float('nan')", "the rule gave nan, expected a finite number"),
        ("float('-inf')", "the rule gave -inf, expected a finite number"),
        ("10 ** 400", "the rule gave inf, expected a finite number"),
    ],
)
def test_what_is_no_number_is_that_answers_reason(judged, value, reason):
    assert judged(f"return [{value}, 1]") == Judged((None, 1.0), (reason, None))


def test_what_a_rule_prints_goes_nowhere(judged, capfd):
    body = "import os, sys\nprint('x' * 100000)\nos.write(1, b'y' * 100000)\nsys.stderr.write('z')\nreturn [1, 2]"
    assert judged(body) == Judged((1.0, 2.0), (None, None))
    assert capfd.readouterr() == ("", "")


def test_what_a_rule_keeps_in_memory_is_not_the_next_questions_end(judged):
    # Each question alone fits, two together do not: the second is judged by a fresh process.
    source = "kept = []\ndef f(row, answers):\n    kept.append(bytearray(70 << 20))\n    return [row['idx']] * 2\n"
    running = RuleProcess(Rule("mine.py:f", function="f", source=source), LITTLE)
    for idx in (1, 2, 3):
        assert running.judge({"idx": idx}, ANSWERS) == Judged((idx, idx), (None, None))
    running.close()


@pytest.mark.parametrize("number", sorted(JOB_SIGNALS))
def test_a_signal_that_comes_while_a_worker_starts_does_not_end_it(number):
    worker = client._Worker(COMMAND)
    os.kill(worker.process.pid, number)
    try:
        source = "def score(row, answers):\n    return [1.0 for _ in answers]"
        assert worker.asked(SetUp("rule.py", source, "score", None, [], LITTLE), 60) == {"problem": None, "read": []}
        assert worker.asked(({}, ["a", "b"]), 60)["scores"] == [1.0, 1.0]
    finally:
        worker.end()


def test_processes_that_a_rule_starts_end_with_its_own(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    body = f"import subprocess\nsubprocess.Popen(['sh', '-c', 'echo $$ > {pipe}; exec sleep 1000'])\nreturn [1, 2]"
    running = process(body)
    running.judge({"idx": 1}, ANSWERS)
    started = os.pidfd_open(int(pipe.read_text()))
    running.close()
    assert select.select([started], [], [], 60)[0]
    os.close(started)


def test_a_rule_sees_nothing_of_the_launcher(judged, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    body = "import os\nreturn ['LOCAL_RANK' in os.environ, int(os.environ['PYTHONHASHSEED'])]"
    assert judged(body) == Judged((0.0, 0.0), (None, None))


def test_one_that_cannot_be_started_leaves_no_socket_open(monkeypatch):
    monkeypatch.setattr(client, "COMMAND", ["/no/such/python"])
    # The first process that is started has a file of this one's.
    resource_tracker.ensure_running()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError) as failed:
        process("pass").judge({"idx": 1}, ANSWERS)
    # The exception keeps the frames, and what they hold.
    assert failed.tb is not None
    assert os.listdir("/proc/self/fd") == before


@pytest.fixture
def handlers():
    """Those of the signals by which a rule's process ends itself."""
    numbers = (signal.SIGPROF, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_process_that_waits_for_its_next_question_has_no_limit_of_time(handlers):
    timers = (signal.ITIMER_PROF, signal.ITIMER_REAL)
    with rules_worker._timed(100, 200):
        assert [round(signal.getitimer(timer)[0], -1) for timer in timers] == [100, 200]
    assert [signal.getitimer(timer) for timer in timers] == [(0, 0), (0, 0)]
