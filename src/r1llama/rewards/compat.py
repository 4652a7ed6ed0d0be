"""Where a reward of ours has the name of one elsewhere, this lists each deliberate difference, and why.

On well-formed input the values are the same; `tests/rewards/test_compat.py` compares them.
"""

from typing import NamedTuple


class Difference(NamedTuple):
    """`reward` in our catalogue, `source` of the other one, what ours does differently, and why."""

    reward: str
    source: str
    ours: str
    why: str


DIFFERENCES = (
    Difference("accuracy", "open-r1, TRL", "answers are read after the thoughts; thoughts never closed score 0.0",
               "there a box inside an unclosed <think> scores 1.0"),
    Difference("accuracy", "open-r1, TRL", "plain statements count (\"The answer is 42.\"), also in other languages",
               "there they score 0.0"),
    Difference("accuracy", "open-r1, TRL", "negated, hedged, retracted and contradictory answers score 0.0",
               "there \"definitely not $42$\" scores 1.0, and the last of several boxes wins"),
    Difference("accuracy", "open-r1, TRL", "arithmetic left undone (6*7) is no answer to a gold that is a number",
               "the question itself, echoed, would be right"),
    Difference("accuracy", "open-r1, TRL", "42 and 42 % differ, unless the prompt or the worked gold asks for percent",
               "there they are equal"),
    Difference("accuracy", "open-r1, TRL", "a pair (1,2) is neither the list 1,2 nor the set {1,2}",
               "math-verify calls a pair and a list the same"),
    Difference("accuracy", "open-r1", "an unreadable gold gives None", "there it scores 1.0"),
    Difference("format", "open-r1", "white space around tags is free; second blocks, nesting, text outside and blocks "
               "without a letter or digit score 0.0; a tag that the prompt opened counts",
               "there line breaks are demanded, and all of these score 1.0"),
    Difference("think_format", "TRL", "nothing may follow the block, and it may not be empty: use it for one-block "
               "formats", "there an empty block and any text after it score 1.0"),
    Difference("tag_count", "open-r1", "line breaks around tags are free; tags out of order score 0.0",
               "there reversed tags score 1.0"),
    Difference("reasoning_steps", "open-r1", "a step needs two words of its own",
               "there three empty bullets score 1.0"),
    Difference("len", "open-r1", "tokens, and per group of equal prompts; an unreadable gold gives None",
               "there characters, over the whole batch of different prompts"),
    Difference("cosine_scaled", "open-r1", "tokens, clamped at max_len; an unreadable gold gives None",
               "there characters and periodic: 2000 scores like 0"),
    Difference("repetition_penalty", "open-r1", "n-grams of tokens", "there words: text without spaces escapes"),
    Difference("code", "open-r1", "all lines are compared; each test has its own clock; runs in a local sandbox",
               "there only as many lines as the shorter text has, and one timeout ends the script"),
    Difference("xmlcount", "willccbb, tiny-r1", "never below 0.0, and trailing text costs only once it follows a tag",
               "there 2,000 trailing characters cost 3.5"),
    Difference("integer", "willccbb, tiny-r1", "1.0 instead of 0.5; -42 and 1,042 are integers, 4² is not",
               "str.isdigit decides there"),
    Difference("reasoning_format", "willccbb, tiny-r1", "1.0 instead of 0.5; reasoning may have several lines",
               "there `.` stops at line ends"),
    Difference("countdown", "TinyZero", "no powers, floor division, unary signs or decimals; \"= target\" may follow",
               "eval takes them all, and runs towers of powers without end"),
)  # fmt: skip
