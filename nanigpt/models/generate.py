"""Sample tokens from a decoder.

Shapes: B batch, L sequence, V vocab_size.
"""

import contextlib
import itertools
import sys
from collections.abc import Iterator

import torch

from nanigpt.models.decoder import Decoder
from nanigpt.problems import refuse


@torch.no_grad()
def generate(
    model: Decoder,
    prompt: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    stop_id: int | None = None,
    n_tokens: int | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Yield sampled tokens one by one.

    Args:
        model: The decoder.
        prompt: Token ids, at least one.
        max_new_tokens: Largest number of tokens to yield.
        temperature: Divisor of the logits; 0 is greedy decoding.
        top_k: Sample only from the k most likely tokens; None samples from all.
        seed: Seed of the random stream.
        stop_id: Token that ends the text when it is sampled. It is not yielded.
        n_tokens: Number of ids that may be sampled. The model may have more, since a vocabulary may
            be padded beyond the tokenizer's.
        use_cache: Keep keys and values of past positions. Otherwise each step recomputes all
            positions. A model whose layers keep no cache (`keeps_caches`) ignores this.

    Raises:
        ComponentError: An argument is out of range, or the text would exceed the model's context.
    """
    if not prompt:
        refuse("prompt", prompt, "at least one token")
    check_sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed)
    context = model.max_sequence_length
    use_cache = use_cache and getattr(model, "keeps_caches", True)
    if context is not None and len(prompt) + max_new_tokens > context:
        expected = (
            f"at most {max(context - len(prompt), 0)} after a prompt of {len(prompt)} tokens, "
            f"since the model has a context of {context}"
        )
        refuse("max_new_tokens", max_new_tokens, expected)
    # Parameters may be offloaded, but buffers are on the device that computes.
    device = next(itertools.chain(model.buffers(), model.parameters())).device
    generator = torch.Generator(device).manual_seed(seed)
    capacity = len(prompt) + max_new_tokens
    caches = model.new_caches(capacity=capacity) if use_cache else None
    tokens_BL = torch.tensor([prompt], device=device)
    new_BL = tokens_BL
    for _ in range(max_new_tokens):
        with _uncompiled():
            logits_BLV = model(new_BL, caches) if use_cache else model(tokens_BL)
        logits_V = logits_BLV[0, -1].float()[:n_tokens]
        token = _sample(logits_V, temperature, top_k, generator)
        if int(token) == stop_id:
            return
        yield int(token)
        new_BL = token.view(1, 1)
        tokens_BL = torch.cat([tokens_BL, new_BL], dim=1)


def check_sampling(
    *, max_new_tokens: int, temperature: float, top_k: int | None, seed: int
) -> None:
    """Raise a ComponentError where an argument of `generate` is out of range."""
    if max_new_tokens < 1:
        refuse("max_new_tokens", max_new_tokens, "at least 1")
    if not 0 <= temperature < float("inf"):
        refuse("temperature", temperature, "0 (greedy) or more")
    if top_k is not None and top_k < 1:
        refuse("top_k", top_k, "at least 1, or None")
    if not 0 <= seed < 2**63:
        refuse("seed", seed, "0 to 2**63 - 1")


def _uncompiled() -> contextlib.AbstractContextManager:
    """Run compiled blocks eagerly, since each cache length would compile them again."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def _sample(
    logits_V: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator
) -> torch.Tensor:
    if temperature < torch.finfo(torch.float32).tiny:  # it is too small to divide by
        return logits_V.argmax()
    if top_k is not None and top_k < logits_V.numel():
        threshold = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < threshold, -torch.inf)
    logits_V = logits_V - logits_V.max()  # keeps any temperature, however low, from overflowing
    return torch.multinomial((logits_V / temperature).softmax(-1), 1, generator=generator)
