"""The table of a run that is killed and resumed."""

from outside_project.tracker import CsvTracker

from nanigpt.training.trackers.tracker import RunInfo


def test_rows_of_steps_that_are_repeated_are_dropped(tmp_path):
    tracker = CsvTracker(columns=("step", "loss"))
    tracker.open(RunInfo(directory=tmp_path))
    tracker.write([{"step": step, "loss": 1.0, "lr": 0.1} for step in (1, 2, 3)])
    tracker.close()
    tracker.open(RunInfo(directory=tmp_path, step=2))
    tracker.write([{"step": 3, "loss": 0.5}])
    tracker.close()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,loss",
        "1,1.0",
        "2,1.0",
        "3,0.5",
    ]
