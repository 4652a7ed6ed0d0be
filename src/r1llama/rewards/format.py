"""Rewards for the shape of a completion: the think/answer state machine and its partial-credit relatives.

Formats are read by a small state machine over tags rather than by one regular expression: a pattern with `.*?`
accepts second blocks, nesting and trailing junk (measured on open-r1 and TRL), the machine cannot.
"""

import re
from collections.abc import Sequence

from .text import Completion, aligned, completion_text, is_prefilled


def _tag_pattern(tags: Sequence[str]) -> re.Pattern[str]:
    # Near-tags (<Answer>, </ think>) are matched too, so that they can be refused instead of passing as text.
    return re.compile(r"<\s*/?\s*(?:" + "|".join(map(re.escape, tags)) + r")\s*/?\s*>", re.IGNORECASE)


def _has_content(text: str) -> bool:
    return any(character.isalnum() for character in text)


class FormatReward:
    """1.0 when a completion is exactly one filled block per tag, in order, with only white space around them.

    Args:
        tags: the blocks in their order, `("think", "answer")` or `("reasoning", "answer")`.
        prefilled: whether the chat template already opened the first tag. `None` looks at the end of each prompt,
            which shows it for rendered prompts but not for chat messages: pass True for such a template.

    Returns (when called): one float per completion, 0.0 or 1.0.
    """

    def __init__(self, tags: Sequence[str] = ("think", "answer"), prefilled: bool | None = None):
        self.tags = tuple(tags)
        self.prefilled = prefilled
        self.__name__ = (
            "format_reward" if self.tags[0] == "think" else f"{self.tags[0]}_format_reward"
        )  # as TRL logs it
        self._tag = _tag_pattern(self.tags)
        self._order = [tag for name in self.tags for tag in (f"<{name}>", f"</{name}>")]

    def is_well_formed(self, text: str, prefilled: bool = False) -> bool:
        """Tell whether `text` has the format; a prefilled completion may or may not repeat the first tag."""
        if prefilled and not text.lstrip().startswith(self._order[0]):
            text = self._order[0] + text
        if self._tag.findall(text) != self._order:
            return False
        pieces = self._tag.split(text)  # outside, block, outside, block, ..., outside
        return not any(piece.strip() for piece in pieces[0::2]) and all(map(_has_content, pieces[1::2]))

    def __call__(
        self, completions: Sequence[Completion], prompts: Sequence[Completion] | None = None, **kwargs
    ) -> list[float | None]:
        rewards: list[float | None] = []
        for completion, prompt in zip(completions, aligned(prompts, len(completions)), strict=True):
            prefilled = is_prefilled(prompt, self._order[0]) if self.prefilled is None else self.prefilled
            rewards.append(float(self.is_well_formed(completion_text(completion), prefilled)))
        return rewards


format_reward = FormatReward()
reasoning_format_reward = FormatReward(("reasoning", "answer"))
think_format_reward = FormatReward(("think",))


def _think_answer_tags(text: str, prompt: Completion | None) -> list[str]:
    tags = re.findall(r"</?(?:think|answer)>", text)
    # A prefilled tag counts as written.
    return ["<think>", *tags] if is_prefilled(prompt) and "<think>" not in tags else tags


_ORDER = ("<think>", "</think>", "<answer>", "</answer>")


def tag_count_reward(
    completions: Sequence[Completion], prompts: Sequence[Completion] | None = None, **kwargs
) -> list[float | None]:
    """A quarter for each of the four think/answer tags that occurs exactly once and after those before it.

    Source: open-r1's reward of that name, which ignores the order and wants line breaks around the tags.
    """
    rewards: list[float | None] = []
    for completion, prompt in zip(completions, aligned(prompts, len(completions)), strict=True):
        tags = _think_answer_tags(completion_text(completion), prompt)
        once = [tag for tag in _ORDER if tags.count(tag) == 1]
        in_order = [tag for tag in tags if tag in once] == once
        rewards.append(0.25 * len(once) if in_order else 0.0)
    return rewards


def tag_order_reward(
    completions: Sequence[Completion], prompts: Sequence[Completion] | None = None, **kwargs
) -> list[float | None]:
    """Partial credit for the longest right beginning: the share of the four tags met in order before the first fault.

    A fault is a tag that is repeated or out of turn. Unlike counting, this grows only by writing the format from the
    front, so it cannot be farmed with closing tags.
    """
    rewards: list[float | None] = []
    for completion, prompt in zip(completions, aligned(prompts, len(completions)), strict=True):
        tags = _think_answer_tags(completion_text(completion), prompt)
        right = 0
        while right < len(tags) and right < len(_ORDER) and tags[right] == _ORDER[right]:
            right += 1
        rewards.append(right / len(_ORDER) if len(tags) <= len(_ORDER) else 0.0)
    return rewards


def xmlcount_reward(completions: Sequence[Completion], **kwargs) -> list[float | None]:
    """An eighth for each reasoning/answer tag that occurs once on its line, less 0.001 per character after the last.

    Source: the reward of that name in willccbb's GRPO demo, and tiny-r1's. Ours is never below 0: there, 2,000
    trailing characters cost 3.5.
    """
    rewards: list[float | None] = []
    for completion in completions:
        text = completion_text(completion)
        score = 0.125 * (text.count("<reasoning>\n") == 1) + 0.125 * (text.count("\n</reasoning>\n") == 1)
        if text.count("\n<answer>\n") == 1:
            score += 0.125
            score -= 0.001 * len(text.split("\n</answer>\n")[-1]) if "\n</answer>\n" in text else 0.0
        if text.count("\n</answer>") == 1:
            score += 0.125
            score -= 0.001 * max(0, len(text.split("\n</answer>")[-1]) - 1)
        rewards.append(max(0.0, score))
    return rewards


_STEP = re.compile(
    r"^[ \t]*(?:Step\s+\d+\s*[:.]|\d+[.)]|[-*])[ \t]*(?P<list>[^\n]*)$"
    r"|\b(?:First|Second|Third|Next|Then|Finally),(?P<word>[^\n.]*)",
    re.MULTILINE,
)


def reasoning_steps_reward(completions: Sequence[Completion], **kwargs) -> list[float | None]:
    """A third for each distinct step ("Step 1: ...", "2. ...", "- ...", "First, ..."), at most 1.0.

    Source: open-r1's reward of that name. Here a step must say something (two words that other steps do not repeat):
    three empty bullets are no reasoning.
    """
    rewards: list[float | None] = []
    for completion in completions:
        steps = set()
        for match in _STEP.finditer(completion_text(completion)):
            said = (match["list"] or match["word"] or "").strip().lower()
            if len(re.findall(r"\w+", said)) >= 2 and not _STEP.match(said.capitalize()):
                steps.add(said)
        rewards.append(min(1.0, len(steps) / 3))
    return rewards
