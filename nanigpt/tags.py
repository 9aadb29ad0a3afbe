"""All tags of a run's DAG: settings that several components share.

A tag is attached where the value is used, in the signature of a component:

    def __init__(self, *, lr: Annotated[float, tags.LearningRate] = 3e-4): ...

and then set everywhere at once: `fdl.set_tagged(cfg, tag=tags.LearningRate, value=1e-3)`.

`one_value = True` says that the arguments of a tag have one value, so that a message about one of
them may propose to set them all. `set_instead` says that they never have one value, and names the
way to change them; no list of tags shows such a tag, and the command line does not set it.
"""

from dataclasses import dataclass

from fiddle import Tag


@dataclass(frozen=True)
class Unit:
    """The unit of an argument without a tag: `Annotated[int, Unit("steps")]`.

    A tag has its unit in the attribute `unit`.
    """

    unit: str


class LearningRate(Tag):
    """Peak learning rate of an optimizer."""


class MuonLearningRate(LearningRate):
    """Peak learning rate of Muon's matrices, which `LearningRate` sets, too."""


class WeightDecay(Tag):
    """Decoupled weight decay, applied to matrices only."""


class Steps(Tag):
    """Number of optimizer steps of the run."""

    unit = "steps"


class Seed(Tag):
    """Seed of initial weights and of the order of samples."""


class SequenceLength(Tag):
    """Tokens in one training sequence, and the positions that the model has."""

    unit = "tokens"
    one_value = True


class GlobalBatchSize(Tag):
    """Number of sequences in one optimizer step, over all ranks and accumulation steps."""

    unit = "sequences"


class LocalBatchSize(Tag):
    """Number of sequences in one forward pass of one rank."""

    unit = "sequences"


class VocabSize(Tag):
    """Rows of the token embedding and of the output head."""

    one_value = True


class Width(Tag):
    """A feature dimension of the model, for fiddlers that scale each by a common factor."""

    # A model has several sizes, so that no single value passes a check.
    set_instead = "the arguments of a recipe, as in config:llama3_debug(dim=512)"


class ResidualScale(Tag):
    """Scale of initial weights that write to the residual stream, which follows the depth."""


class Initializer(Tag):
    """Initial distribution of a weight matrix."""


class BiasInitializer(Tag):
    """Initial value of a linear layer's bias, or None for no bias."""


class GainInitializer(Tag):
    """Initial value of a norm's gain, or None for no gain."""


class SinkInitializer(Tag):
    """Initial scores of attention sinks."""


class ComputeDType(Tag):
    """Dtype of activations and matrix multiplications; master weights stay float32."""

    one_value = True


class ActivationCheckpointing(Tag):
    """Recomputation in a layer's backward pass: `none`, `full`, `selective`, or `budget`."""


class Float8(Tag):
    """Float8 recipe of a projection or of experts, or None for the compute dtype."""


class AttentionCore(Tag):
    """Function that computes attention from queries, keys and values."""


class PipelineSchedule(Tag):
    """Order of forward and backward passes of pipeline stages."""


class PipelineParallel(Tag):
    """Number of ranks among which the layers are divided."""


class DataParallelReplicate(Tag):
    """Number of copies of the sharded model, each with its own samples (HSDP)."""


class DataParallelShard(Tag):
    """Number of ranks that share parameters, or -1 for all ranks that the other axes leave."""


class ContextParallel(Tag):
    """Number of ranks among which each sequence is split."""


class BalanceRate(Tag):
    """Step that moves a router's bias of experts towards equal load, or None for no such bias."""


class ExpertKernel(Tag):
    """Kernel of a mixture's experts: `auto`, `grouped` or `loop`."""


class MultiTokenLossWeight(Tag):
    """Weight of the loss of tokens beyond the next one."""


class ExpertParallel(Tag):
    """Number of ranks among which the experts of a mixture are divided."""


class TensorParallel(Tag):
    """Number of ranks among which each matrix is split."""
