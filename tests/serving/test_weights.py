"""New weights in a running engine: from then on it writes what transformers writes with them, fp32."""

import pytest
import torch

from .conftest import generate
from .models import EXPERTS, LATENT, MODELS, WIDE_LATENT, assert_greedy, prompts, tiny_model

FAMILIES = {
    "grouped-tied": MODELS["grouped-tied"],
    "latent-experts-tied": LATENT | EXPERTS | {"tie_word_embeddings": True},
    "wide-latent-experts": WIDE_LATENT | EXPERTS,
    "hybrid": MODELS["hybrid-window-yarn"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_reloaded_weights_are_those_of_transformers(serve, name):
    from r1llama.serving.weights import reload

    model = tiny_model(**FAMILIES[name])
    engine = serve(model)
    weights = model.state_dict()
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]  # a trainer sends it once
    torch.manual_seed(1)  # under some, two experts tie, and rounding chooses between them
    for _ in range(2):  # the second finds what the first left
        for path, tensor in weights.items():
            tensor += torch.randn_like(tensor) * (0.3 if path.endswith("e_score_correction_bias") else 0.05)
        engine.collective_rpc(reload, args=(weights.items(),))
        engine.reset_prefix_cache()
        for prompt, (tokens, logprobs) in zip(prompts(), generate(engine, prompts()), strict=True):
            assert_greedy(model, prompt, tokens, logprobs)


def test_an_unknown_weight_is_refused(serve):
    from r1llama.serving.weights import reload

    engine = serve(tiny_model())
    with pytest.raises(ValueError, match=r"model\.layers\.0\.router"):
        engine.collective_rpc(reload, args=([("model.layers.0.router", torch.zeros(1))],))
