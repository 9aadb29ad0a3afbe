"""Rules for what families do with their tensors: fused, split, transposed, reordered. Each way of
rearranging is written out here once more, by indices."""

import itertools

import pytest
import torch

from nanigpt.models.huggingface.llama import LLAMA
from nanigpt.models.huggingface.mapping import Family, RotaryPairs, Rule
from nanigpt.models.huggingface.views import BlockScaled, Mxfp4, Stored
from nanigpt.models.rope import RotaryEmbedding

FIELDS = {"head_dim": 10, "rope_dim": 4}


class File:
    """Tensors in memory, as safetensors gives them; counts the elements that are read."""

    def __init__(self, tensor):
        self.tensor, self.read = tensor, 0

    def get_shape(self):
        return list(self.tensor.shape)

    def __getitem__(self, region):
        part = self.tensor[region]
        self.read += part.numel()
        return part


def exported(rule, **ours):
    """Their tensors, and the link, of ours by name."""
    [link], unknown = family(rule).links(ours)
    assert not unknown
    return link, link.export([ours[name] for name in link.ours], FIELDS)


def family(*rules):
    return Family("a", "A", rules, fields=lambda _: {}, normalized=lambda _: {})


def numbered(*shape):
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


def check_every_region(link, theirs, ours):
    """Each part of each of ours is what is read for it."""
    shapes = [tuple(ours[name].shape) for name in link.ours]
    for name in link.ours:
        view = link.view(name, shapes, lambda n: Stored(File(theirs[n])), FIELDS)
        assert view.shape == tuple(ours[name].shape)
        ranges = [[(0, n), (0, 1), (n // 2, n), (1, n - 1)] for n in view.shape]
        for bounds in itertools.product(*ranges):
            region = tuple(slice(*b) for b in bounds)
            assert torch.equal(view.read(region), ours[name][region]), (name, region)


def test_fused_halves_of_stacked_experts():
    rule = Rule(
        ("layers.{i}.moe.w1", "layers.{i}.moe.w3"),
        "layers.{i}.experts.gate_up_proj",
        along=1,
        transposed=True,
    )
    ours = {"layers.4.moe.w1": numbered(3, 6, 5), "layers.4.moe.w3": -numbered(3, 6, 5)}
    link, theirs = exported(rule, **ours)
    fused = theirs.pop("layers.4.experts.gate_up_proj")
    assert not theirs and fused.shape == (3, 5, 12)
    assert fused[2, 3, 1] == ours["layers.4.moe.w1"][2, 1, 3]
    assert fused[2, 3, 6 + 1] == ours["layers.4.moe.w3"][2, 1, 3]
    check_every_region(link, {link.theirs: fused}, ours)


@pytest.mark.parametrize("shape, transposed", [((3, 6, 5), True), ((3, 6), False)])
def test_fused_by_turns(shape, transposed):
    """Weights and biases of experts."""
    rule = Rule(("w1", "w3"), "gate_up", along=1, alternating=True, transposed=transposed)
    ours = {"w1": numbered(*shape), "w3": -numbered(*shape)}
    link, theirs = exported(rule, **ours)
    fused = theirs["gate_up"].transpose(-1, -2) if transposed else theirs["gate_up"]
    assert torch.equal(fused[:, 0::2], ours["w1"]) and torch.equal(fused[:, 1::2], ours["w3"])
    check_every_region(link, theirs, ours)


def test_experts_of_their_own():
    rule = Rule("layers.{i}.moe.w2", "layers.{i}.experts.{e}.down.weight")
    ours = {"layers.0.moe.w2": numbered(4, 5, 6)}
    link, theirs = exported(rule, **ours)
    assert list(theirs) == [f"layers.0.experts.{e}.down.weight" for e in range(4)]
    assert torch.equal(theirs["layers.0.experts.2.down.weight"], ours["layers.0.moe.w2"][2])
    check_every_region(link, theirs, ours)


def test_joined_parts_of_different_sizes():
    rule = Rule(("{i}.wq.{p}", "{i}.wk.{p}", "{i}.wv.{p}"), "{i}.qkv.{p}")
    for p, tail in (("weight", (5,)), ("bias", ())):
        sizes = {"wq": 8, "wk": 4, "wv": 6}
        ours = {f"1.{name}.{p}": numbered(n, *tail) + n for name, n in sizes.items()}
        link, theirs = exported(rule, **ours)
        assert torch.equal(theirs[f"1.qkv.{p}"], torch.cat(list(ours.values())))
        check_every_region(link, theirs, ours)


@pytest.mark.parametrize("head_dim, rows", [("head_dim", 30), (None, 13)])
def test_rotary_pairs(head_dim, rows):
    """Rotating neighbours in theirs is rotating halves in ours: scores are equal."""
    rule = Rule("wq", "q", rotary=RotaryPairs(head_dim, "rope_dim"))
    ours = {"wq": torch.randn(rows, 7, generator=torch.Generator().manual_seed(0))}
    link, theirs = exported(rule, **ours)
    check_every_region(link, theirs, ours)
    size = FIELDS["head_dim"] if head_dim else rows
    rope = RotaryEmbedding(head_dim=4, max_sequence_length=8, theta=100.0)
    rope.cos_sin_2MF = torch.empty_like(rope.cos_sin_2MF, device="cpu")
    rope.reset_buffers()
    x_LD = torch.randn(8, 7, generator=torch.Generator().manual_seed(1))

    def scores(weight, rotate):
        features = (x_LD @ weight.T).unflatten(-1, (-1, size))  # position, head, feature
        kept, rotated = features[..., :-4], features[..., -4:]
        features = torch.cat([kept, rotate(rotated)], dim=-1)
        return torch.einsum("lhk,mhk->hlm", features, features)

    def neighbours(x_LHK):
        cos, sin = rope.cos_sin_2MF.unsqueeze(2)
        a, b = x_LHK[..., 0::2], x_LHK[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)

    def halves(x_LHK):
        return rope(x_LHK.unsqueeze(0))[0]

    torch.testing.assert_close(scores(theirs["q"], neighbours), scores(ours["wq"], halves))
    assert not torch.allclose(scores(ours["wq"], neighbours), scores(ours["wq"], halves))


def test_no_more_is_read_than_a_shard_needs():
    rule = Rule(("w1", "w3"), "gate_up", along=1, transposed=True)
    ours = {"w1": numbered(4, 6, 8), "w3": numbered(4, 6, 8)}
    link, theirs = exported(rule, **ours)
    file = File(theirs["gate_up"])
    view = link.view("w3", [(4, 6, 8)] * 2, lambda _: Stored(file), FIELDS)
    assert file.read == 0
    view.read((slice(2, 3), slice(0, 3), slice(0, 8)))
    assert file.read == 3 * 8


def test_parts_of_mxfp4():
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (3, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(120, 134, (3, 2), generator=generator, dtype=torch.uint8)
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    expected = torch.empty(3, 64)
    for row, column in itertools.product(range(3), range(64)):
        byte = int(blocks[row, column // 32, column % 32 // 2])
        code = byte >> 4 if column % 2 else byte % 16
        expected[row, column] = values[code] * 2.0 ** (int(scales[row, column // 32]) - 127)
    files = File(blocks), File(scales)
    view = Mxfp4(*map(Stored, files))
    assert view.shape == (3, 64)
    for start, stop in [(0, 64), (0, 1), (5, 33), (31, 32), (32, 64), (40, 47)]:
        region = (slice(1, 3), slice(start, stop))
        assert torch.equal(view.read(region), expected[region])
    files[0].read = 0
    view.read((slice(0, 1), slice(40, 47)))
    assert files[0].read == 16


@pytest.mark.parametrize("block", [(128, 128), (3, 5)])
def test_parts_of_blocks_with_scales(block):
    generator = torch.Generator().manual_seed(0)
    rows, columns = block[0] * 2 + 1, block[1] + 2
    values = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2, generator=generator)
    expected = torch.empty(rows, columns)
    for i, j in itertools.product(range(3), range(2)):
        at = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
        expected[at] = values[at].float() * scales[i, j]
    files = File(values), File(scales)
    view = BlockScaled(*map(Stored, files), block)
    assert view.shape == (rows, columns)
    starts = [(0, rows), (1, 2), (block[0] - 1, block[0] + 1), (block[0], rows), (rows - 1, rows)]
    for (a, b), (c, d) in itertools.product(starts, [(0, columns), (1, 3), (block[1], columns)]):
        region = slice(a, b), slice(c, d)
        assert torch.equal(view.read(region), expected[region])
    for file in files:
        file.read = 0
    view.read((slice(block[0], block[0] + 2), slice(0, 2)))
    assert [file.read for file in files] == [4, 1]


def test_a_name_in_two_rules_is_refused():
    with pytest.raises(ValueError, match="expected each name in one rule"):
        family(Rule("a", "x"), Rule("b", "x"))
    with pytest.raises(ValueError, match="expected each name in one rule"):
        family(Rule("a", "x"), Rule(("b", "a"), "y"))


def test_names_without_a_rule_are_told():
    links, unknown = LLAMA.links(["layers.0.attention.wq.weight", "layers.0.moe.router", "norm"])
    assert [link.theirs for link in links] == ["model.layers.0.self_attn.q_proj.weight"]
    assert unknown == ["layers.0.moe.router", "norm"]
