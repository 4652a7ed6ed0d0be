"""`import r1llama` is light, and is enough for the Auto classes in any order; a saved model loads without it."""

import os
import subprocess
import sys

import pytest
import torch

from .model.conftest import ATTENTION, MLP, ROPE, tiny_model, tokens


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rewards_load_no_torch():
    run("import sys, r1llama.rewards; assert not {'torch', 'transformers', 'trl', 'sympy'} & set(sys.modules)")


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import PreTrainedModel",
        "from transformers import Trainer",
        "from transformers.cache_utils import DynamicCache",
        "from transformers.models.auto.modeling_auto import AutoModel",
        "from trl import GRPOTrainer",
        "from peft import LoraConfig",
        "from r1llama.model.configuration import R1LlamaConfig",
        "from r1llama.evaluation.accuracy import evaluate",
        "from r1llama.training import RouterBalancing",
        "from r1llama.model import update_router_bias",
    ],
)
def test_any_first_import(first):
    """Whatever pulls transformers in, and however far it is loaded by then."""
    code = "from transformers import AutoConfig; assert AutoConfig.for_model('r1llama').kv_lora_rank is None"
    run(f"import r1llama; {first}; {code}")


@pytest.mark.parametrize(
    "imports",
    [
        "import r1llama; from transformers import AutoConfig, AutoModelForCausalLM",
        "from transformers import AutoConfig, AutoModelForCausalLM; import r1llama",
        "import r1llama; from transformers import AutoModelForCausalLM, AutoConfig",
        "from transformers import AutoConfig; import r1llama; from transformers import AutoModelForCausalLM",
        "import transformers, r1llama; from transformers import AutoTokenizer, AutoConfig, AutoModelForCausalLM",
    ],
)
def test_any_order_of_imports(imports, tmp_path):
    tiny_model(**ATTENTION["latent"]).save_pretrained(tmp_path)
    code = """
import sys
config = AutoConfig.from_pretrained(sys.argv[1])
assert type(config).__module__ == "r1llama.model.configuration", type(config)
assert type(AutoModelForCausalLM.from_pretrained(sys.argv[1])) is r1llama.R1LlamaForCausalLM
"""
    run(f"{imports}\n{code}", tmp_path)


def test_saved_model_loads_without_r1llama(tmp_path):
    model = tiny_model(**ATTENTION["latent+linear"], **MLP["experts"], **ROPE["yarn"])
    model.save_pretrained(tmp_path)
    ids = tokens(2, 17)
    torch.save({"ids": ids, "logits": model(ids).logits.detach()}, tmp_path / "expected.pt")
    code = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
expected = torch.load(sys.argv[1] + "/expected.pt")
assert "r1llama" not in sys.modules
assert torch.equal(model(expected["ids"]).logits, expected["logits"])
model.generate(expected["ids"], max_new_tokens=3)
"""
    run(code, tmp_path)


def test_every_head_is_registered():
    code = """
import r1llama, transformers
config = r1llama.R1LlamaConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
for name in ("", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification"):
    auto = getattr(transformers, "AutoModel" + name)
    expected = getattr(r1llama, "R1Llama" + (name or "Model"))
    assert type(auto.from_config(config)) is expected
"""
    run(code)
