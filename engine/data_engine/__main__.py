"""`python -m data_engine` is `data-engine`."""

import sys

from data_engine.commands.main import entry

sys.exit(entry())
