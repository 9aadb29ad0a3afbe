"""Metrics that tell a benchmark when steps ended; in a module of their own, as a DAG wants it."""

from nanigpt.training.metrics import Metrics


class TimedMetrics(Metrics):
    """Calls `after_step` with each step's loss."""

    after_step = staticmethod(lambda loss: None)

    def record(self, row, **more):
        super().record(row, **more)
        self.after_step(row["loss"])
