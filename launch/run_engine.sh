#!/bin/sh
# POSIX throughout: `sh` and `bash` run it alike.
#
# Run the engine on every rank of this machine, and return its exit code:
#
#   launch/run_engine.sh --config configs/demo.yaml [any flag of `data-engine run`]
#
# In an installed package it lies in data_engine/launch/; `data-engine submit --help` prints where.
#
# 0 done, 1 a bug or a rank that died, 2 wrong input or configuration, 3 incomplete, 4 done but nothing could be written,
# 75 stopped by a signal: run the same command again. SIGTERM, SIGINT, SIGUSR1 and SIGHUP are passed to the ranks, which
# finish what they hold, however long that takes; a second signal kills them (within 2 s only a second SIGINT: SLURM
# sends the others twice).
#
# SIGUSR2 to a rank makes it write the stacks of its threads; the script and the launcher ignore that signal.
#
# Environment: NUM_PROCESSES (default: the GPUs, or 1; with --sampler vllm, as many engines as the GPUs hold),
# ACCELERATE_CONFIG (default: launch/accelerate/gpu.yaml, or cpu.yaml without a GPU), OMP_NUM_THREADS (default: cores /
# ranks; a container has the cores of its CPU limit), PYTHON. For one job over several machines, on each: NUM_MACHINES,
# MACHINE_RANK (from 0), and MAIN_ADDRESS and MAIN_PORT of the first; NUM_PROCESSES is of each machine.
set -eu
trap 'exit 75' TERM INT USR1 HUP # nothing has been started yet
trap '' USR2                     # inherited: ignored until a rank installs its handler

launch=$(cd "$(dirname "$0")" && pwd)
# A file of the current folder, queue.py for instance, must not stand in for one of Python's.
export PYTHONSAFEPATH=1
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  # The environment that `make setup` made, if this is a checkout and no other one is active.
  venv=${launch%/*}/.venv/bin/python
  if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$venv" ]; then PYTHON=$venv; fi
fi
# Before anything slow is started.
refuse() {
  echo "data-engine: error: $1" >&2
  exit 2
}
case ${NUM_PROCESSES:-1} in
*[!0-9]* | 0* | ?????*) refuse "NUM_PROCESSES must be a whole number of ranks, from 1 to 9999, got \"$NUM_PROCESSES\"" ;;
esac
case ${OMP_NUM_THREADS:-1} in
*[!0-9]* | ?????*) refuse "OMP_NUM_THREADS must be a whole number of threads, at most 9999, got \"$OMP_NUM_THREADS\"" ;;
esac
case ${NUM_MACHINES:-1} in
1) ;;
*[!0-9]* | 0* | ?????*) refuse "NUM_MACHINES must be a whole number of machines, from 1 to 9999, got \"$NUM_MACHINES\"" ;;
*)
  case ${MACHINE_RANK:-none} in
  *[!0-9]* | ?????*) refuse "MACHINE_RANK must be this machine's number, from 0 to NUM_MACHINES - 1, got \"${MACHINE_RANK:-}\"" ;;
  esac
  [ "$MACHINE_RANK" -lt "$NUM_MACHINES" ] || refuse "MACHINE_RANK must be below NUM_MACHINES, got $MACHINE_RANK of $NUM_MACHINES"
  [ -n "${MAIN_ADDRESS:-}" ] || refuse "NUM_MACHINES is $NUM_MACHINES: set MAIN_ADDRESS to the address of machine 0"
  case ${MAIN_PORT:-none} in
  *[!0-9]* | ??????*) refuse "NUM_MACHINES is $NUM_MACHINES: set MAIN_PORT to a free port of machine 0, got \"${MAIN_PORT:-}\"" ;;
  esac
  [ "$MAIN_PORT" -le 65535 ] || refuse "MAIN_PORT must be at most 65535, got $MAIN_PORT"
  ;;
esac
if [ -n "${ACCELERATE_CONFIG:-}" ] && [ ! -f "$ACCELERATE_CONFIG" ]; then
  refuse "ACCELERATE_CONFIG must name a file, got \"$ACCELERATE_CONFIG\""
fi
has_both='import sys; from importlib.util import find_spec; sys.exit(not (find_spec("torch") and find_spec("data_engine")))'
"$PYTHON" -c "$has_both" >/dev/null 2>&1 ||
  refuse "\"$PYTHON\" does not run, or lacks torch or data_engine: activate the environment that has them (. .venv/bin/activate after make setup), or set PYTHON to its python"
"$PYTHON" -c 'import tempfile; tempfile.gettempdir()' >/dev/null 2>&1 ||
  refuse "no folder takes temporary files: set TMPDIR to one that can be written and has room"
if [ -z "${NUM_PROCESSES:-}" ] || [ -z "${ACCELERATE_CONFIG:-}" ]; then
  gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
  if [ "$gpus" -gt 0 ]; then kind=gpu; else kind=cpu gpus=1; fi
fi
if [ -z "${NUM_PROCESSES:-}" ]; then
  NUM_PROCESSES=$gpus
  # An engine of vLLM may take several GPUs.
  if [ "$kind" = gpu ]; then NUM_PROCESSES=$("$PYTHON" -m data_engine.commands.engines "$gpus" "$@"); fi
fi
ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-$launch/accelerate/$kind.yaml}
cores=$("$PYTHON" -m data_engine.processes.cpu_limit)
if [ "$cores" -lt "$NUM_PROCESSES" ]; then cores=$NUM_PROCESSES; fi
# Set, or torchrun would choose 1, and a lone process all cores.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / NUM_PROCESSES))}
export NUM_PROCESSES ACCELERATE_CONFIG OMP_NUM_THREADS

exec "$PYTHON" "$launch/supervise.py" "$@"
