"""vLLM, with no more than the plugin, writes what transformers writes: the real engine on tiny models, fp32."""

import json
import logging
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from r1llama import serving
from r1llama.model import lora_targets

from .conftest import generate, generate_cached
from .models import EXPERTS, LATENT, LINEAR, MODELS, NEW_TOKENS, assert_greedy, prompts, tiny_model

EXPANDED = {"hf_overrides": {"is_expanded": True}}  # as vLLM is told where no backend takes latents


@pytest.mark.parametrize("name", MODELS)
def test_text_is_that_of_transformers(serve, name):
    model = tiny_model(**MODELS[name])
    engine = serve(model)
    for prompt, (tokens, logprobs) in zip(prompts(), generate(engine, prompts()), strict=True):
        assert len(tokens) == NEW_TOKENS
        assert_greedy(model, prompt, tokens, logprobs)

    config, settings = model.config, engine.llm_engine.vllm_config
    assert settings.scheduler_config.enable_chunked_prefill
    assert settings.cache_config.enable_prefix_caching == (LINEAR not in config.layer_types)
    if config.kv_lora_rank and LINEAR not in config.layer_types:
        width = config.kv_lora_rank + config.qk_rope_head_dim
        (cache,) = {tuple(cache.shape[1:]) for cache in engine.apply_model(latent_caches)[0]}
        assert cache == (settings.cache_config.block_size, width)
    runners = engine.apply_model(fused_experts)[0]
    assert runners == (config.num_hidden_layers - config.first_k_dense_replace if config.num_experts else 0)


def latent_caches(model):
    return [layer.self_attn.kv_cache for layer in model.model.layers]


def fused_experts(model):
    from vllm.model_executor.layers.fused_moe import MoERunner

    return sum(isinstance(module, MoERunner) for module in model.modules())


def test_keys_and_values_of_latents_are_cached_expanded(serve):
    model = tiny_model(**MODELS["latent-yarn"])
    engine = serve(model, **EXPANDED)
    for prompt, (tokens, logprobs) in zip(prompts(), generate(engine, prompts()), strict=True):
        assert_greedy(model, prompt, tokens, logprobs)


@torch.no_grad()
def test_bf16_latents_are_as_close_as_in_transformers(serve):
    model = tiny_model(**MODELS["latent"] | {"initializer_range": 0.05})
    engine = serve(model, dtype="bfloat16")
    rounded = tiny_model(**MODELS["latent"] | {"initializer_range": 0.05}).bfloat16()
    ours, theirs = [], []
    for prompt, (tokens, logprobs) in zip(prompts(), generate(engine, prompts()), strict=True):
        ids, chosen = torch.tensor([prompt + tokens]), torch.tensor(tokens)[:, None]
        exact, peer = (
            m(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1).gather(1, chosen)[:, 0]
            for m in (model, rounded)
        )
        ours.append(logprobs - exact)
        theirs.append(peer - exact)
    assert torch.cat(ours).abs().mean() < 1.2 * torch.cat(theirs).abs().mean()


@pytest.mark.parametrize("name", ["grouped", "latent-yarn", "wide-latent-experts"])
def test_a_prefix_is_read_from_the_cache(serve, name):
    """Texts of a group share their prompt, and so do those with other ends."""
    model = tiny_model(**MODELS[name])
    engine = serve(model, max_num_batched_tokens=64)
    shared = prompts()[-1][:70]
    group = [shared + prompt for prompt in prompts()[-6:-1]]
    for expected_cached, batch in ((0, group[:1]), (64, group), (64, group[::-1])):
        outputs = generate_cached(engine, batch, new_tokens=8)
        for prompt, (tokens, logprobs, cached) in zip(batch, outputs, strict=True):
            assert_greedy(model, prompt, tokens, logprobs)
            assert cached >= expected_cached


def config_off_cpu(folder, monkeypatch, **arguments):
    """What vLLM is told where the device is no CPU, as far as it goes without one."""
    from vllm.engine.arg_utils import EngineArgs

    from r1llama.serving import architectures

    monkeypatch.setattr(architectures, "current_platform", types.SimpleNamespace(is_cpu=lambda: False))
    return EngineArgs(str(folder), skip_tokenizer_init=True, max_model_len=160, **arguments).create_engine_config()


@pytest.mark.parametrize("name", ["latent", "wide-latent"])
@pytest.mark.parametrize("arguments", [{}, {"dtype": "float32"}, {"enable_lora": True}])
def test_off_the_cpu_latents_are_cached_where_a_backend_takes_them(tmp_path, monkeypatch, name, arguments):
    pytest.importorskip("vllm")
    model = tiny_model(**MODELS[name])
    model.save_pretrained(tmp_path)
    config = config_off_cpu(tmp_path, monkeypatch, **{"dtype": "bfloat16"} | arguments).model_config
    rank, rope, nope = (getattr(model.config, key) for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"))
    assert config.use_mla == (not arguments)
    assert config.get_head_size() == (nope + rope if arguments else rank + rope)
    assert config.get_total_num_kv_heads() == (2 if arguments else 1)


def test_cuda_graphs_are_split_at_linear_attention():
    pytest.importorskip("vllm")
    from vllm.config import CompilationConfig
    from vllm.config.compilation import CompilationMode, CUDAGraphMode

    from r1llama.serving.architectures import split_graphs

    compilation = CompilationConfig(mode=CompilationMode.VLLM_COMPILE, cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE)
    split_graphs(compilation)
    compilation.set_splitting_ops_for_v1(all2all_backend="naive", data_parallel_size=1)
    assert compilation.cudagraph_mode == CUDAGraphMode.PIECEWISE
    assert compilation.splitting_ops_contain_attention()
    assert "vllm::r1llama_linear_attention" in compilation.splitting_ops
    assert "vllm::r1llama_linear_attention" not in CompilationConfig._attention_ops


@pytest.mark.parametrize("name", ["latent", "hybrid"])
def test_an_adapter_is_what_it_is_merged(serve, tmp_path, name):
    """Texts of two adapters, side by side."""
    from vllm.lora.request import LoRARequest

    engine = serve(tiny_model(**MODELS[name]), enable_lora=True, max_lora_rank=8, max_loras=2)
    merged, requests = [], []
    for i in range(2):
        model, adapter, folder = tiny_model(**MODELS[name]), {}, tmp_path / str(i)
        torch.manual_seed(i)
        targets = set(lora_targets(model.config)["target_modules"])
        for path, layer in model.named_modules():
            if path.split(".")[-1] in targets:
                a, b = torch.randn(4, layer.in_features) * 0.1, torch.randn(layer.out_features, 4) * 0.1
                layer.weight.data += 2 * b @ a
                adapter |= {f"base_model.model.{path}.lora_A.weight": a, f"base_model.model.{path}.lora_B.weight": b}
        folder.mkdir()
        save_file(adapter, folder / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": sorted(targets), "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        merged.append(model)
        requests.append(LoRARequest(f"adapter {i}", i + 1, str(folder)))

    chosen = [i % 3 // 2 for i in range(len(prompts()))]
    outputs = generate(engine, prompts(), lora_request=[requests[i] for i in chosen])
    for prompt, i, (tokens, logprobs) in zip(prompts(), chosen, outputs, strict=True):
        assert_greedy(merged[i], prompt, tokens, logprobs)


def test_texts_that_do_not_fit_together_wait(serve):
    """Little memory: vLLM drops texts midway and begins them again."""
    model = tiny_model(**MODELS["everything"])
    engine = serve(model, kv_cache_memory_bytes=300_000, block_size=32, max_num_seqs=16)
    for prompt, (tokens, logprobs) in zip(prompts(), generate(engine, prompts()), strict=True):
        assert_greedy(model, prompt, tokens, logprobs)


@pytest.mark.parametrize(("name", "gathered"), [("latent", 1 << 19), ("latent", 1 << 12), ("wide-latent", 1 << 19)])
def test_texts_that_begin_alike_are_read_together(serve, monkeypatch, name, gathered):
    """Groups of one prompt, as in GRPO, prompts with a common beginning, and one that stands alone."""
    from r1llama.serving import beginnings, latent

    monkeypatch.setattr(beginnings, "WORTH_SHARING", 1)
    monkeypatch.setattr(latent, "GATHERED", gathered)
    model = tiny_model(**MODELS[name])
    engine = serve(model, max_num_seqs=16)
    long, short, other = prompts()[-1], prompts()[-4], prompts()[-2]
    texts = [long] * 3 + [long[::-1]] * 3 + [[*long[:40], 7, 8], [*long[::-1][:33], 7], short, short, other]
    for _ in range(2):  # the second time all of it is in the cache
        for prompt, (tokens, logprobs) in zip(texts, generate(engine, texts), strict=True):
            assert_greedy(model, prompt, tokens, logprobs)


def test_trainers_find_their_own_class(serve):
    from transformers import AutoModel

    from r1llama import R1LlamaModel

    model = tiny_model()
    serve(model)
    assert type(AutoModel.from_config(model.config)) is R1LlamaModel
    assert not hasattr(R1LlamaModel, "do_not_compile")


@pytest.mark.parametrize(
    ("switches", "arguments", "reason"),
    [
        (
            LATENT | {"qk_nope_head_dim": 6, "qk_rope_head_dim": 4},
            EXPANDED,
            r"a head of 10 channels.*qk_nope_head_dim",
        ),
        (LATENT, {"kv_cache_dtype": "fp8"}, "cached in the dtype of the model"),
        ({"num_attention_heads": 4, "head_dim": 16}, {}, r"a head of 16 channels.*head_dim"),
        (EXPERTS | {"hidden_act": "gelu"}, {}, "hidden_act"),
        (EXPERTS, {"enable_lora": True}, "merge the adapter"),
        ({"layer_types": [LINEAR] * 3}, {"tensor_parallel_size": 2}, "one device"),
    ],
)
def test_what_cannot_be_served_is_refused_before_it_loads(serve, switches, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        serve(tiny_model(**switches), **arguments)


def test_other_heads_are_refused(serve):
    from r1llama import R1LlamaForSequenceClassification

    with pytest.raises(ValueError, match="vLLM serves R1LlamaForCausalLM; this is R1LlamaForSequenceClassification"):
        serve(R1LlamaForSequenceClassification(tiny_model().config))


@pytest.mark.parametrize("version", ["0.30.2", "0.32.0", "1.0.0+cpu", "dev"])
def test_another_version_of_vllm_gets_one_line_and_nothing_else(monkeypatch, caplog, version):
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(__version__=version))
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="vllm.r1llama")  # whatever VLLM_LOGGING_LEVEL says
    caplog.clear()
    serving.register()
    (message,) = {record.message for record in caplog.records}
    assert f"this is {version}, and r1llama models stay unknown" in message


def test_without_vllm_one_line_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="vllm.r1llama")  # whatever VLLM_LOGGING_LEVEL says
    caplog.clear()
    serving.register()
    (message,) = {record.message for record in caplog.records}
    assert "install r1llama[vllm]" in message
