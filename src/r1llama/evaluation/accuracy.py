"""pass@1: answer every problem once and grade the answers with the rewards that train the model.

- `evaluate`: model, tokenizer and problems in, `Result` out
- `wilson_interval`: the 95 % interval of a share
"""

import math
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1llama.generation.completions import complete
from r1llama.rewards import accuracy_reward, format_reward

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


@dataclass
class Result:
    """What `evaluate` found. Shares are between 0 and 1."""

    problems: int
    accuracy: float
    interval: tuple[float, float]  # 95 % Wilson interval of the accuracy
    format_rate: float
    tokens_per_answer: float  # mean length of a completion, end of text included
    truncation_rate: float  # share of the completions cut off at `max_new_tokens`
    completions: list[str]


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927): sensible even at 0 or all successes.

    Raises:
        ValueError: no trials, or `successes` outside 0 to `trials`.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: no share")
    share, z2 = successes / trials, Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[dict],
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int = 64,
) -> Result:
    """Answer every problem once.

    Args:
        model: any causal language model; left in the mode (training or not) that it came in.
        tokenizer: its tokenizer.
        problems: rows with `prompt`, a text or a list of chat messages, and `solution`.
        max_new_tokens: where an answer is cut off.
        temperature: of the sampling, from the whole distribution; 0 is greedy. Sampling draws from torch's global
            generator: seed it for a repeatable result.
        batch_size: problems a batch.

    Raises:
        ValueError: no problems.
    """
    if not problems:
        raise ValueError("no problems to evaluate on")
    prompts = [problem["prompt"] for problem in problems]
    answers = []
    for start in range(0, len(prompts), batch_size):
        answers += complete(model, tokenizer, prompts[start : start + batch_size], max_new_tokens, temperature)
    completions = [answer.text for answer in answers]

    solutions = [problem["solution"] for problem in problems]
    graded = accuracy_reward(completions=completions, solution=solutions, prompts=prompts)
    correct = sum(reward == 1.0 for reward in graded)
    formatted = sum(reward == 1.0 for reward in format_reward(completions=completions, prompts=prompts))
    return Result(
        problems=len(problems),
        accuracy=correct / len(problems),
        interval=wilson_interval(correct, len(problems)),
        format_rate=formatted / len(problems),
        tokens_per_answer=sum(len(answer.ids) for answer in answers) / len(problems),
        truncation_rate=sum(answer.truncated for answer in answers) / len(problems),
        completions=completions,
    )
