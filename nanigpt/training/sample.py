"""A text that the model writes, to look at."""

from nanigpt.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from nanigpt.errors import UsageError
from nanigpt.models.decoder import Decoder
from nanigpt.models.generate import generate


class Sampler:
    """Continues a prompt.

    Args:
        prompt: the text to continue.
        max_new_tokens: upper bound of the continuation.
        temperature: divides the logits; 0 is greedy decoding.
        top_k: sample among the k likeliest tokens only; None is all.
        seed: of the random stream.
    """

    def __init__(
        self,
        *,
        prompt: str = "",
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 0,
    ):
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.seed = seed

    def run(self, model: Decoder, tokenizer: ByteTokenizer | HuggingFaceTokenizer) -> str:
        """Returns prompt and continuation. All ranks call it and get the same text.

        Raises:
            UsageError: an argument is out of range, or the text would exceed the model's context.
        """
        # A document begins after the end of the one before.
        prompt = [tokenizer.end_id, *tokenizer.encode([self.prompt])[0].tolist()]
        was_training = model.training
        model.eval()
        try:
            new = generate(
                model,
                prompt,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                seed=self.seed,
                stop_id=tokenizer.end_id,
                n_tokens=tokenizer.vocab_size,
            )
            return tokenizer.decode([*prompt[1:], *new])
        except ValueError as error:
            raise UsageError(str(error)) from error
        finally:
            model.train(was_training)
