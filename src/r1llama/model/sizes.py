"""What a model holds, and what a token costs it: `r1llama inspect MODEL`.

`sizes` builds the model on the meta device, so that a config is enough and nothing is allocated.
"""

import argparse
import json
from dataclasses import asdict, dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from .modeling import R1LlamaConfig


@dataclass
class Sizes:
    """Parameters are counted once, also where two layers share them; buffers, such as the router bias, are none.

    Attributes:
        total: Parameters of the model that generates.
        active: Those that one token passes: `total` without the experts that it is not routed to.
        embedding: Those of the token embeddings and of a head of its own.
        multi_token: Parameters of the multi-token prediction layers, which are not in `total`.
        cache_values: Numbers that one more token adds to the cache; None for an architecture that is not ours.
        cache_state: Numbers in the cache of a text of any length: the states and windows of linear layers, in fp32.
            None as above.
    """

    total: int
    active: int
    embedding: int
    multi_token: int
    cache_values: int | None
    cache_state: int | None


def sizes(config: PreTrainedConfig) -> Sizes:
    """Count the causal language model of a config."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    idle = 0
    for name, module in model.named_modules():
        if name.endswith(".experts") and not name.startswith("mtp."):
            held = _count(module)
            experts = getattr(module, "num_experts", None) or len(module)
            idle += held - held // experts * config.num_experts_per_tok
    multi_token = _count(model.mtp) if getattr(model, "mtp", None) is not None else 0
    total = _count(model) - multi_token
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    is_ours = isinstance(config, R1LlamaConfig)
    return Sizes(
        total=total,
        active=total - idle,
        embedding=sum(table.numel() for table in {id(table): table for table in tables}.values()),
        multi_token=multi_token,
        cache_values=sum(_values(config, kind) for kind in config.layer_types) if is_ours else None,
        cache_state=config.layer_types.count("linear_attention") * _state(config) if is_ours else None,
    )


def _count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _values(config, layer_type) -> int:
    if layer_type == "linear_attention":
        return 0
    if config.kv_lora_rank is not None:
        return config.kv_lora_rank + config.qk_rope_head_dim
    return 2 * config.num_key_value_heads * config.head_dim


def _state(config) -> int:
    """The sum of phi(k) (v, 1)^T, and under a window its keys, rotated keys and values with their column of ones."""
    head = config.head_dim
    features = 2 * head if config.linear_feature_map == "hedgehog" else head
    window = (config.linear_window or 0) * (3 * head + 1)
    return config.num_key_value_heads * (features * (head + 1) + window)


def main(argv: list[str]) -> None:
    """Print the sizes of a config file, a model directory or a hub id."""
    parser = argparse.ArgumentParser(prog="r1llama inspect", description="Parameters and cache of a model.")
    parser.add_argument("model", help="config as JSON, model directory, or hub id; weights are not read")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    args = parser.parse_args(argv)
    try:
        found = sizes(AutoConfig.from_pretrained(args.model))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.json:
        print(json.dumps(asdict(found)))
        return
    print(f"parameters          {found.total:>15,}")
    print(f"  a token passes    {found.active:>15,}")
    print(f"  in embeddings     {found.embedding:>15,}")
    if found.multi_token:
        print(f"multi-token layers  {found.multi_token:>15,}")
    if found.cache_values is not None:
        print(f"cache of a token    {2 * found.cache_values:>15,} bytes in bfloat16")
    if found.cache_state:
        print(f"state of a text     {4 * found.cache_state:>15,} bytes in float32")
