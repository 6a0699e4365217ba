"""Lock-step: ranks with different work make the same calls in the same order, and none is left hanging."""

import json
import re
import time

import pytest
from jobs import forked_world

LONG = "encode " + "decode " * 9
PLANS = {
    "uneven": [LONG + "encode decode", "encode decode", "decode decode encode"],
    "one without work": [LONG, "", "encode"],
    "none has work": ["", "", ""],
}


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


def ranks(death: str, plans: list[str], dying: int = 1) -> list[dict]:
    output = output_of(death, plans, dying)
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def output_of(death: str, plans: list[str], dying: int = 1) -> str:
    forked, end = forked_world(len(plans), "lock_step_ranks", [death, str(dying), *plans]), time.monotonic() + 120
    if death == "freeze":
        # Once it is alone, a frozen rank is waited for by launchers only.
        while forked.poll() is None and forked.codes().count(None) > 1 and time.monotonic() < end:
            time.sleep(0.05)
        forked.kill()
    return forked.communicate(timeout=120)[0]


@pytest.mark.parametrize(
    ("plans", "world_size"),
    [
        pytest.param(plans, size, marks=[] if (size, name) == (3, "uneven") else pytest.mark.slow, id=f"{size}-{name}")
        for name, plans in PLANS.items()
        for size in (1, 3)
    ],
)
def test_ranks_make_the_same_calls_in_the_same_order(plans, world_size):
    plans = plans[:world_size]
    found = {line["rank"]: line for line in ranks("none", plans)}
    assert len(found) == world_size
    orders = [[call.removeprefix("dummy ") for call in found[rank]["log"]] for rank in range(world_size)]
    assert orders == [orders[0]] * world_size
    for rank, plan in enumerate(plans):
        assert [call for call in found[rank]["log"] if not call.startswith("dummy")] == plan.split()
        assert found[rank]["result"] == list(range(len(plan.split())))


@pytest.mark.slow
def test_an_image_does_not_wait_for_another_ranks_decoding():
    found = {line["rank"]: line["log"] for line in ranks("none", ["decode " * 20, "encode decode"])}
    assert found[1][0] == "encode"


@pytest.mark.parametrize(
    ("death", "rank", "message"),
    [
        slow("leave", 1, "has ended: a mistake that one rank alone sees"),
        # With it goes the store in which ranks tell each other.
        slow("leave", 0, "has ended: (a mistake that one rank alone sees|its own message says why)"),
        slow("kill", 0, "died, or has not been heard of for 2[02] s"),
        slow("kill", 1, "died, or has not been heard of for 2[02] s"),
        slow("freeze", 1, "died, or has not been heard of for 2[02] s"),
    ],
)
def test_the_others_of_a_lost_rank_stop_within_a_minute_and_name_it(death, rank, message):
    lines = ranks(death, [LONG, LONG, LONG], rank)
    [died] = [line["time"] for line in lines if "dies" in line]
    lost = [line for line in lines if "error" in line]
    assert [line["error"] for line in lost] == ["LostRankError"] * 2
    assert [line["message"] for line in lost if not re.fullmatch(f"rank {rank} on .* {message}", line["message"])] == []
    # The bound of the promise, not a speed.
    assert all(line["time"] - died < 60 for line in lost)


def test_rank_0_serves_the_store_until_the_last_rank_has_ended():
    """Without it, torch prints a trace of the call that got no answer, behind a run that is right."""
    output = output_of("late", [LONG, LONG])
    assert [line["rank"] for line in map(json.loads, output.splitlines())] == [0, 1]


@pytest.mark.slow
def test_one_rank_that_is_asked_to_stop_stops_all():
    assert [line["error"] for line in ranks("stop", [LONG, LONG])] == ["Stopped"] * 2
