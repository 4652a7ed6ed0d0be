"""No tensor of a model stays stale in a running engine: each is changed in turn, and the engine follows, fp32."""

import pytest
import torch

from .conftest import generate
from .models import EXPERTS, GROUPS, LATENT, MODELS, WIDE_LATENT, prompts, tiny_model

FAMILIES = {
    "latent-experts-mtp-tied": LATENT | EXPERTS | {"num_mtp_layers": 1, "tie_word_embeddings": True},
    "wide-latent-experts-groups": WIDE_LATENT | EXPERTS | GROUPS | {"q_lora_rank": 20},
    "hybrid-window-biases": MODELS["hybrid-window-yarn"] | {"attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_tensor_arrives(serve, name):
    from r1llama.serving.weights import reload

    model = tiny_model(**FAMILIES[name])
    engine = serve(model)
    weights = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]  # a trainer sends it once
    texts = prompts()[3:9:2]
    moved = {}
    before = torch.cat([model(torch.tensor([prompt])).logits[0, -1] for prompt in texts])
    for path, tensor in weights.items():
        tensor += torch.randn_like(tensor) * (0.3 if path.endswith("e_score_correction_bias") else 0.1)
        engine.collective_rpc(reload, args=(iter(weights.items()),))
        engine.reset_prefix_cache()
        after = []
        for prompt, (tokens, logprobs) in zip(texts, generate(engine, texts, new_tokens=2), strict=True):
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
            after.append(logits[0])
            expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
            torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0, msg=path)
        moved[path], before = not torch.equal(before, torch.cat(after)), torch.cat(after)
    assert {path for path in moved if not moved[path]} == {path for path in moved if path.startswith("mtp.")}
