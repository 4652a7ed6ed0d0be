"""vLLM's engine on tiny models. `make test-vllm` runs these where vLLM is not installed."""

import gc

import pytest
import torch

from r1llama.model import record_routing
from r1llama.training.routing_replay import RoutingReplayGRPOTrainer

from .models import NEW_TOKENS


@pytest.fixture(autouse=True)
def frozen():
    """vLLM collects garbage again and again as an engine starts: not among all that is there before."""
    gc.freeze()  # until an engine ends


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """`serve(model)`: an engine in this process on the saved model. It ends with the test."""
    pytest.importorskip("vllm")
    from vllm import LLM
    from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

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
    destroy_model_parallel()  # of one that did not start
    destroy_distributed_environment()


def generate(engine, prompt_ids, new_tokens=NEW_TOKENS, **arguments):
    """For each prompt, the tokens that vLLM writes and their log-probabilities."""
    return [(tokens, logprobs) for tokens, logprobs, _ in generate_cached(engine, prompt_ids, new_tokens, **arguments)]


def generate_cached(engine, prompt_ids, new_tokens=NEW_TOKENS, **arguments):
    """As `generate`, and how many tokens of the prompt were in the cache."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0, max_tokens=new_tokens, logprobs=0, detokenize=False)
    inputs = [{"prompt_token_ids": ids} for ids in prompt_ids]
    for request in engine.generate(inputs, parameters, use_tqdm=False, **arguments):
        output = request.outputs[0]
        tokens = list(output.token_ids)
        logprobs = [step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)]
        yield tokens, torch.tensor(logprobs), request.num_cached_tokens


@pytest.fixture
def replayed(monkeypatch):
    """`(mask, routing, experts)` of each generation: the tokens that are no padding, the ids that updates follow, and
    those that the model itself chooses with the weights that generated."""
    seen = []
    generate = RoutingReplayGRPOTrainer._generate_and_score_completions

    @torch.no_grad()
    def observed(self, inputs):
        output = generate(self, inputs)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        with record_routing(self.base_model) as record:
            self.base_model(torch.cat([output["prompt_ids"], output["completion_ids"]], 1), attention_mask=mask)
        seen.append((mask.bool(), output["routing"], record.ids().permute(1, 2, 0, 3)))
        return output

    monkeypatch.setattr(RoutingReplayGRPOTrainer, "_generate_and_score_completions", observed)
    return seen


def assert_follows_the_model(replayed):
    """fp32: in updates every token that was read has the experts that the model itself chooses, and no other has."""
    assert replayed
    for mask, routing, experts in replayed:
        last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
        read = (routing >= 0).all(-1).all(-1)
        assert torch.equal(read, mask & ~last)
        assert torch.equal(routing[read].sort().values.long(), experts[read].sort().values)
