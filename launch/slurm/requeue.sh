#!/bin/sh
# Run the given command for a batch script: pass SLURM's signals to it, return its exit code, and put the job back into
# the queue if a signal ended it and SLURM does not do so itself.
set -u

command=
signalled=
# Passed on as SIGUSR1, which srun forwards to each task; at a SIGTERM it would kill them.
trap 'signalled=1; [ -z "$command" ] || kill -USR1 "$command"' USR1 TERM
"$@" &
command=$!
# One that came before the command had a number.
[ -z "$signalled" ] || kill -USR1 "$command"
# A trapped signal ends `wait` too.
while wait "$command"; kill -0 "$command" 2>/dev/null; do :; done
wait "$command"
code=$?
trap '' USR1 TERM

# In the last task of an array SLURM_JOB_ID is the array's own number, which would put back all tasks.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
# A job that is being cancelled, or put back by SLURM, no longer counts as running.
if [ "$code" = 75 ] && [ -n "$signalled" ] && [ "$(squeue --noheader --jobs "$job" --format %T)" = RUNNING ]; then
  scontrol requeue "$job"
fi
exit "$code"
