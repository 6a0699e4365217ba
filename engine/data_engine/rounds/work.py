"""All rounds of a loop, in their order: the run of a round, its trainer, the page; what is done is not done again."""

import logging
import shlex
import sys
import time
from pathlib import Path

from data_engine.config import RunConfig
from data_engine.exit_codes import FAILED, STOPPED
from data_engine.processes.children import Children, LoopStopped
from data_engine.processes.launch import launch_folder
from data_engine.rounds import page, training
from data_engine.rounds.places import Round, config_of, require_same, write_config

log = logging.getLogger(__name__)


def work(loop: RunConfig, num_rounds: int, train: str) -> int:
    """Do the rounds that are not done, and return an exit code: that of a round's run where it did not end with 0.

    Raises what training.train and training.require_model raise.
    """
    # A trainer may go to another folder before it opens what it is told of.
    folder = Path(loop.work_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    children = Children(folder)
    rounds = [Round(folder, number) for number in range(1, num_rounds + 1)]
    try:
        with children.alone():
            for one in rounds:
                config = config_of(loop, one)
                if one.is_done:
                    require_same(config, one)
                    log.info("round %d of %d: done", one.number, num_rounds)
                    _tell_of_another(one, train)
                    continue
                if code := _round(loop, one, num_rounds, config, train, children):
                    return code
            # One that was killed may have left the page behind.
            page.write(loop, folder)
    except LoopStopped:
        log.info("stopped; run the same command again to go on")
        return STOPPED
    log.info("rounds done: %d. The last model: %s\nThe course of the rounds: %s", num_rounds, rounds[-1].model,
             page.path_of(folder))  # fmt: skip
    return 0


def _tell_of_another(one: Round, train: str) -> None:
    """What trains may change, for rounds to come: those that are done stay as they are."""
    then = one.training()["train"]
    if then != train:
        log.warning("round %d was trained by another command: %s", one.number, then)


def _round(
    loop: RunConfig, one: Round, num_rounds: int, config: RunConfig, train: str, children: Children
) -> int:  # fmt: skip
    told = f"round {one.number} of {num_rounds}"
    write_config(config, one)
    log.info("%s: answers and pairs, in %s", told, one.run)
    script = launch_folder() / "run_engine.sh"
    # Under this interpreter, whatever is on the PATH.
    code = children.run(["sh", str(script), "--config", str(one.config)], PYTHON=sys.executable)
    # Training may take days.
    page.write(loop, one.loop)
    if code:
        log.info("%s: its run ended with %d; no model was trained", told, code)
        return code if code > 0 else FAILED
    words = training.command_of(train, one, config)
    log.info("%s: training, also told in %s\n  %s", told, one.log, shlex.join(words))
    start, before = time.time(), training.written(one)
    training.train(one, words, children)
    training.require_model(one, config_of(loop, Round(one.loop, one.number + 1)))
    # One that goes on from checkpoints of its own may find that it had come to its end; another one writes elsewhere.
    if training.written(one) == before:
        log.warning(
            "%s: this trainer wrote nothing to %s; the model there was left by an earlier start", told, one.model
        )
    one.note_training(
        {"model": config.instruct_model_path, "train": train, "command": words, "seconds": time.time() - start}
    )
    page.write(loop, one.loop)
    log.info("%s: done", told)
    return 0
