"""`import-config`: configs of torchtitan and torchtune as recipes."""

import contextlib
import copy
import functools
import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fiddle as fdl
import pytest
import torch

from nanigpt.cli.import_config import _read
from nanigpt.cli.importing.draft import Draft
from nanigpt.cli.importing.keys import Keys
from nanigpt.config import registry
from nanigpt.config.check.build import check
from nanigpt.config.compose.flag import compose
from nanigpt.errors import UsageError
from nanigpt.models.attention_core import FlexAttention
from nanigpt.models.huggingface.families import family_of
from nanigpt.optim.schedule import Cosine, Linear, WarmupStableDecay
from tests.support import QUICK, here, train

ROOT = Path(__file__).parents[2]
FILES = ROOT / "tests" / "fixtures" / "imports"
NAMES = {
    "titan_8b.toml": "torchtitan_titan_8b",
    "titan_405b.toml": "torchtitan_titan_405b",
    "tune_1b.yaml": "torchtune_tune_1b",
    "tune_lora.yaml": "torchtune_tune_lora",
}


@pytest.fixture
def registered(monkeypatch):
    """A registry that forgets the recipes of a test."""
    monkeypatch.setattr(registry, "_recipes", registry.recipes())


def run(file, folder, *flags):
    """Imports a file; returns the path of the recipe, its name, and standard error."""
    out = folder / "recipe.py"
    done = here("import-config", str(file), f"--out={out}", *flags)
    assert done.returncode == 0, done.stderr
    name = done.stdout.rpartition("config:")[2].strip()
    assert done.stdout.startswith(f"wrote {out}; train it: nanigpt train --import={out}")
    return out, name, done.stderr


def load(path):
    spec = importlib.util.spec_from_file_location("imported_recipe", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def imported(file, folder, *flags):
    """The config of an imported file."""
    path, name, _ = run(file, folder, *flags)
    load(path)
    return compose([f"config:{name}"])


def written(folder, text, name="mine.toml"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("file", ["titan_8b.toml", "tune_1b.yaml"])
def test_an_imported_recipe_trains(file, tmp_path, registered):
    path, name, _ = run(FILES / file, tmp_path)
    load(path)
    edits = [e for e in QUICK if "evaluations" not in e]
    cfg = compose([f"config:{name}", "fiddler:debug_scale", "fiddler:steps(5)", *edits])
    rows = train(cfg, tmp_path / "run")
    assert [row["step"] for row in rows if "loss" in row][-1] == 5
    assert all(row["loss"] < 7 for row in rows if "loss" in row)


@pytest.mark.parametrize("file", NAMES)
def test_the_recipe_is_formatted(file, tmp_path):
    path, name, _ = run(FILES / file, tmp_path)
    assert name == NAMES[file]
    ruff = [sys.executable, "-m", "ruff"]
    settings = [f"--config={ROOT / 'pyproject.toml'}"]
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [*ruff, *command, *settings, str(path)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "file, ranks, told",
    [
        ("titan_8b.toml", 64, "8,030,261,248 parameters, 1,000 steps of 64 x 8192 tokens"),
        ("titan_405b.toml", 512, "405,853,388,800 parameters, 3,000 steps of 512 x 8192 tokens"),
        ("tune_1b.yaml", 8, "1,235,814,400 parameters, 120 steps of 256 x 8192 tokens"),
        ("tune_lora.yaml", 8, "6,738,415,616 parameters, 1,000 steps of 128 x 1024 tokens"),
    ],
)
def test_the_recipe_has_no_problems(file, ranks, told, tmp_path, registered):
    path, name, _ = run(FILES / file, tmp_path, f"--ranks={ranks}")
    load(path)
    # The text files that a YAML names are on the machine of whoever wrote it.
    checked = here("check", f"--config=config:{name}", f"--ranks={ranks}", "--nofiles")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith(f"no problems; {told}")


# Keys of a feature that the file switches off.
INERT = {
    "titan_8b.toml": {
        *("checkpoint.folder", "checkpoint.interval", "checkpoint.last_save_model_only"),
        *("checkpoint.export_dtype", "checkpoint.async_mode"),
        *("validation.dataset", "validation.freq", "validation.steps"),
        "quantize.linear.float8.enable_fsdp_float8_all_gather",
        "quantize.linear.float8.precompute_float8_dynamic_scale_for_fsdp",
        "quantize.linear.float8.filter_fqns",
    },
    "titan_405b.toml": set(),
    "tune_1b.yaml": {"profiler._component_", "profiler.output_dir", "profiler.cpu"},
    "tune_lora.yaml": set(),
}


def leaves(content, before=()):
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, (*before, key))
        else:
            yield (*before, key), value


def changed(value):
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, list):
        return [*value, "x"]
    return f"{value}x" if isinstance(value, str) else value * 2


@pytest.mark.parametrize("file", NAMES)
def test_each_key_is_carried_or_named(file):
    """Another value of any key gives another recipe, or a refusal."""
    path = FILES / file

    def source(content):
        program, translate, _ = _read(path)
        keys, draft = Keys(content), Draft(program, path)
        translate(keys, draft, 2048)
        return draft.source(keys)

    content = _read(path)[2]
    before, inert = source(content), set()
    for place, value in leaves(content):
        other = copy.deepcopy(content)
        section = functools.reduce(lambda part, key: part[key], place[:-1], other)
        section[place[-1]] = changed(value)
        with contextlib.suppress(UsageError):
            if source(other) == before:
                inert.add(".".join(place))
    assert inert == INERT[file]


def test_an_unknown_key_is_named(tmp_path):
    path = written(tmp_path, '[training]\nsteps = 5\nwibble = "x\\ny"\n["so#\\nme"]\nkey = 3\n')
    recipe, _, told = run(path, tmp_path)
    assert "not carried: training.wibble = 'x\\ny': nanigpt has no such setting" in told
    assert "not carried: so#\\nme.key = 3: nanigpt has no such setting" in told
    compile(recipe.read_text(), "recipe.py", "exec")
    assert "\n#   so#\\nme.key = 3: nanigpt has no such setting\n" in recipe.read_text()


def test_torchtitan_with_all_kinds_of_parallelism(tmp_path, registered):
    cfg = imported(FILES / "titan_405b.toml", tmp_path)
    theirs = compose(["config:llama3_405b"])
    fields = [family_of(m).fields(m) for m in (check(cfg.model), check(theirs.model))]
    assert fields[0] == fields[1]
    mesh, pipeline = cfg.parallelizer.mesh, cfg.parallelizer.pipeline
    sizes = (mesh.dp_replicate, mesh.dp_shard, mesh.tp, mesh.pp, mesh.cp)
    assert sizes == (2, -1, 8, 4, 2)
    assert (pipeline.schedule, pipeline.microbatches) == ("Interleaved1F1B", 8)
    assert cfg.parallelizer.fsdp.reshard_after_forward == "never"
    assert cfg.parallelizer.tensor.asynchronous is True
    assert cfg.parallelizer.compile.loss is False
    assert (cfg.global_batch_size, cfg.local_batch_size, cfg.seed, cfg.steps) == (512, 16, 7, 3000)
    assert (cfg.optimizer.betas, cfg.optimizer.eps) == ((0.85, 0.95), 1e-7)
    assert cfg.optimizer.groups[0].weight_decay == cfg.optimizer.weight_decay == 0.2
    assert (cfg.optimizer.lr, cfg.optimizer.kernel, cfg.max_grad_norm) == (8e-5, "foreach", 0.5)
    assert fdl.get_callable(cfg.schedule) is WarmupStableDecay
    assert (cfg.schedule.final, cfg.schedule.decay_fraction) == (0.1, 1500 / 2400)
    assert {layer.activation_checkpointing for layer in cfg.model.layers} == {"full"}
    assert cfg.model.layers[0].feed_forward.w1.float8 == "rowwise"
    assert (cfg.checkpointer.interval, cfg.checkpointer.keep) == (250, 4)
    val = cfg.evaluations["val"]
    assert (val.interval, val.n_samples, val.batch_size) == (100, 40, 2)


def test_torchtitan_with_a_head_in_float8(tmp_path, registered):
    text = """
        model = {name = "llama3", flavor = "8B", converters = ["quantize.linear.float8"]}
        training = {local_batch_size = 1, steps = 1000}
    """
    path, name, _ = run(written(tmp_path, text), tmp_path)
    load(path)
    assert compose([f"config:{name}"]).model.head.float8 == "tensorwise"
    checked = here("check", f"--config=config:{name}")
    assert checked.returncode == 0, checked.stderr


def test_torchtune_of_llama_2(tmp_path, registered):
    cfg = imported(FILES / "tune_lora.yaml", tmp_path)
    described = family_of(model := check(cfg.model)).fields(model)
    assert described["rope_theta"] == 10_000.0 and described["rope_scaling"] is None
    assert (described["intermediate_size"], described["vocab_size"]) == (11_008, 32_000)
    assert cfg.model.embedding.compute_dtype is torch.float32
    assert (cfg.global_batch_size, cfg.local_batch_size, cfg.steps) == (2 * 16 * 4, 2, 1000)
    assert (cfg.parallelizer.mesh.tp, cfg.parallelizer.mesh.dp_shard) == (2, 4)
    assert (cfg.data.corpus.path, cfg.data.sequence_length) == ("texts/*.txt", 1024)
    assert fdl.get_callable(cfg.schedule) is Cosine and cfg.schedule.warmup_steps == 100
    assert cfg.evaluations["val"].interval == 50
    assert cfg.optimizer.betas == (0.9, 0.98) and cfg.max_grad_norm == 2.0


def test_torchtune_reads_numbers_as_omegaconf_does(tmp_path, registered):
    """YAML 1.1 takes 2e-5 for a text."""
    cfg = imported(FILES / "tune_1b.yaml", tmp_path)
    assert cfg.optimizer.lr == 2e-5
    assert cfg.steps == 120
    assert (fdl.get_callable(cfg.schedule), cfg.schedule.final) == (Linear, 1.0)


OWN = """
model:
  _component_: torchtune.models.llama3_2.llama3_2
  vocab_size: 512
  num_layers: 2
  num_heads: 4
  num_kv_heads: 2
  embed_dim: 64
  max_seq_len: 256
  intermediate_dim: 96
  norm_eps: 1e-6
  rope_base: 10000
  scale_factor: 16
"""


def test_torchtune_with_sizes_of_its_own(tmp_path, registered):
    cfg = imported(written(tmp_path, OWN, "own.yaml"), tmp_path)
    described = family_of(model := check(cfg.model)).fields(model)
    expected = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
    }
    assert expected.items() <= described.items()
    assert described["rope_scaling"]["factor"] == 16.0


def test_a_global_batch_follows_from_ranks(tmp_path, registered):
    cfg = imported(FILES / "titan_8b.toml", tmp_path, "--ranks=64")
    assert cfg.global_batch_size == 64
    degrees = "[parallelism]\ntensor_parallel_degree = 4\ndata_parallel_replicate_degree = 2\n"
    path = written(tmp_path, degrees)
    (tmp_path / "recipe.py").unlink()
    assert imported(path, tmp_path, "--ranks=16").global_batch_size == 8 * 16 // 4
    done = here("import-config", str(path), "--ranks=12")
    assert done.returncode == 2
    assert "--ranks=12: expected a multiple of 8" in done.stderr


@pytest.mark.parametrize(
    "text, expected",
    [
        ('[activation_checkpoint]\nmode = "none"', ["none"] * 6),
        ('[activation_checkpoint]\nmode = "full"', ["full"] * 6),
        ('[activation_checkpoint]\nselective_ac_option = "op"', ["selective"] * 6),
        ('[activation_checkpoint]\nselective_ac_option = "3"', ["none", "none", "full"] * 2),
        ("", ["none", "full"] * 3),
    ],
)
def test_recomputation(text, expected, tmp_path, registered):
    path = written(tmp_path, f"[training]\nsteps = 5\n{text}\n")
    layers = imported(path, tmp_path).model.layers
    assert [getattr(layer, "activation_checkpointing", "none") for layer in layers] == expected


def test_a_flavor_with_flex_attention_masks_documents(tmp_path, registered):
    text = '[training]\nsteps = 5\n[model]\nflavor = "debugmodel_flex_attn"\n'
    cfg = imported(written(tmp_path, text), tmp_path)
    assert cfg.data.mask_documents is True
    assert fdl.get_callable(cfg.model.layers[5].attention.core) is FlexAttention


def test_a_tokenizer_that_is_there_is_used(tmp_path, registered):
    (tmp_path / "tokenizer.json").write_text("{}")
    text = f'[training]\nsteps = 5\n[model]\nhf_assets_path = "{tmp_path}"\n'
    cfg = imported(written(tmp_path, text), tmp_path)
    assert cfg.data.tokenizer.path == str(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("a.toml", "[tool]\nx = 1\n", "is no config of torchtitan: it has no [training]"),
        ("a.yaml", "x: 1\n", "is no config of torchtune: it has no model._component_"),
        ("a.yaml", "- x\n", "is no config of torchtune"),
        ("a.toml", "x = \n", "cannot be read (Invalid value"),
        ("a.yaml", "x: [\n", "cannot be read ("),
        ("a.yaml", "a: &a [1]\nb: *a\n", "cannot be read (expected no aliases)"),
        (
            "a.yaml",
            "a: !!python/object/apply:os.getcwd []\n",
            "cannot be read (could not determine",
        ),
        ("a.yaml", "a: " + "[" * 5000, "cannot be read ("),
        ("a.json", "{}", "expected a .toml of torchtitan, or a .yaml of torchtune"),
        ("a.toml", '[training]\nsteps = "many"\n', "a.toml: training.steps='many': expected int"),
        ("a.toml", '[training]\n[model]\nname = "flux"\n', "model.name='flux': expected 'llama3'"),
        (
            "a.toml",
            '[training]\n[model]\nflavor = "9B"\n',
            "model.flavor='9B': expected one of '8B'",
        ),
        (
            "a.yaml",
            "model: {_component_: os.system}\n",
            "model._component_='os.system': expected o",
        ),
        ("a.yaml", f"{OWN}batch_size: [1]\n", "batch_size=[1]: expected int"),
    ],
)
def test_what_cannot_be_imported(name, text, told, tmp_path):
    out = tmp_path / "recipe.py"
    done = here("import-config", str(written(tmp_path, text, name)), f"--out={out}")
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr and not out.exists()


def test_a_file_that_is_there_is_kept(tmp_path):
    path, _, _ = run(FILES / "titan_8b.toml", tmp_path)
    before = path.read_text()
    done = here("import_config", str(FILES / "tune_1b.yaml"), f"--out={path}")
    assert done.returncode == 2
    assert f"--out={path}: is there already; expected a new file" in done.stderr
    assert path.read_text() == before


@pytest.mark.parametrize("file", ["titan_8b.toml", "tune_1b.yaml"])
def test_the_advice_about_a_foreign_file_is_right(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(FILES / file, tmp_path)
    refused = here("show", f"--config=config_file:{file}")
    assert refused.returncode == 2
    command = shlex.split(refused.stderr.partition("  try: ")[2])
    assert command[:3] == ["nanigpt", "import-config", file]
    assert here(*command[1:]).returncode == 0
    assert Path(file).with_suffix(".py").is_file()
