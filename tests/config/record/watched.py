"""Run commands on records in a process that watches what they touch.

`python watched.py FOLDER` reads FOLDER/records/*.json, and writes FOLDER/report.json: for each
record the messages of the commands, and every event of Python's audit hook that writes, removes or
starts something.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from nanigpt.cli.main import main
from nanigpt.config.record import names

WATCHED = ("os.", "shutil.", "subprocess.", "socket.", "pty.", "ctypes.dlopen", "webbrowser.")
READING = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.putenv", "os.unsetenv")
IMPORTS = ("antigravity", "helpers.trap")

events: list[str] = []
watching = False


def audit(event: str, arguments: tuple) -> None:
    if not watching:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = mode and set(mode) & set("wax+")
        if writes or (flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            events.append(f"open {path}")
    elif event == "import":
        if arguments[0] in IMPORTS:
            events.append(f"import {arguments[0]}")
    elif event.startswith(WATCHED) and event not in READING:
        events.append(f"{event} {arguments}")


def said(*arguments: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(arguments))
    return status, err.getvalue()


def run(record: Path, good: Path) -> list[tuple[int, str]]:
    config = f"--config=config_file:{record}"
    return [
        said("check", config),
        said("count", config),
        said("show", config, "--format=html"),
        said("show", config, "--why"),
        said("fingerprint", config),
        said("diff", str(good), str(record)),
    ]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder))
    import helpers  # noqa: F401  a module that its user imported

    names.imports = lambda: ("helpers",)
    good = folder / "good.json"
    for record in (good, *(folder / "records").glob("good*")):
        found = run(record, good)  # imports everything, and makes the folders of caches
        assert {status for status, _ in found} <= {0, 1}, found
    sys.addaudithook(audit)
    watching = True
    (folder / "canary").write_text("seen")
    watching = False
    assert events == [f"open {folder / 'canary'}"], events
    report = {}
    for record in sorted((folder / "records").iterdir()):
        events.clear()
        watching = True
        found = run(record, good)
        watching = False
        report[record.stem] = {"said": found, "events": list(events)}
    (folder / "report.json").write_text(json.dumps(report))
