"""What low-rank adapters (LoRA) should reach."""

from .configuration import R1LlamaConfig


def lora_targets(config: R1LlamaConfig) -> dict[str, list[str]]:
    """`peft.LoraConfig(**lora_targets(config), ...)`: adapters on every projection of every layer, fused experts
    included; never on the router, whose choice they would unsettle, nor on embeddings and head.

    The experts are parameters, not modules, and PEFT names them apart (`target_parameters`). What it cannot do there:
    dropout (`lora_dropout` must be 0), DoRA, and adapters of different targets in one model. Each adapted expert
    tensor adds E matrices of rank r, and the sum with its base is formed in every forward.

    Returns: `target_modules`, and `target_parameters` if the config has experts.
    """
    first_dense = config.first_k_dense_replace if config.num_experts else config.num_hidden_layers
    modules = ["o_proj"]
    if "full_attention" in config.layer_types and config.kv_lora_rank is not None:
        modules += ["kv_a_proj_with_mqa", "kv_b_proj"]
        modules += ["q_proj"] if config.q_lora_rank is None else ["q_a_proj", "q_b_proj"]
    if "linear_attention" in config.layer_types or config.kv_lora_rank is None:
        modules += ["q_proj", "k_proj", "v_proj"]
    if first_dense or config.n_shared_experts:
        modules += ["gate_proj", "up_proj", "down_proj"]
    targets = {"target_modules": sorted(set(modules))}
    if config.num_experts and first_dense < config.num_hidden_layers:
        targets["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return targets
