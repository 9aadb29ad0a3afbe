"""`python -m nanigpt COMMAND ...`."""

import sys

from nanigpt.cli.main import run_console

sys.exit(run_console())
