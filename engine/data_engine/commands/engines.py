"""How many ranks a machine with so many GPUs runs: `python -m data_engine.commands.engines GPUS FLAGS...` prints it.

One a GPU; where the start draws answers by vLLM, one for each group of GPUs that an engine takes. launch/run_engine.sh
asks. No torch here.
"""

import sys
from collections.abc import Sequence

from data_engine.commands.arguments import parse
from data_engine.errors import UserError
from data_engine.processes import output
from data_engine.vllm_settings import require_gpus


def num_ranks(gpus: int, flags: Sequence[str]) -> int:
    """Raises UserError where an engine takes more GPUs than there are."""
    if {"-h", "--help"} & set(flags):
        return gpus
    try:
        config = parse(flags)
    except UserError:
        # The check that follows says what is wrong.
        return gpus
    size = require_gpus(config.vllm_options, gpus) if config.draws_by_vllm else 1
    if gpus % size:
        output.warn([f"{gpus % size} of {gpus} GPUs are left over: each engine of vLLM takes {size}"])
    return gpus // size


if __name__ == "__main__":
    try:
        print(num_ranks(int(sys.argv[1]), sys.argv[2:]))
    except UserError as mistake:
        output.tell(mistake)
        sys.exit(2)
