"""Thoughts in vLLM's server: told apart from the answer, and held to a budget where a request names none.

[`ThinkParser`] is vLLM's reasoning parser `r1llama`. It differs from `deepseek_r1` where a chat template leaves it to
the model whether to think: an answer without a thought is an answer, and the thoughts of earlier turns, which our
templates keep, do not end the thought of this one.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from functools import cached_property

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser

BUDGET = "R1LLAMA_THINKING_BUDGET"  # environment variable: tokens


class ThinkParser(BaseThinkingReasoningParser):
    """`<think>` and `</think>` are one token each. Where the prompt ends decides how a completion is read:

    - in an open thought: it begins with the thought, up to `</think>` or, cut short, to its end;
    - right after a closed one: all of it is the answer;
    - elsewhere: a thought is what stands between the tags, if the model writes them.
    """

    start_token = "<think>"
    end_token = "</think>"
    tags = (start_token, end_token)

    def __init__(self, tokenizer, *args, chat_template_kwargs: dict | None = None, **kwargs):
        super().__init__(tokenizer, *args, **kwargs)
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.special_ids = set(tokenizer.all_special_ids)
        self.has_ended: bool | None = None  # whether the streamed text holds the end; None: nothing was streamed

    @cached_property
    def is_open(self) -> bool | None:
        """Whether the prompt ends in an open thought, or after a closed one; None for neither. By the chat template,
        until the prompt itself is seen."""
        messages = [{"role": "user", "content": "?"}]
        template = getattr(self.model_tokenizer, "chat_template", None)
        if not template:
            return None
        keywords = self.chat_template_kwargs | {"add_generation_prompt": True, "tokenize": False}
        prompt = self.model_tokenizer.apply_chat_template(messages, **keywords)
        return self.end_of(self.model_tokenizer.encode(prompt, add_special_tokens=False))

    def end_of(self, prompt_ids: Sequence[int]) -> bool | None:
        """As `is_open`, of this prompt: what counts is the last tag of the turn under way."""
        for token in reversed(prompt_ids):
            if token == self.start_token_id:
                return True
            if token == self.end_token_id:
                return False
            if token in self.special_ids:
                break
        return None

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        self.is_open = self.end_of(input_ids)  # the server asks before it parses
        return self.is_open is False

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids) -> bool:
        # The text may lag behind the tokens, where it is held back for a stop string
        return self.end_token_id in delta_ids if self.has_ended is None else self.has_ended

    def adjust_initial_state_from_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        self.is_open = self.end_of(prompt_token_ids)

    def split(self, text: str) -> tuple[str, str]:
        """The thought and the answer."""
        if self.is_open is False:
            return "", text
        if self.is_open:
            thought, _, answer = text.removeprefix(self.start_token).partition(self.end_token)
            return thought, answer
        before, start, after = text.partition(self.start_token)
        if before.isspace():
            before = ""
        if not start or self.end_token in before:
            return "", before + start + after
        thought, _, answer = after.partition(self.end_token)
        return thought, before + answer

    def extract_reasoning(self, model_output, request):
        thought, answer = self.split(model_output)
        return thought or None, answer or None

    def extract_reasoning_streaming(
        self, previous_text, current_text, delta_text, previous_token_ids, current_token_ids, delta_token_ids
    ):
        self.has_ended = self.end_token in current_text
        before, now = (self.split(text.removesuffix(self.held_back(text))) for text in (previous_text, current_text))
        thought, answer = now[0][len(before[0]) :], now[1][len(before[1]) :]
        return DeltaMessage(reasoning=thought or None, content=answer or None) if thought or answer else None

    def held_back(self, text: str) -> str:
        """The end of a text that may become a tag."""
        start = text.rfind("<")
        if start < 0 or self.end_token in text:
            return ""
        end = text[start:]
        return end if end != self.start_token and any(tag.startswith(end) for tag in self.tags) else ""

    def get_streaming_fallback_content(self, text: str, request) -> str:
        """What is still held back where the completion ends."""
        return "" if self.split(text)[0] else self.held_back(text)

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        ids = list(token_ids)
        if self.is_open and self.start_token_id not in ids[:1]:
            ids.insert(0, self.start_token_id)
        return super().count_reasoning_tokens(ids)


class ThinkingBudget:
    """ASGI middleware: chat and text completions that do not say `thinking_token_budget` get that of `BUDGET`."""

    def __init__(self, app):
        self.app = app
        self.budget = int(os.environ[BUDGET])

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/completions"):
            receive = await self.with_budget(receive)
        await self.app(scope, receive, send)

    async def with_budget(self, receive):
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        with contextlib.suppress(ValueError, TypeError):  # no JSON object: the server says so
            body = json.dumps({"thinking_token_budget": self.budget} | json.loads(body)).encode()
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def again():
            return waiting.pop() if waiting else await receive()

        return again
