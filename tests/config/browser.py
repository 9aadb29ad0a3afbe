"""Pages in a real browser without a window."""

import html
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support import finish, succeed

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)

needs_browser = pytest.mark.skipif(
    _CHROMIUM is None,
    reason=f"none of {', '.join(_NAMES)} is on the PATH; on Debian: apt-get install chromium",
)


def run_script(page: str, script: str, folder: Path) -> str:
    """What the body of a function returned, run in the page: a string."""
    done = (
        "<script>const put = (text) => { const area = document.createElement('pre');"
        "area.id = 'returned'; area.textContent = text; document.body.append(area); };"
        f"try {{ put((() => {{ {script} }})()); }} catch (error) {{ put('threw ' + error); }}</script>"
    )
    path = folder / "page.html"
    path.write_text(page.replace("</body>", f"{done}</body>"), encoding="utf-8")
    dumped = _chromium("--dump-dom", path)
    return html.unescape(re.search(r'<pre id="returned">(.*?)</pre>', dumped, re.DOTALL)[1])


def screenshot(page: str, folder: Path, *, dark: bool = False) -> Path:
    """A picture of the page, 1000 by 700."""
    source, picture = folder / "shown.html", folder / ("dark.png" if dark else "light.png")
    source.write_text(page, encoding="utf-8")
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    _chromium(f"--screenshot={picture}", "--window-size=1000,700", *theme, source)
    return picture


def _chromium(*arguments) -> str:
    *flags, page = arguments
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            _CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=5000",
            *flags,
            page.as_uri(),
        ]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        return succeed(finish(process, timeout=60))
