"""The program `python -m nanigpt COMMAND ...`."""

import sys

from nanigpt.cli.main import run_console

if __name__ == "__main__":
    sys.exit(run_console())
