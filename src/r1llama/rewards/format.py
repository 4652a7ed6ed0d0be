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
        self.__name__ = "format_reward" if self.tags[0] == "think" else f"{self.tags[0]}_format_reward"  # as TRL logs it
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
