"""Sample text from a model, for people to read."""

from typing import Annotated

from nanigpt.data.tokenizer import Tokenizer
from nanigpt.models.decoder import Decoder
from nanigpt.models.generate import check_sampling, generate
from nanigpt.problems import ComponentError, Problem, on_behalf_of
from nanigpt.tags import Unit


class Sampler:
    """Sampler that continues a prompt.

    Args:
        prompt: Text to continue.
        max_new_tokens: Upper bound of the continuation.
        temperature: Divisor of the logits; 0 is greedy decoding.
        top_k: Number of the likeliest tokens to sample from; None samples from all.
        seed: Seed of the random stream.
    """

    may_change_on_resume = True

    def __init__(
        self,
        *,
        prompt: str = "",
        max_new_tokens: Annotated[int, Unit("tokens")] = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 0,
    ):
        check_sampling(
            max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
        )
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.seed = seed

    def run(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        shorten: bool = False,
    ) -> str:
        """Return prompt and continuation. All ranks call it and get the same text.

        Args:
            shorten: Whether to keep only the end of the prompt and sample fewer tokens if the text
                would exceed the model's context.

        Raises:
            ComponentError: The prompt is not text, or prompt and continuation would exceed the
                model's context.
        """
        try:
            encoded = tokenizer.encode([self.prompt])[0].tolist()
        except UnicodeEncodeError as error:
            problem = Problem("prompt", self.prompt, f"UTF-8 text ({error})", component=self)
            raise ComponentError(problem) from error
        # A document begins after the end of the one before.
        prompt, max_new_tokens = [tokenizer.end_id, *encoded], self.max_new_tokens
        if shorten:
            context = model.max_sequence_length or len(prompt) + max_new_tokens
            prompt = prompt[-max(context // 2, 1) :]
            max_new_tokens = min(max_new_tokens, context - len(prompt))
            if max_new_tokens < 1:
                return self.prompt
        was_training = model.training
        model.eval()
        try:
            with on_behalf_of(self):
                new = generate(
                    model,
                    prompt,
                    max_new_tokens=max_new_tokens,
                    temperature=self.temperature,
                    top_k=self.top_k,
                    seed=self.seed,
                    stop_id=tokenizer.end_id,
                    n_tokens=tokenizer.vocab_size,
                )
                return self.prompt + tokenizer.decode(list(new))
        finally:
            model.train(was_training)
