"""The expert ids that vLLM returns are those of the model, token by token, fp32."""

import pytest
import torch

from r1llama.model import record_routing

from .models import MODELS, prompts, tiny_model


def routed(engine, prompt_ids, new_tokens=16):
    """For each prompt: all its tokens and the completion's, the ids that vLLM returns, and how many tokens of the
    prompt it had in its cache."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0, max_tokens=new_tokens, detokenize=False)
    inputs = [{"prompt_token_ids": ids} for ids in prompt_ids]
    for output in engine.generate(inputs, parameters, use_tqdm=False):
        completion = output.outputs[0]
        yield output.prompt_token_ids + list(completion.token_ids), completion.routed_experts, output.num_cached_tokens


@torch.no_grad()
def assert_those_of(model, served):
    first = model.config.first_k_dense_replace
    for tokens, ids, _ in served:
        with record_routing(model) as record:
            model(torch.tensor([tokens[:-1]]))
        expected = record.ids()[:, 0].transpose(0, 1)
        assert ids.shape == (len(tokens) - 1, model.config.num_hidden_layers, model.config.num_experts_per_tok)
        ids = torch.from_numpy(ids[:, first:].astype("int64"))
        assert torch.equal(ids.sort().values, expected.sort().values)


@pytest.mark.parametrize("name", ["experts-groups", "experts-softmax", "latent-experts-mtp"])
def test_ids_are_those_of_the_model(serve, name):
    model = tiny_model(**MODELS[name])
    engine = serve(model, enable_return_routed_experts=True, block_size=32)
    ids = prompts()  # longer ones come in chunks
    assert_those_of(model, routed(engine, ids))
    longer = [ids[-1] + [3, 5], ids[-1] + [7], ids[-1]]
    assert_those_of(model, served := list(routed(engine, longer)))
    assert max(cached for *_, cached in served) == 64  # two whole blocks
    engine.reset_prefix_cache()
    assert_those_of(model, routed(engine, longer))


def test_a_text_that_was_put_back_keeps_its_ids(serve):
    model = tiny_model(**MODELS["experts"])
    engine = serve(model, enable_return_routed_experts=True, block_size=32, kv_cache_memory_bytes=300 << 10)
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    preempted = []
    preempt = scheduler._preempt_request
    scheduler._preempt_request = lambda *args, **kwargs: preempted.append(args) or preempt(*args, **kwargs)
    assert_those_of(model, routed(engine, prompts()[-6:], new_tokens=60))
    assert preempted


def test_linear_attention_is_refused(serve):
    with pytest.raises(ValueError, match="this model has none"):
        serve(tiny_model(**MODELS["linear-experts"]), enable_return_routed_experts=True)
