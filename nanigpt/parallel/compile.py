"""torch.compile, block by block."""

import torch

from nanigpt.models.decoder import Decoder


class Compile:
    """Compiles each block of the model for itself.

    One compilation serves all blocks that are alike, and the hooks of sharding stay
    outside of what is compiled.

    Args:
        backend: of torch.compile: `inductor` generates code, `aot_eager` only captures the graphs.
        fullgraph: refuse code that cannot be captured as one graph, rather than split it.
    """

    def __init__(self, *, backend: str = "inductor", fullgraph: bool = True):
        self.backend = backend
        self.fullgraph = fullgraph

    def apply(self, model: Decoder, *, keep_buffers: bool = False) -> None:
        """Compiles in place; names of parameters stay.

        Args:
            keep_buffers: what the backward pass reads is read twice, once for inputs and once for
                weights, and must not be overwritten by the first.
        """
        if keep_buffers:
            import torch._functorch.config as functorch

            functorch.donated_buffer = False
        import torch._dynamo.config as dynamo

        # How many tokens experts have, which the host learns in the middle of a block: what may be
        # split would be split there.
        dynamo.capture_scalar_outputs = True
        blocks = [block for block in model.blocks() if block is not None]
        # What is limited is how often one function is compiled, and all blocks have the same. Those
        # that differ need it each, in training and validation, for whole batches and last ones.
        kinds = len({repr(block) for block in blocks})
        dynamo.recompile_limit = max(dynamo.recompile_limit, 4 * kinds)
        for block in blocks:
            # What a checkpoint recomputes is a compiled function; a checkpoint within one fails
            # where weights are DTensors (torch 2.13).
            # Shapes are few, those of training and of evaluation, and each is compiled for itself:
            # DTensors do not take symbolic ones everywhere.
            block.compute = torch.compile(
                block.compute, backend=self.backend, fullgraph=self.fullgraph, dynamic=False
            )
