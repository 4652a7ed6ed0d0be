"""Tiny models, and vLLM's engine on them. `make test-vllm` runs these where vLLM is not installed."""

import gc

import pytest
import torch

from r1llama import R1LlamaConfig, R1LlamaForCausalLM

BASE = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,  # wide enough for a wrong mask to move the logits
}
PROMPT_LENGTHS = (1, 2, 3, 5, 7, 9, 12, 15, 17, 20, 25, 31, 40, 50, 64, 90)
NEW_TOKENS = 32


def tiny_model(**switches):
    torch.manual_seed(0)
    model = R1LlamaForCausalLM(R1LlamaConfig(**BASE | switches))
    for name, buffer in model.named_buffers():  # a trained router
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.1)
    return model.eval()


def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, BASE["vocab_size"], (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


@torch.no_grad()
def greedy(model, prompt):
    """The tokens that transformers writes, and their log-probabilities."""
    output = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = output.sequences[0, len(prompt) :]
    logprobs = torch.cat(output.logits).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    return tokens.tolist(), logprobs


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """`serve(model)`: an engine in this process on the saved model. It ends with the test."""
    pytest.importorskip("vllm")
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    engines = []

    def start(model, **arguments):
        model.save_pretrained(tmp_path)
        arguments = {
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_memory_bytes": 64 << 20,
            "max_num_seqs": 6,  # fewer than prompts: memories are used again, by texts of other lengths
            "max_num_batched_tokens": 32,
            "enable_chunked_prefill": True,
            "max_model_len": 160,
            "skip_tokenizer_init": True,
        } | arguments
        engines.append(LLM(str(tmp_path), **arguments))
        return engines[-1]

    yield start
    for engine in engines:
        engine.llm_engine.engine_core.shutdown()
    engines.clear()
    gc.collect()
    cleanup_dist_env_and_memory()


def generate(engine, prompt_ids, **arguments):
    """The tokens that vLLM writes for each prompt, and their log-probabilities."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=0, detokenize=False)
    inputs = [{"prompt_token_ids": ids} for ids in prompt_ids]
    outputs = engine.generate(inputs, parameters, use_tqdm=False, **arguments)
    for output in (output.outputs[0] for output in outputs):
        tokens = list(output.token_ids)
        logprobs = [step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)]
        yield tokens, torch.tensor(logprobs)
