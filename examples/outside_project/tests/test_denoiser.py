"""The task that is no language model."""

import json

import pytest
import torch
from outside_project.flow_matching import as_text
from outside_project.shapes import Shapes

from nanigpt.cli.main import main


def test_an_image_is_a_pure_function_of_seed_and_number():
    shapes = Shapes()
    batch, last = shapes.train_batch(range(5), seed=1), shapes.train_batch(range(4, 5), seed=1)
    assert torch.equal(batch.images_BHW[4:], last.images_BHW)
    assert torch.equal(batch.noise_BHW[4:], last.noise_BHW)
    assert not torch.equal(batch.images_BHW, shapes.train_batch(range(5), seed=2).images_BHW)
    assert set(batch.images_BHW.unique().tolist()) == {-1.0, 1.0}


def test_an_image_as_text():
    assert as_text(torch.tensor([[-1.0, 1.0], [9.0, -1.0]])) == "  @@\n@@"


def test_the_denoiser_beats_the_best_constant_by_a_fifth(tmp_path, capsys):
    flags = ["--config=config:outside_denoiser(steps=60)", f"--run_dir={tmp_path / 'run'}"]
    assert main(["train", *flags]) == 0
    assert "--- sampled image" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["val_loss"] < 0.8 * rows[-1]["val_constant_loss"]
    table = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert table[0] == "step,loss,val_loss,val_constant_loss"
    assert table[-1].split(",") == [str(rows[-1][name]) for name in table[0].split(",")]


def test_images_of_another_size_are_refused_with_the_flag_that_mends_it(capsys):
    assert main(["check", "--config=config:outside_denoiser", "--config=set:model.size=6"]) == 2
    message = capsys.readouterr().err
    assert "model.size=6: expected 8, the size of the data's images" in message
    assert "--config=set:model.size=8" in message


@pytest.mark.parametrize("argument", ["size=3", "n_validation=-1"])
def test_a_dataset_that_cannot_be_is_refused(argument, capsys):
    flags = ["--config=config:outside_denoiser", f"--config=set:data.{argument}"]
    assert main(["check", *flags]) == 2
    assert argument in capsys.readouterr().err
