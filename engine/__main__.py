"""`python -m data_engine` is `data-engine`."""

import sys

from data_engine.cli import main

sys.exit(main())
