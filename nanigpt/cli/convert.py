"""Import Hugging Face weights into a new run, or export a run's newest checkpoint.

nanigpt convert --from_hf=Llama-3.2-1B --config=huggingface:Llama-3.2-1B --run_dir=runs/mine
nanigpt convert --run_dir=runs/mine --to_hf=exported --dtype=bfloat16
"""

import logging
import shlex
from pathlib import Path

import torch
from absl import flags
from torch import nn

from nanigpt.cli.launch_record import record_launch
from nanigpt.cli.run_flag import define_run_flag
from nanigpt.cli.trainer import build_trainer, checked_trainer, on_any_world, restore
from nanigpt.config.compose.flag import config_flag, define_config_flag
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.record.run_config import claim_run
from nanigpt.data.protocol import DataSource
from nanigpt.data.tokenizer import ByteTokenizer, Tokenizer
from nanigpt.errors import UsageError
from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface.mapping import left_out
from nanigpt.models.huggingface.reader import Pretrained
from nanigpt.models.huggingface.writer import check_vacant, save_pretrained
from nanigpt.parallel.world import start_world
from nanigpt.training.checkpoint import Progress
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.setup import set_up_model

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values)
    define_run_flag(values)
    flags.DEFINE_string(
        "from_hf",
        None,
        "Read weights from this folder, with config.json and *.safetensors.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "to_hf", None, "Write weights into this folder, which is new or empty.", flag_values=values
    )
    flags.DEFINE_enum(
        "dtype", "float32", list(_DTYPES), "Write weights in this dtype.", flag_values=values
    )
    flags.DEFINE_float(
        "max_shard_gb", 5.0, "Write files of at most this size.", 1e-6, flag_values=values
    )


def run(values: flags.FlagValues) -> int:
    if (values.from_hf is None) == (values.to_hf is None):
        raise UsageError(
            "convert: expected one of --from_hf=DIR and --to_hf=DIR\n  try: nanigpt convert --help"
        )
    if values.run_dir is None:
        raise UsageError("--run_dir is missing; expected --run_dir=runs/NAME")
    given = bool(config_flag(values).directives)
    if values.from_hf is not None and not given:
        raise UsageError(
            "--config is missing; expected the model of the weights\n"
            f"  try: {shlex.join([f'--config=huggingface:{values.from_hf}'])}"
        )
    if values.to_hf is not None and given:
        raise UsageError("--config with --to_hf: the run has its own; leave one of the two out")
    return _import(values) if values.from_hf is not None else _export(values)


def _import(values: flags.FlagValues) -> int:
    cfg = values.config
    checked_trainer(cfg, directives=config_flag(values).directives)
    trainer = build_trainer(on_any_world(cfg))
    model = _decoder(trainer.model)
    directory = RunDirectory(values.run_dir)
    if directory.started:
        raise UsageError(
            f"--run_dir={values.run_dir}: holds a run already; expected a new directory"
        )
    try:
        weights = Pretrained(values.from_hf, model)
    except UsageError as error:
        raise error.within("--from_hf") from error
    world = start_world(trainer.device)
    if world.is_main:
        directory.lock()
        claim_run(directory.config, cfg, started=False)
        record_launch(directory, world, fingerprint=fingerprint(cfg))
    world.barrier()
    parallel = set_up_model(trainer, world)
    weights.load(parallel.model)
    trainer.checkpointer.save(directory, world, parallel.model, None, Progress())
    if world.is_main:
        tokenizer = Path(values.from_hf) / "tokenizer.json"
        if tokenizer.is_file() and isinstance(_tokenizer(trainer.data), ByteTokenizer):
            log.warning(
                "the config's tokenizer is bytes, but the weights have %s: "
                "--config=\"set:data.tokenizer=@huggingface_tokenizer('%s')\"",
                tokenizer,
                tokenizer,
            )
        print(f"{directory.path} is at step 0 with the weights of {values.from_hf}")
        if own := left_out(trainer.model):
            print(f"not read: {len(own)} weights of multi_token, which start as in a new run")
    return 0


def _decoder(model: nn.Module) -> Decoder:
    if not isinstance(model, Decoder):
        raise UsageError(f"convert: model is {type(model).__name__}: expected Decoder")
    return model


def _tokenizer(data: DataSource) -> Tokenizer | None:
    """Return the tokenizer of a run's data, or None if they are not text."""
    return getattr(data, "tokenizer", None)


def _export(values: flags.FlagValues) -> int:
    try:
        check_vacant(values.to_hf)
    except UsageError as error:
        raise error.within("--to_hf") from error
    assembly, parallel, progress = restore(values)
    tokenizer = _tokenizer(assembly.root.data)
    world = parallel.layout.world
    files = save_pretrained(
        _decoder(parallel.model),
        values.to_hf,
        dtype=_DTYPES[values.dtype],
        max_shard_bytes=int(values.max_shard_gb * 10**9),
        end_id=None if tokenizer is None else tokenizer.end_id,
        texts=getattr(tokenizer, "files", dict)(),
        writes=world.is_main,
    )
    world.barrier()
    if world.is_main:
        names = ", ".join(file.name for file in files)
        print(f"step {progress.step} of {values.run_dir} is in {values.to_hf}: {names}")
        if own := left_out(parallel.model):
            print(
                f"not written: {len(own)} weights of multi_token, which transformers does not have"
            )
    return 0
