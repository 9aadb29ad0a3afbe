"""What a step does not do: wait for the device, read text, or import."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanigpt.config.check.build import build
from nanigpt.parallel.world import start_world
from nanigpt.training import loop
from nanigpt.training.run_directory import RunDirectory
from tests.support import QUICK, finish, start, succeed, tiny, train

# Each makes the host wait for the device: numbers are read, or sizes depend on them.
READS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "is_nonzero",
    "equal",
    "repeat_interleave.Tensor",
}


class HostReads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in READS or f"{name}.{func._overloadname}" in READS:
            self.found.append(name)
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        if any(i is not None and i.dtype == torch.bool for i in indices):
            self.found.append(f"{name} by a mask")
        return func(*args, **(kwargs or {}))


def test_the_mode_sees_what_waits():
    with HostReads() as reads:
        x = torch.arange(4)
        x[1].item(), x[x > 1], bool(x.sum() > 3), x.nonzero()
    assert len(reads.found) == 4


@pytest.mark.parametrize(
    "edits",
    [
        [],
        ["set:data.mask_documents=True", "set:local_batch_size=4"],
        ["fiddler:multi_token", "set:data.mask_documents=True"],
    ],
    ids=["dense", "documents, accumulated", "multi-token"],
)
def test_no_number_is_read_between_log_lines(edits, tmp_path, monkeypatch):
    trainer = build(tiny("fiddler:steps(5)", *QUICK, *edits))
    plain, record = loop.train_step, trainer.metrics.record
    reads = HostReads()

    def watched_step(session, batches):
        # One that is on a GPU would be read by the fused update's launch.
        assert all(type(group["lr"]) is float for group in session.optimizer.param_groups)
        with reads:
            return plain(session, batches)

    def watched_record(row, **named):
        if row["step"] not in (1, 5):  # those are logged
            with reads:
                return record(row, **named)
        return record(row, **named)

    monkeypatch.setattr(loop, "train_step", watched_step)
    trainer.metrics.record = watched_record
    trainer.run(RunDirectory(tmp_path), start_world("cpu"))
    assert reads.found == []


def test_runs_are_the_same_bit_for_bit_with_and_without_prefetching(tmp_path):
    edits = ("fiddler:steps(4)", *QUICK)
    losses = []
    for prefetch in (0, 3):
        rows = train(tiny(*edits, f"set:loader.prefetch={prefetch}"), tmp_path / str(prefetch))
        losses.append([(row["loss"], row["grad_norm"]) for row in rows])
    assert losses[0] == losses[1]


def test_an_error_of_the_data_ends_the_run(tmp_path):
    trainer = build(tiny("fiddler:steps(5)", *QUICK))
    plain = trainer.data.train_batch

    def failing(samples, **named):
        if samples.start >= 24:
            raise OSError("the text is gone")
        return plain(samples, **named)

    trainer.data.train_batch = failing
    with pytest.raises(OSError, match="the text is gone"):
        trainer.run(RunDirectory(tmp_path), start_world("cpu"))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


PLAIN_RUN = """
import sys
from nanigpt.config.check.build import build
from nanigpt.parallel.world import start_world
from nanigpt.training import loop
from nanigpt.training.run_directory import RunDirectory
from tests.support import tiny

trainer = build(tiny("fiddler:steps(4)", "set:checkpointer.interval=2"))
plain, imported = loop.train_step, []

def step(*args):
    before = set(sys.modules)
    row = plain(*args)
    imported.append(sorted(set(sys.modules) - before))
    return row

loop.train_step = step
trainer.run(RunDirectory(sys.argv[1]), start_world("cpu"))
assert len(imported) == 4
print("imported:", *imported[0][:9], *("LATER " + name for s in imported[1:] for name in s))
heavy = ("torch._dynamo", "torch._inductor", "torchao", "transformers", "matplotlib")
print("heavy:", *(name for name in heavy if name in sys.modules))
"""


def test_steps_import_nothing_and_a_plain_run_nothing_heavy(tmp_path):
    """But for a module of its own that torch.profiler.record_function asks for first."""
    out = succeed(finish(start("-c", PLAIN_RUN, str(tmp_path)), 120)).splitlines()
    (imported,) = (line.split()[1:] for line in out if line.startswith("imported:"))
    assert [name for name in imported if not name.startswith("torch.profiler")] == []
    assert "heavy:" in [line.strip() for line in out]
