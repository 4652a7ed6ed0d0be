"""What one GPU is for: low-rank adapters on a model with experts, over 32-bit, 16-bit and 4-bit weights."""

import peft
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from r1llama.training import grpo, stage

from .conftest import argv, byte_tokenizer, tiny_config, weights

CASES = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "4 bits": {"dtype": "bfloat16", "load_in_4bit": True, "use_bnb_nested_quant": True},
}
IDS = torch.arange(20).reshape(2, 10)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Latent attention, a dense layer, then experts beside a shared one; sides of 64, as 4 bits on CPUs want them."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = byte_tokenizer()
    changes = {
        "hidden_size": 64,
        "num_key_value_heads": 2,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 64,
        "v_head_dim": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
        "initializer_range": 0.1,
    }
    torch.manual_seed(0)
    R1LlamaForCausalLM(R1LlamaConfig(**tiny_config(tokenizer).to_diff_dict() | changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def trained(monkeypatch):
    """The trainer of the run, when it has ended."""
    trainers, train = [], stage.train

    def watched(trainer, *args):
        trainers.append(trainer)
        return train(trainer, *args)

    monkeypatch.setattr(stage, "train", watched)
    return trainers


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits.float()


@pytest.mark.parametrize("case", CASES)
def test_adapters_on_experts_train_and_load_and_merge(case, start, grpo_recipe, trained, tmp_path, caplog):
    if case == "4 bits":
        pytest.importorskip("bitsandbytes")
    caplog.set_level("INFO", logger="r1llama")
    changes = {"model_name_or_path": str(start), "use_peft": True, "lora_r": 2, "lora_dropout": 0.0, "max_steps": 2}
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **changes | CASES[case]))
    assert ("fused expert tensors stay bfloat16" in caplog.text) == (case == "4 bits")

    saved = weights(tmp_path / "out", "adapter_model")
    ups = [name for name in saved if "lora_B" in name]
    assert all(saved[name].any() for name in ups)
    assert any("mlp.experts" in name for name in ups)

    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    base = AutoModelForCausalLM.from_pretrained(
        start, dtype=CASES[case]["dtype"], quantization_config=quantised if case == "4 bits" else None
    )
    before = logits(base)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    after = logits(model)
    off = (after - logits(trained[0].model)).abs().amax(-1)
    if case == "float32":
        assert off.max() == 0
    assert (off < 0.05).float().mean() >= 0.9  # rounded to 16 bits, a token may go to other experts
    assert (after - before).abs().max() > 0.01
    with model.disable_adapter():
        assert_close(logits(model), before, rtol=0, atol=0.1 if case == "4 bits" else 0)

    # Merged into 32-bit weights, from which any format can be made: a model without adapters, in a directory.
    whole = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start), tmp_path / "out")
    expected = logits(whole)
    whole.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert weights(tmp_path / "merged").keys() == weights(start).keys()
    assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)


def test_all_weights_of_experts_train_in_16_bits(start, grpo_recipe, tmp_path):
    changes = {"model_name_or_path": str(start), "dtype": "bfloat16", "bf16": True, "max_steps": 2}
    grpo.main(argv(grpo_recipe, tmp_path / "r.yaml", **changes))
    before, after = weights(start), weights(tmp_path / "out")
    moved = {name for name in before if not torch.equal(before[name].bfloat16(), after[name].bfloat16())}
    assert {name for name in before if "experts" in name} <= moved
