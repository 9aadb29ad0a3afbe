"""Parts of a run other than the model as components: `set:trackers[2]=@wandb(project=mine)`."""

from functools import partial

import fiddle as fdl

from nanigpt.data.corpus import TextCorpus
from nanigpt.data.dataset import PackedDataset
from nanigpt.data.loader import Loader
from nanigpt.data.tokenizer import ByteTokenizer
from nanigpt.experiments.parts import part
from nanigpt.parallel.context import ContextParallel
from nanigpt.parallel.expert import ExpertParallel
from nanigpt.parallel.fsdp import FullyShardedDataParallel
from nanigpt.parallel.mesh import Mesh
from nanigpt.parallel.pipeline import PipelineParallel
from nanigpt.parallel.remat import Recomputation
from nanigpt.parallel.tensor import TensorParallel
from nanigpt.precision.float8 import Float8
from nanigpt.tasks.cross_entropy import LinearCrossEntropy
from nanigpt.tasks.language_modeling import LanguageModeling
from nanigpt.tasks.sampler import Sampler
from nanigpt.training.checkpoint import Checkpointer
from nanigpt.training.evaluation import Evaluation
from nanigpt.training.garbage import GarbageCollection
from nanigpt.training.metrics import Metrics
from nanigpt.training.phases import PhaseTimers
from nanigpt.training.profiling import MemorySnapshot, Profiling, Trace
from nanigpt.training.trackers.console import Console
from nanigpt.training.trackers.json_lines import JsonLines
from nanigpt.training.trackers.tensorboard import TensorBoard
from nanigpt.training.trackers.wandb import WandB

part("text_corpus", TextCorpus)
part(
    "packed_dataset",
    PackedDataset,
    corpus=partial(fdl.Config, TextCorpus),
    tokenizer=partial(fdl.Config, ByteTokenizer),
)
part("loader", Loader)

part("language_modeling", LanguageModeling, loss=partial(fdl.Config, LinearCrossEntropy))
part("sampler", Sampler)
part("evaluation", Evaluation)

part("console", Console)
part("json_lines", JsonLines)
part("tensorboard", TensorBoard)
part("wandb", WandB)
part("metrics", Metrics)
part("checkpointer", Checkpointer)
part("garbage_collection", GarbageCollection)

part("profiling", Profiling)
part("phase_timers", PhaseTimers)
part("trace", Trace)
part("memory_snapshot", MemorySnapshot)

part("mesh", Mesh)
part("pipeline_parallel", PipelineParallel)
part("fully_sharded_data_parallel", FullyShardedDataParallel)
part("context_parallel", ContextParallel)
part("tensor_parallel", TensorParallel)
part("expert_parallel", ExpertParallel)
part("float8", Float8)
part("recomputation", Recomputation)
