"""pass@1: answer every problem once and grade the answers with the rewards that train the model.

- `evaluate`: model, tokenizer and problems in, `Result` out
- `wilson_interval`: the 95 % interval of a share
"""

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


@torch.no_grad()
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
    decoding = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    )
    stops = model.generation_config.eos_token_id
    stops = torch.tensor(tokenizer.eos_token_id if stops is None else stops, device=model.device).reshape(-1)

    was_training = model.training
    model.eval()
    completions, tokens, truncated = [], 0, 0
    for start in range(0, len(prompts), batch_size):
        batch = _tokenize(tokenizer, prompts[start : start + batch_size]).to(model.device)
        output = model.generate(
            **batch, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, use_cache=True, **decoding
        )
        ids_BT = output[:, batch["input_ids"].shape[1] :]
        stopped_BT = torch.isin(ids_BT, stops)
        # Tokens up to the first stop, the stop included; padding follows it.
        length_B = (stopped_BT.cumsum(1) - stopped_BT.long() == 0).sum(1)
        tokens += int(length_B.sum())
        truncated += int((~stopped_BT.any(1)).sum())
        answers = [ids[:length] for ids, length in zip(ids_BT, length_B.tolist(), strict=True)]
        completions += tokenizer.batch_decode(answers, skip_special_tokens=True)
    model.train(was_training)

    solutions = [problem["solution"] for problem in problems]
    graded = accuracy_reward(completions=completions, solution=solutions, prompts=prompts)
    correct = sum(reward == 1.0 for reward in graded)
    formatted = sum(reward == 1.0 for reward in format_reward(completions=completions, prompts=prompts))
    return Result(
        problems=len(problems),
        accuracy=correct / len(problems),
        interval=wilson_interval(correct, len(problems)),
        format_rate=formatted / len(problems),
        tokens_per_answer=tokens / len(problems),
        truncation_rate=truncated / len(problems),
        completions=completions,
    )


def _tokenize(tokenizer, prompts):
    if isinstance(prompts[0], str):
        return tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    texts = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts]
    return tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
