"""A record that somebody else wrote is data: nothing that reads it writes, opens or runs anything."""

import dis
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import nanigpt
from nanigpt.config.record.file import dump
from nanigpt.config.record.names import find
from nanigpt.errors import UsageError
from tests.support import tiny

OLD = Path(__file__).parents[2] / "fixtures/runs/llama3/config.json"
WRITER = "nanigpt.models.huggingface.writer:save_pretrained"
HELPERS = """
from nanigpt.pure import pure

def write(path, text=""):
    open(path, "w").write(text)

class Writer:
    @classmethod
    def make(cls, path):
        open(path, "w")
"""

GOOD = ("llama3_debug", "deepseek_v3_debug", "gpt_oss_debug")
FURTHER = (
    "os:system",
    "os:remove",
    "posix:system",
    "subprocess:run",
    "subprocess:Popen",
    "shutil:rmtree",
    "pathlib:Path.write_text",
    "pathlib:Path.unlink",
    "antigravity:fly",
    "helpers.trap:Trap",
    "helpers:write",
    "helpers:Writer.make",
    "helpers:os.system",
    "builtins:eval",
    "builtins:exec",
    "builtins:open",
    "builtins:type",
    "builtins:getattr",
    "importlib:import_module",
    "pickle:loads",
    "torch:load",
    "torch:save",
    "torch:from_file",
    "torch:hub.load",
    "torch:compile",
    "torch.nn.functional:importlib.import_module",
    "torch.utils.cpp_extension:load",
    "fiddle.absl_flags:Config",
    "fiddle._src.absl_flags.utils:importlib.import_module",
    "nanigpt:cli.main.main",
    "nanigpt:files.write_atomically",
    "nanigpt:__main__.run_console",
    "nanigpt.__main__:run_console",
    "nanigpt.files:write_atomically",
    "nanigpt.cli.main:main",
    "nanigpt.config.record.run_config:claim_run",
    "nanigpt.config.record.file:load",
    "nanigpt.data.token_cache:tokenize_corpus",
    "nanigpt.models.huggingface.reader:Folder",
    "nanigpt.models.huggingface.reader:Pretrained",
    "nanigpt.models.decoder:Decoder.forward",
    "nanigpt.models.decoder:Decoder.__init__.__globals__",
    "nanigpt.models.decoder:Decoder.__class__",
    "nanigpt.models.init:initialize",
    "nanigpt.optim.adamw:adamw.__class__",
    "nanigpt.optim.adamw:torch.load",
    "nanigpt.parallel.schedule_csv:read_csv",
    "nanigpt.parallel.world:start_world",
    "nanigpt.training.checkpoint:_remove",
    "nanigpt.training.checkpoint:shutil.rmtree",
    "nanigpt.training.checkpoint:Checkpointer.save",
    "nanigpt.training.trackers.json_lines:drop_rows_after",
    "nanigpt.experiments.llama3:importlib",
    "nanigpt.no.such.module:Thing",
)


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> dict:
    """What the commands said and did about each record, by its name."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "records").mkdir()
    (folder / "helpers").mkdir()
    (folder / "helpers/__init__.py").write_text(f"import os\n{HELPERS}")
    (folder / "helpers/trap.py").write_text("class Trap:\n    pass\n")
    (folder / "good.json").write_text(dump(tiny()))
    victim = folder / "victim"
    allowed = {f"good {name}": json.loads(dump(tiny(recipe=name))) for name in GOOD}
    for name, record in (records(str(victim)) | allowed).items():
        (folder / "records" / f"{name}.json").write_text(json.dumps(record))
    done = subprocess.run(
        [sys.executable, "-B", str(Path(__file__).with_name("watched.py")), str(folder)],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert not victim.exists()
    return json.loads((folder / "report.json").read_text())


def records(victim: str) -> dict:
    """Records that name what they may not, by the name of the case."""
    made = {}
    for name in (WRITER, *FURTHER):
        base = record_naming(name)
        base["config"]["optimizer"] = {"@partial": "evil", "path": victim, "texts": {victim: "x"}}
        made[f"node {name}".replace("/", "")] = base
        base = record_naming(name)
        base["config"]["optimizer"] = {"@name": name}
        made[f"value {name}"] = base
    for case, name in {"writer": WRITER, "helpers": "helpers:write"}.items():
        base = record_naming(name)
        base["config"]["optimizer"] = {"@functools.partial": [name, [victim], {}]}
        made[f"partial {case}"] = base
        base = record_naming(name)
        base["config"]["@shared"]["evil"] = {"@": "evil", "path": victim}
        base["config"]["optimizer"] = {"@same": "evil"}
        base["config"]["schedule"] = {"@same": "evil"}
        made[f"shared {case}"] = base
        base = record_naming(name)
        base["config"]["optimizer"]["@tags"] = [["lr", [name]]]
        made[f"tag {case}"] = base
        module, _, symbol = name.partition(":")
        old = OLD.read_text().replace("nanigpt.optim.adamw", module)
        made[f"old {case}"] = json.loads(old.replace('"adamw"', json.dumps(symbol)))
    return made


def record_naming(name: str) -> dict:
    record = json.loads(dump(tiny()))
    record["classes"]["evil"] = {"name": name, "defaults": {}}
    return record


def test_nothing_is_written_opened_or_run(watched):
    assert len(watched) > 2 * 40
    assert {name: found["events"] for name, found in watched.items() if found["events"]} == {}


def test_each_refusal_names_the_place(watched):
    for name, found in watched.items():
        if name.startswith("good "):
            assert {status for status, _ in found["said"]} <= {0, 1}, found["said"]
            continue
        for status, text in found["said"]:
            assert status == 2, (name, text)
            assert "optimizer" in text and "names " in text, (name, text)
            assert "Traceback" not in text, (name, text)


def test_a_function_of_ones_own_is_refused_with_the_remedy(watched):
    _, text = watched["node helpers:write"]["said"][0]
    assert "names helpers:write, which a config file may not" in text
    assert "@nanigpt.pure.pure" in text


def components() -> list[type]:
    """All classes of nanigpt that a record may name."""
    found = {}
    for module in pkgutil.walk_packages(nanigpt.__path__, "nanigpt."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and value.__module__.startswith("nanigpt."):
                try:
                    found[find(f"{module.name}:{name}")] = None
                except UsageError:
                    continue  # it is not allowed
    return list(found)


FORBIDDEN = {
    *("open", "mkdir", "makedirs", "write_text", "write_bytes", "touch", "unlink", "remove"),
    *("rmtree", "rename", "replace", "symlink_to", "import_module", "__import__", "eval", "exec"),
    *("system", "Popen", "fork", "connect", "safe_open", "load", "save", "from_file"),
    *("try_lock", "write_atomically", "read_text", "read_bytes", "SummaryWriter", "copy"),
}


def test_no_constructor_of_a_component_touches_files():
    assert len(components()) > 100
    for kind in components():
        for name in ("__init__", "__new__", "__post_init__", "__init_subclass__"):
            function = inspect.getattr_static(kind, name, None)
            function = getattr(function, "__func__", function)
            if isinstance(function, types.FunctionType) and function.__module__.startswith("nani"):
                used = names_in(function.__code__)
                assert not used & FORBIDDEN, (kind, name, used & FORBIDDEN)


def names_in(code: types.CodeType) -> set[str]:
    """Names of the globals and attributes that code uses, also in functions within it."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    own = {i.argval for i in dis.get_instructions(code) if i.opname.startswith("LOAD_")}
    return {name for name in own if isinstance(name, str)}.union(*map(names_in, inner))
