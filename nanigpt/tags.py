"""Every tag of a run's DAG: the knobs that cut across components.

A tag is attached where the value is used, in the signature of a component:

    def __init__(self, *, lr: Annotated[float, tags.LearningRate] = 3e-4): ...

and then set everywhere at once: `fdl.set_tagged(cfg, tag=tags.LearningRate, value=1e-3)`.

`one_value = True` says that the arguments of a tag have one value, so that a message about one of
them may propose to set them all.
"""

from dataclasses import dataclass

from fiddle import Tag


@dataclass(frozen=True)
class Unit:
    """The unit of an argument that has no tag: `Annotated[int, Unit("steps")]`. A tag's own is its
    attribute `unit`."""

    unit: str


class LearningRate(Tag):
    """Peak learning rate of an optimizer."""


class MuonLearningRate(LearningRate):
    """Peak learning rate of Muon's matrices. What sets `LearningRate` sets it too, as it is one."""


class WeightDecay(Tag):
    """Decoupled weight decay, applied to matrices only."""


class Steps(Tag):
    """Number of optimizer steps of the run."""

    unit = "steps"


class Seed(Tag):
    """Seed of initial weights and sample order."""


class SequenceLength(Tag):
    """Tokens in one training sequence, and the positions that the model has."""

    unit = "tokens"
    one_value = True


class GlobalBatchSize(Tag):
    """Sequences in one optimizer step, over all ranks and accumulation steps."""

    unit = "sequences"


class LocalBatchSize(Tag):
    """Sequences in one forward pass of one rank."""

    unit = "sequences"


class VocabSize(Tag):
    """Rows of the token embedding and of the output head."""

    one_value = True


class Width(Tag):
    """A feature dimension of the model: for fiddlers, which scale each by its own size. A model has
    several sizes, so that one value for all of them passes no check."""


class Initializer(Tag):
    """Initial distribution of a weight matrix."""


class BiasInitializer(Tag):
    """Initial value of a linear layer's bias; None for no bias."""


class GainInitializer(Tag):
    """Initial value of a normalisation's gain; None for no gain."""


class SinkInitializer(Tag):
    """Initial scores of attention sinks."""


class ComputeDType(Tag):
    """Dtype of activations and matrix multiplications; master weights stay float32."""

    one_value = True


class ActivationCheckpointing(Tag):
    """What a layer's backward pass recomputes: `none`, `full`, `selective`, or `budget`."""


class Float8(Tag):
    """Float8 recipe of a projection, or of experts; None computes in the compute dtype."""


class AttentionCore(Tag):
    """What computes attention from queries, keys and values."""


class PipelineSchedule(Tag):
    """Order of forward and backward passes of pipeline stages."""


class PipelineParallel(Tag):
    """Ranks that the layers are divided among."""


class DataParallelReplicate(Tag):
    """Copies of the sharded model, each of other samples (HSDP)."""


class DataParallelShard(Tag):
    """Ranks that parameters are sharded over; -1 is what the other axes leave."""


class ContextParallel(Tag):
    """Ranks that each sequence is split over."""


class BalanceRate(Tag):
    """Step by which a router's bias of experts is moved towards equal load, or None."""


class ExpertKernel(Tag):
    """How the experts of a mixture are computed: `auto`, `grouped` or `loop`."""


class MultiTokenLossWeight(Tag):
    """Weight of the loss of tokens beyond the next one."""


class ExpertParallel(Tag):
    """Ranks that the experts of a mixture are divided among."""


class TensorParallel(Tag):
    """Ranks that each matrix is split over."""
