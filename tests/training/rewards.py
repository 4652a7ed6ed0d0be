"""Rewards that even a random model earns differently for different completions, so that gradients are not zero."""

from r1llama.rewards.text import completion_text


def letter_share(completions, **kwargs):
    """Share of ASCII letters in each completion."""
    texts = map(completion_text, completions)
    return [sum(char.isascii() and char.isalpha() for char in text) / max(len(text), 1) for text in texts]


def needs_level(completions, level, **kwargs):
    """Asks for a dataset column that our tests' data lack."""
    return [0.0] * len(completions)


def unjudged(completions, **kwargs):
    """None: cannot be judged."""
    return [None] * len(completions)


def half_flat(prompts, completions, **kwargs):
    """`letter_share` for prompts of an odd number of characters; 0.3 for the others: nothing to compare."""
    shares = letter_share(completions)
    return [share if len(prompt) % 2 else 0.3 for prompt, share in zip(prompts, shares, strict=True)]


def broken(completions, **kwargs):
    raise ZeroDivisionError


def flat(completions, **kwargs):
    return [0.3] * len(completions)


def has_digit(completions, **kwargs):
    """1 with a digit, None without a letter, else 0."""
    known = [any(char.isascii() and char.isalnum() for char in text) for text in completions]
    return [
        float(any(char in "0123456789" for char in text)) if judged else None
        for text, judged in zip(completions, known, strict=True)
    ]
