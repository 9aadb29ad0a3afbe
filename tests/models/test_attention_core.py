"""Attention cores against softmax written out loop by loop, and against each other."""

import math

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from nanigpt.config.compose.flag import compose
from nanigpt.models import attention_core
from nanigpt.models.attention_core import Eager, FlexAttention, ScaledDotProduct
from nanigpt.models.visibility import Places, Visibility
from nanigpt.parallel.compile import Compile
from nanigpt.parallel.remat import Recomputation
from tests.support import built_model, tiny

BATCH, LENGTH, HEADS, KV_HEADS, DIM = 2, 24, 4, 2, 16

CORES = pytest.mark.parametrize(
    "core", [Eager(), ScaledDotProduct(), FlexAttention()], ids=["eager", "sdpa", "flex"]
)
SIGHTS = pytest.mark.parametrize(
    "visibility",
    [
        Visibility(),
        Visibility(window=1),
        Visibility(window=5),
        Visibility(chunk=7),
        Visibility(window=4, chunk=10),
        Visibility(window=LENGTH, chunk=LENGTH),  # as if there were none
    ],
    ids=lambda v: f"{v.window}-{v.chunk}",
)
SINKS = pytest.mark.parametrize("sink", [False, True], ids=["", "sink"])


def inputs(device="cpu", *, gradients=False):
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, LENGTH, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [
        torch.randn(s, generator=generator).to(device).requires_grad_(gradients) for s in shapes
    ]


def sinks(given, device="cpu"):
    return torch.tensor([1.0, -3.0, 0.5, 4.0], device=device) if given else None


def places(kind, device="cpu"):
    if kind == "plain":
        return None
    positions = torch.arange(LENGTH, device=device).expand(BATCH, -1)
    if kind == "shuffled":  # as context parallelism has them
        positions = positions.flip(1)
        return Places(positions)
    documents = (positions + torch.tensor([[0], [3]], device=device)) // 7
    return Places(positions, documents)


def written_out(q, k, v, where, visibility, sink_H):
    """Softmax over what each query sees, loop by loop."""
    out = torch.empty_like(q)
    for b in range(BATCH):
        position = (where.positions_BL[b] if where else torch.arange(LENGTH)).tolist()
        for i in range(LENGTH):
            seen = [j for j in range(LENGTH) if position[j] <= position[i]]
            if visibility.window:
                seen = [j for j in seen if position[j] > position[i] - visibility.window]
            if visibility.chunk:
                begin = position[i] - position[i] % visibility.chunk
                seen = [j for j in seen if position[j] >= begin]
            if where and where.documents_BL is not None:
                document = where.documents_BL[b]
                seen = [j for j in seen if document[j] == document[i]]
            for h in range(HEADS):
                g = h // (HEADS // KV_HEADS)
                weights = (k[b, seen, g] @ q[b, i, h] / math.sqrt(DIM)).exp()
                total = weights.sum() + (0.0 if sink_H is None else sink_H[h].exp())
                out[b, i, h] = (weights / total) @ v[b, seen, g]
    return out


@pytest.mark.parametrize("kind", ["plain", "shuffled", "documents"])
@SINKS
@SIGHTS
@CORES
def test_against_softmax_written_out(core, visibility, sink, kind):
    q, k, v = inputs()
    where, sink_H = places(kind), sinks(sink)
    got = core(q, k, v, where, visibility=visibility, sink_H=sink_H)
    torch.testing.assert_close(got, written_out(q, k, v, where, visibility, sink_H))


@SINKS
@SIGHTS
@CORES
@pytest.mark.parametrize("n", [1, 3])
def test_last_queries_see_what_they_saw_among_all(core, visibility, sink, n):
    q, k, v = inputs()
    more = {"visibility": visibility, "sink_H": sinks(sink)}
    torch.testing.assert_close(core(q[:, -n:], k, v, **more), core(q, k, v, **more)[:, -n:])


@pytest.mark.parametrize("kind", ["plain", "documents"])
@pytest.mark.parametrize("width", [3, 8, 24])
@SINKS
@CORES
def test_values_may_have_another_width_than_keys(core, sink, width, kind):
    """Each of their features is summed alone: those of a wide value can be had piece by piece."""
    q, k, _ = inputs()
    v = torch.randn(BATCH, LENGTH, KV_HEADS, 2 * DIM, generator=torch.Generator().manual_seed(1))
    more = {"visibility": Visibility(window=9), "sink_H": sinks(sink)}
    got = core(q, k, v[..., :width], places(kind), **more)
    wanted = [written_out(q, k, x, places(kind), *more.values()) for x in v.split(DIM, -1)]
    torch.testing.assert_close(got, torch.cat(wanted, -1)[..., :width])


@pytest.mark.parametrize("kind", ["plain", "documents"])
@SINKS
@SIGHTS
def test_sdpa_has_the_gradients_of_eager(visibility, sink, kind):
    compare_gradients(ScaledDotProduct(), visibility, sink, kind, "cpu", {})


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["plain", "documents"])
@SINKS
@SIGHTS
@pytest.mark.parametrize("core", [ScaledDotProduct(), FlexAttention()], ids=["sdpa", "flex"])
def test_fused_cores_have_the_gradients_of_eager(core, visibility, sink, kind):
    # TF32 in the generated kernel
    compare_gradients(core, visibility, sink, kind, "cuda", {"rtol": 2e-2, "atol": 2e-2})


def compare_gradients(core, visibility, sink, kind, device, bounds):
    gradients = []
    for each in (Eager(), core):
        tensors = inputs(device, gradients=True)
        sink_H = sinks(sink, device)
        if sink:
            tensors.append(sink_H.requires_grad_())
        where = places(kind, device)
        out = each(*tensors[:3], where, visibility=visibility, sink_H=sink_H)
        out.square().sum().backward()
        gradients.append([x.grad for x in tensors])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b, a, **bounds)


@SINKS
def test_sdpa_follows_bf16(sink):
    q, k, v = (x.bfloat16() for x in inputs())
    more = {"visibility": Visibility(window=5), "sink_H": sinks(sink)}
    got, want = (core(q, k, v, **more) for core in (ScaledDotProduct(), Eager()))
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


class FlexApart:
    """FlexAttention for which nothing is prepared, so that each layer makes its own mask."""

    def __call__(self, *tensors, **named):
        return FlexAttention()(*tensors, **named)


TWO_KINDS = ("tag:AttentionCore=@flex_attention()", "set:model.layers[::2].attention.window=9")


@pytest.fixture
def block_masks(monkeypatch):
    """How many block masks were made."""
    made = []
    create = flex_attention.create_block_mask

    def counted(*arguments, **named):
        made.append(arguments)
        return create(*arguments, **named)

    monkeypatch.setattr(flex_attention, "create_block_mask", counted)
    return made


def tokens_and_documents(documents):
    tokens = torch.randint(0, 200, (2, 32), generator=torch.Generator().manual_seed(0))
    return tokens, (tokens % 7 == 0).cumsum(1) if documents else None


@pytest.mark.parametrize("documents", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("further", [0, 2])
def test_layers_that_see_alike_share_a_block_mask(block_masks, further, documents):
    tokens, of = tokens_and_documents(documents)
    ahead = (f"fiddler:multi_token({further})",) if further else ()
    model = built_model(compose(["config:llama3_debug", *TWO_KINDS, *ahead]))
    assert len(model.blocks()) == 6 + further
    with torch.no_grad():
        got = model(tokens, documents_BL=of, ahead=True)
        assert len(block_masks) == 2
        for block in model.blocks():
            block.attention.core = FlexApart()
        wanted = model(tokens, documents_BL=of, ahead=True)
    assert len(block_masks) == 2 + len(model.blocks())
    assert len(got) == 1 + further
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


class EagerOfMask(FlexAttention):
    """Has gradients on a CPU, and computes what the block mask tells that it was given."""

    calls = 0

    def __call__(self, q_BLHK, k_BSGK, v_BSGK, queries=None, keys=None, **named):
        EagerOfMask.calls += 1
        mask = queries.prepared.mask_mod
        length = torch.arange(q_BLHK.shape[1])
        batch = torch.arange(q_BLHK.shape[0])[:, None, None]
        seen = mask(batch, None, length[:, None], length).expand(len(batch), -1, -1)
        out = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q_BLHK, k_BSGK, v_BSGK)), attn_mask=seen.unsqueeze(1)
        )
        return out.transpose(1, 2)


@pytest.mark.parametrize("documents", [False, True], ids=["plain", "documents"])
def test_recomputation_reads_the_block_masks_of_the_forward_pass(block_masks, documents):
    tokens, of = tokens_and_documents(documents)
    gradients = []
    for recompute in ("none", "full"):
        model = built_model(tiny(*TWO_KINDS, f"tag:ActivationCheckpointing={recompute}"))
        for block in model.layers:
            block.attention.core = EagerOfMask()
        Recomputation().apply(model)
        block_masks.clear()
        EagerOfMask.calls = 0
        model(tokens, documents_BL=of).square().sum().backward()
        assert len(block_masks) == 2
        assert EagerOfMask.calls == len(model.layers) * (2 if recompute == "full" else 1)
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_block_masks_are_made_for_those_layers_only_that_use_them(block_masks):
    tokens, of = tokens_and_documents(True)
    edit = "set:model.layers[1].attention.core=@flex_attention()"
    model, plain = built_model(tiny(edit)), built_model(tiny())
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, documents_BL=of), plain(tokens, documents_BL=of))
        assert len(block_masks) == 1
        model(tokens, model.new_caches(capacity=32))  # caches are read by another core
    assert len(block_masks) == 1


@pytest.mark.parametrize("documents", [False, True], ids=["plain", "documents"])
def test_compiled_blocks_get_block_masks_as_inputs(block_masks, documents):
    tokens, of = tokens_and_documents(documents)
    plain, model = built_model(tiny(TWO_KINDS[1])), built_model(tiny(*TWO_KINDS))
    torch.compiler.reset()
    Compile(backend="aot_eager").apply(model)
    graphs = []
    with torch.no_grad():
        for shift in (0, 5):  # other documents need no other compilation
            here = None if of is None else of.roll(shift, 1).cummax(1).values
            counters.clear()
            got = model(tokens, documents_BL=here)
            graphs.append(counters["stats"]["unique_graphs"])
            torch.testing.assert_close(got, plain(tokens, documents_BL=here))
    assert len(block_masks) == 4
    assert graphs[0] > 0 == graphs[1]


def test_documents_do_not_see_each_other(tmp_path):
    """The logits of a document in a packed sequence are those that it has alone, but for RoPE, whose
    scores depend on differences of positions only."""
    from nanigpt.config.check.build import build

    cfg = tiny("set:data.mask_documents=True")
    data = build(cfg.data)
    end = data.tokenizer.end_id
    row = [end, 7, 8, 9, end, 20, 21, end, 30, 31, 32, 33]
    model = built_model(cfg)
    tokens = torch.tensor([row])
    documents = (tokens == end).cumsum(1)
    with torch.no_grad():
        packed = model(tokens, documents_BL=documents)[0]
        alone = torch.cat([model(torch.tensor([part]))[0] for part in (row[:4], row[4:7], row[7:])])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(tokens)[0], alone, atol=1e-3)


def test_batches_number_their_documents(tmp_path):
    from nanigpt.config.check.build import build

    path = tmp_path / "short.jsonl"
    path.write_text("".join(f'{{"text": "document {i}"}}\n' for i in range(300)))
    data = build(tiny(f"set:data.corpus.path={path}", "set:data.mask_documents=True").data)
    data.setup()
    batch = data.train_batch(range(3), seed=0)
    ends = batch.tokens_BL == data.tokenizer.end_id
    assert ends.sum() > 3
    assert torch.equal(batch.documents_BL.diff(dim=1), ends[:, 1:].long())
    assert build(tiny().data).mask_documents is False


class Operators(TorchDispatchMode):
    """Names of the operators that were called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__.partition(".")[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernels", [("math",), ("cudnn", "flash"), None], ids=str)
def test_only_kernels_that_are_allowed_are_taken(kernels):
    core = ScaledDotProduct(kernels=kernels)
    with Operators() as operators:
        out = core(*inputs())
    fused = "_scaled_dot_product_flash_attention_for_cpu" in operators.names
    assert fused == (kernels != ("math",))
    torch.testing.assert_close(out, Eager()(*inputs()), rtol=1e-5, atol=1e-5)
    compiled = torch.compile(core.__call__, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs()), out, rtol=0, atol=0)


def test_on_hopper_cudnn_comes_first_but_for_single_queries(monkeypatch):
    orders = []

    def attend(*arguments, **named):
        orders.append([int(b) for b in torch._C._get_sdp_priority_order()])
        return plain(*arguments, **named)

    before = [int(b) for b in torch._C._get_sdp_priority_order()]
    plain = attention_core.F.scaled_dot_product_attention
    monkeypatch.setattr(attention_core.F, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(attention_core, "is_hopper", lambda device: True)
    q, k, v = inputs()
    out = ScaledDotProduct()(q, k, v)
    torch.testing.assert_close(out, Eager()(q, k, v), rtol=1e-5, atol=1e-5)
    ScaledDotProduct()(q[:, -1:], k, v)
    cudnn, flash = int(SDPBackend.CUDNN_ATTENTION), int(SDPBackend.FLASH_ATTENTION)
    assert orders[0][:2] == [cudnn, flash] != before[:2]
    assert orders[1] == before
    assert [int(b) for b in torch._C._get_sdp_priority_order()] == before


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="expected some of cudnn, flash, efficient, math"):
        ScaledDotProduct(kernels=["flsh"])
