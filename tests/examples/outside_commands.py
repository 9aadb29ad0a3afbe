"""Run by test_outside_project.py: commands of nanigpt, one after the other, in one process.

Usage: python -m tests.examples.outside_commands 'JSON list of lists of arguments'
"""

import json
import sys

from tests.support import here


def main(commands: list[list[str]]) -> None:
    done = [here(*arguments) for arguments in commands]
    print(json.dumps([[d.returncode, d.stdout, d.stderr] for d in done]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
