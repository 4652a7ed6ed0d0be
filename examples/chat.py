"""Talk to a model that thinks, behind any OpenAI-compatible server: the thought in grey, the answer below it.

    r1llama serve runs/pipeline/grpo           # of `make pipeline`
    python examples/chat.py --budget 256
    python examples/chat.py "What is 17 * 23?" --no-think

Needs `pip install openai`, which vLLM brings.
"""

import argparse
import sys

from openai import OpenAI

GREY, PLAIN = ("\033[90m", "\033[0m") if sys.stdout.isatty() else ("", "")


def reply(client: OpenAI, model: str, messages: list[dict], arguments) -> str:
    """Print thought and answer as they come; return the answer."""
    extra = {}
    if arguments.budget is not None:
        extra["thinking_token_budget"] = arguments.budget
    if arguments.think is not None:
        extra["chat_template_kwargs"] = {"enable_thinking": arguments.think}
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        stream=True,
        extra_body=extra,
    )
    answer, reason = "", None
    for chunk in stream:
        choice = chunk.choices[0]
        thought = getattr(choice.delta, "reasoning", None)  # vLLM's; not a field of OpenAI's own
        if thought:
            print(f"{GREY}{thought}{PLAIN}", end="", flush=True)
        if choice.delta.content:
            print("\n" * (not answer) + choice.delta.content, end="", flush=True)
            answer += choice.delta.content
        reason = choice.finish_reason or reason
    print("\n(cut off: --max-tokens)" if reason == "length" else "")
    return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", help="ask this alone; without it, a conversation until Ctrl-D")
    parser.add_argument("--url", default="http://localhost:8000/v1")
    parser.add_argument("--budget", type=int, help="tokens of thought; without it, the server's --thinking-budget")
    parser.add_argument("--think", action=argparse.BooleanOptionalAction, help="without it, the model decides")
    parser.add_argument("--max-tokens", type=int, help="of thought and answer")
    parser.add_argument("--temperature", type=float)
    arguments = parser.parse_args()
    client = OpenAI(base_url=arguments.url, api_key="none")
    model = client.models.list().data[0].id
    if arguments.question:
        reply(client, model, [{"role": "user", "content": arguments.question}], arguments)
        return
    messages = []
    while True:
        try:
            messages.append({"role": "user", "content": input("> ")})
        except EOFError:
            return
        messages.append({"role": "assistant", "content": reply(client, model, messages, arguments)})


if __name__ == "__main__":
    main()
