"""`convert`, and training that begins with weights of Hugging Face."""

import json

import pytest
import torch

from nanigpt.cli import convert
from nanigpt.cli.main import main
from nanigpt.config.check.build import build
from nanigpt.config.record.run_config import load_run
from nanigpt.data.tokenizer import HuggingFaceTokenizer
from nanigpt.models.huggingface.writer import save_pretrained
from tests.data.test_tokenizer import train_bpe
from tests.models.huggingface import randomize
from tests.support import TINY, built_model, flags, metrics, succeed, tiny, torchrun

SHORT = (*TINY, "fiddler:steps(4)", "set:checkpointer.interval=2", "tag:GlobalBatchSize=2")


def pretrained(folder, **options):
    """Weights for the tiny recipe in a folder; the model."""
    model = randomize(built_model(tiny()), seed=3)
    save_pretrained(model, folder, **options)
    return model


def losses(run):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in metrics(run)]


def test_a_converted_run_trains_on_as_one_that_begins_with_the_weights(tmp_path, capsys):
    pretrained(tmp_path / "hf")
    run, other = tmp_path / "run", tmp_path / "other"
    assert (
        main(["convert", f"--from_hf={tmp_path / 'hf'}", *flags(*SHORT), f"--run_dir={run}"]) == 0
    )
    assert f"{run} is at step 0 with the weights of {tmp_path / 'hf'}" in capsys.readouterr().out
    assert load_run(str(run)) == tiny(*SHORT[len(TINY) :])
    assert json.loads((run / "launches.jsonl").read_text())["fingerprint"]
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_00000000"]
    assert main(["generate", f"--run_dir={run}", "--prompt=def ", "--max_new_tokens=5"]) == 0
    assert main(["train", *flags(*SHORT), f"--run_dir={run}"]) == 0
    given = f"set:initial_weights={tmp_path / 'hf'}"
    capsys.readouterr()
    assert main(["train", *flags(*SHORT, given), f"--run_dir={other}"]) == 0
    assert f"weights of {tmp_path / 'hf'}" in capsys.readouterr().out
    assert losses(run) == losses(other)
    assert len(losses(run)) == 4
    # The folder is needed once: after that the run has checkpoints of its own.
    (tmp_path / "hf").rename(tmp_path / "moved")
    assert main(["train", *flags(*SHORT, given, "set:steps=5"), f"--run_dir={other}"]) == 0
    assert [step for step, *_ in losses(other)] == [1, 2, 3, 4, 5]


def test_the_first_loss_is_that_of_the_weights(tmp_path, caplog):
    model = pretrained(tmp_path / "hf", max_shard_bytes=200_000)
    run = tmp_path / "run"
    assert (
        main(["convert", f"--from_hf={tmp_path / 'hf'}", *flags(*SHORT), f"--run_dir={run}"]) == 0
    )
    assert main(["train", *flags(*SHORT), f"--run_dir={run}"]) == 0
    assert "the data are not those of the checkpoint" not in caplog.text
    data = build(tiny(*SHORT[len(TINY) :])).data
    data.setup()
    batch = data.train_batch(range(2), seed=0)
    with torch.no_grad():
        logits = model(batch.tokens_BL)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels_BL.flatten())
    assert metrics(run)[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_trained_run_loads_in_transformers_with_its_tokenizer(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path / "bpe.json"
    train_bpe(path)
    edits = (f"set:data.tokenizer=@huggingface_tokenizer('{path}')",)
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["train", *flags(*SHORT, *edits), f"--run_dir={run}"]) == 0
    command = ["convert", f"--run_dir={run}", f"--to_hf={out}"]
    assert main([*command, "--max_shard_gb=0.0002"]) == 0
    assert {"tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"} <= {
        file.name for file in out.iterdir()
    }
    theirs = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ours = HuggingFaceTokenizer(path=str(path))
    text = "def f(x):\n    return [x]"
    assert tokenizer.encode(text, add_special_tokens=False) == ours.encode([text])[0].tolist()
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id == ours.end_id
    # Back again: what was written is what the run has.
    again = tmp_path / "again"
    base = flags(*SHORT, *edits)
    assert main(["convert", f"--from_hf={out}", *base, f"--run_dir={again}"]) == 0
    assert main(["convert", f"--run_dir={again}", f"--to_hf={tmp_path / 'out2'}"]) == 0
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out2")
    assert all(torch.equal(p, q) for p, q in zip(*map(weights, (theirs, back)), strict=True))
    assert main([*command[:2], f"--to_hf={tmp_path / 'half'}", "--dtype=bfloat16"]) == 0
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert half.dtype == torch.bfloat16
    for p, q in zip(weights(half), weights(theirs), strict=True):
        assert torch.equal(p, q.bfloat16())


def weights(model):
    return list(model.parameters())


def test_two_processes_convert(tmp_path):
    pretrained(tmp_path / "hf")
    run = tmp_path / "run"
    assert (
        main(["convert", f"--from_hf={tmp_path / 'hf'}", *flags(*SHORT), f"--run_dir={run}"]) == 0
    )
    out = [f"--run_dir={run}", f"--to_hf={tmp_path / 'out'}"]
    succeed(torchrun(2, "-m", "nanigpt", "convert", *out))
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()


def test_a_config_for_many_ranks_is_converted_on_one(tmp_path):
    pretrained(tmp_path / "hf")
    edits = (*SHORT, "fiddler:tensor_parallel(2)", "fiddler:pipeline(2, '1F1B', 2)")
    run = tmp_path / "run"
    assert (
        main(["convert", f"--from_hf={tmp_path / 'hf'}", *flags(*edits), f"--run_dir={run}"]) == 0
    )
    mesh = load_run(str(run)).parallelizer.mesh
    assert (mesh.tp, mesh.pp) == (2, 2)


def test_weights_of_another_model_leave_no_run(tmp_path, capsys):
    pretrained(tmp_path / "hf")
    run = tmp_path / "run"
    wrong = flags(*SHORT, "tag:VocabSize=600")
    for command, place in (
        (["convert", f"--from_hf={tmp_path / 'hf'}", *wrong], "--from_hf"),
        (["train", *wrong, *flags(f"set:initial_weights={tmp_path / 'hf'}")], "initial_weights"),
    ):
        assert main([*command, f"--run_dir={run}"]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"nanigpt: {place}")
        assert (
            f"{tmp_path / 'hf'} does not have the weights of this model, 3 problems:\n"
            "  - config.json has vocab_size=512, expected 600\n"
            "  - model.embed_tokens.weight is [512, 128], expected [600, 128]\n"
            "  - lm_head.weight is [512, 128], expected [600, 128]"
        ) in told
        assert not run.exists()


def test_what_is_there_is_kept(tmp_path, capsys):
    pretrained(tmp_path / "hf")
    run = tmp_path / "run"
    command = ["convert", f"--from_hf={tmp_path / 'hf'}", *flags(*SHORT), f"--run_dir={run}"]
    assert main(command) == 0
    assert main(command) == 2
    assert "holds a run already; expected a new directory" in capsys.readouterr().err
    assert main(["convert", f"--run_dir={run}", f"--to_hf={tmp_path / 'hf'}"]) == 2
    assert "--to_hf: " in (told := capsys.readouterr().err) and "is there already" in told


def test_what_predicts_further_tokens_is_told_to_be_left_out(tmp_path, capsys, monkeypatch):
    from transformers import AutoModelForCausalLM

    model = pretrained(tmp_path / "hf")
    run, out = tmp_path / "run", tmp_path / "out"
    assert (
        main(["convert", f"--from_hf={tmp_path / 'hf'}", *flags(*SHORT), f"--run_dir={run}"]) == 0
    )
    command = ["convert", f"--run_dir={run}"]
    assert main([*command, f"--to_hf={tmp_path / 'plain'}"]) == 0
    assert "multi_token" not in capsys.readouterr().out
    restore = convert.restore

    def with_multi_token(values):
        trainer, parallel, progress = restore(values)
        parallel.model.multi_token = torch.nn.ModuleDict({"depths": torch.nn.Linear(2, 2)})
        return trainer, parallel, progress

    monkeypatch.setattr(convert, "restore", with_multi_token)
    assert main([*command, f"--to_hf={out}"]) == 0
    told = capsys.readouterr().out.splitlines()[1:]
    assert told == ["not written: 2 weights of multi_token, which transformers does not have"]
    read = AutoModelForCausalLM.from_pretrained(out)
    tokens = torch.arange(20).unsqueeze(0)
    torch.testing.assert_close(read(tokens).logits, model(tokens), atol=1e-5, rtol=0)


def test_another_tokenizer_is_pointed_out(tmp_path, caplog):
    pretrained(tmp_path / "hf", texts={"tokenizer.json": "{}"})
    arguments = [f"--from_hf={tmp_path / 'hf'}", *flags(*SHORT), f"--run_dir={tmp_path / 'run'}"]
    assert main(["convert", *arguments]) == 0
    assert "the config's tokenizer is bytes" in caplog.text
