"""Greedy text of vLLM and of transformers: tiny models of every architecture, 16 prompts, 64 tokens each, fp32.

The weights are random and wide, so that a wrong mask, position or route moves the logits and soon the text.
"""

import tempfile

import torch
from tests.serving.models import MODELS, NEW_TOKENS, prompts, tiny_model

from benchmarks.architecture.measure import Row
from benchmarks.serving.engine import engine, write

QUICK = ("grouped-tied", "latent", "everything")


@torch.no_grad()
def greedy(model, prompt):
    """The tokens that transformers writes, and their log-probabilities."""
    output = model.generate(
        torch.tensor([prompt], device=model.device),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = output.sequences[0, len(prompt) :]
    logprobs = torch.cat(output.logits).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    return tokens.tolist(), logprobs.cpu()


def rows(quick: bool, device: str):
    for name in QUICK if quick else MODELS:
        model = tiny_model(**MODELS[name])
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            with engine(
                folder,
                dtype="float32",
                max_model_len=160,
                max_num_seqs=16,
                kv_cache_memory_bytes=64 << 20,
            ) as llm:
                served = write(llm, prompts(), NEW_TOKENS, logprobs=True)
        model.to(device)
        same, difference = 0, 0.0
        for prompt, tokens, logprobs in zip(prompts(), *served, strict=True):
            expected_tokens, expected = greedy(model, prompt)
            pairs = zip(tokens, expected_tokens, strict=True)
            until = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), NEW_TOKENS)
            same += until == NEW_TOKENS  # of two texts that part, what comes after has other reasons
            errors = (torch.tensor(logprobs[:until]) - expected[:until]).abs()
            difference = max([difference, *errors.tolist()])
        yield Row(
            f"greedy text, {name}",
            "transformers",
            same,
            len(prompts()),
            unit=f"of {len(prompts())} texts equal over {NEW_TOKENS} tokens",
            note="latent cache" if model.config.kv_lora_rank else "",
            error=difference,
        )
