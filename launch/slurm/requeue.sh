#!/usr/bin/env bash
# Run the command given, in the place of a batch script: pass SLURM's signals to it, return its exit code, and put the
# job back into the queue where a signal ended it and SLURM does not do so itself.
set -u

"$@" &
command=$!
signalled=
# Passed on as SIGUSR1, of which srun makes a SIGUSR1 to each task; a SIGTERM would have it kill them.
trap 'signalled=1; kill -USR1 "$command"' USR1 TERM
# A trapped signal ends `wait` too.
while wait "$command"; kill -0 "$command" 2>/dev/null; do :; done
wait "$command"
code=$?
trap '' USR1 TERM

# One task of an array has the array's own SLURM_JOB_ID: by that number all tasks would be put back.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
# A job that is being cancelled, or put back by SLURM, no longer counts as running.
if [[ $code == 75 && -n $signalled && $(squeue --noheader --jobs "$job" --format %T) == RUNNING ]]; then
  scontrol requeue "$job"
fi
exit "$code"
