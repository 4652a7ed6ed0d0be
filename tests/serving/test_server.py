"""`r1llama serve` as users run it: a process, spoken to over HTTP."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.data.chat import template_path
from tests.training.conftest import byte_tokenizer

pytest.importorskip("vllm")

from r1llama.serving.server import ServeError, main

from .server import Server

SUM = ("1+1?", "<think>\none and one\n</think>\n\n2")
COUNT = ("count", "<think>\n" + "tick " * 6 + "</think>\n\ndone")
PLAIN = ("hi", "hello")
BUDGET = 20  # more than one thought takes, less than the other
TURNS = [(turn, think) for turn in (SUM, COUNT) for think in (None, True, False)] + [(PLAIN, None), (PLAIN, False)]


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A saved model that has learned three answers by heart."""
    folder = tmp_path_factory.mktemp("talker")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template_path("r1llama").read_text()
    rows = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}],
            enable_thinking=think,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        for (ask, answer), think in TURNS
    ]
    length = max(len(row["input_ids"]) for row in rows)
    ids, learned = (
        torch.tensor([row[name] + [0] * (length - len(row[name])) for row in rows])
        for name in ("input_ids", "assistant_masks")
    )
    torch.manual_seed(0)
    config = R1LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    model = R1LlamaForCausalLM(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    for _ in range(200):
        loss = model(input_ids=ids, labels=ids.masked_fill(learned == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(talker, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with Server(talker, log, "--thinking-budget", str(BUDGET)) as server:
        yield server.wait()


def ask(server, talker, question, **fields):
    fields = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 60} | fields
    choice = server.post("/v1/chat/completions", model=str(talker), **fields)["choices"][0]
    return choice["message"]["reasoning"], choice["message"]["content"]


def thinking(think):
    return {"chat_template_kwargs": {"enable_thinking": think}}


def test_the_thought_comes_apart_from_the_answer(server, talker):
    assert [model["id"] for model in server.get("/v1/models")["data"]] == [str(talker)]
    assert ask(server, talker, SUM[0]) == ("\none and one\n", "\n\n2")
    assert ask(server, talker, SUM[0], **thinking(True)) == ("one and one\n", "\n\n2")
    assert ask(server, talker, SUM[0], **thinking(False)) == (None, "2")
    assert ask(server, talker, PLAIN[0]) == (None, "hello")
    assert ask(server, talker, SUM[0], max_tokens=5) == ("\none", None)  # cut short
    assert "float32" in server.log.read_text()


def test_the_budget_closes_the_thought(server, talker):
    for budget in (0, 1, 7):
        for fields in ({}, thinking(True)):
            thought, answer = ask(server, talker, COUNT[0], thinking_token_budget=budget, **fields)
            assert len(thought or "") <= budget  # one token a byte
            assert answer
    assert len(ask(server, talker, COUNT[0])[0]) == BUDGET
    assert len(ask(server, talker, COUNT[0], thinking_token_budget=None)[0]) == len("\n" + "tick " * 6)


def test_the_example_client_streams(server):
    command = [sys.executable, str(Path(__file__).parents[2] / "examples" / "chat.py"), "--url", f"{server.url}/v1"]
    run = subprocess.run([*command, SUM[0]], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout == "\none and one\n\n\n\n2\n"
    run = subprocess.run(
        [*command, "--no-think"], input="hi\n1+1?\n", capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.startswith("> \nhello\n> \n")


def test_refusals_come_before_the_engine(tmp_path, talker, monkeypatch):
    def refusal(*argv):
        with pytest.raises(ServeError) as error:
            main([*map(str, argv)])
        return str(error.value)

    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "0")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    assert "no model" in refusal()
    assert "does not exist" in refusal("./nowhere")
    (tmp_path / "adapter").mkdir()
    assert "no config.json" in refusal(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "BASE"}')
    assert "r1llama serve BASE --enable-lora" in refusal(tmp_path / "adapter")
    assert "must not be negative" in refusal(talker, "--thinking-budget", -1)
    assert "too little memory" in refusal(talker, "--kv-cache-memory-bytes", 2**50)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port} is in use" in refusal(talker, "--host", "127.0.0.1", "--port", port)
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    assert "VLLM_PLUGINS=another keeps r1llama's plugin out" in refusal(talker)
    monkeypatch.setattr("vllm.__version__", "0.33.0")
    assert "this is vLLM 0.33.0" in refusal(talker)


def test_budgets_need_the_tags(tmp_path, talker, monkeypatch):
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "0")
    from transformers import PreTrainedTokenizerFast

    plain = byte_tokenizer().backend_tokenizer
    for path in Path(talker).iterdir():
        if "token" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    vocabulary = plain.to_str().replace("<think>", "<other>")
    PreTrainedTokenizerFast(
        tokenizer_object=type(plain).from_str(vocabulary), eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(tmp_path)
    with pytest.raises(ServeError, match="lacks them"):
        main([str(tmp_path), "--thinking-budget", "5"])
