"""The configuration: a `LlamaConfig` with four switches.

    latent attention   kv_lora_rank = r            DeepSeek-V3's MLA (arXiv:2412.19437, section 2.1.1)
    linear attention   layer_types[i] = "linear_attention"          (arXiv:2006.16236)
    experts            num_experts = E             DeepSeek-V3's MoE with loss-free balancing (arXiv:2408.15664)
    long context       rope_parameters = {"rope_type": "yarn", ...} (arXiv:2309.00071)

With every switch off the model is Llama. A wrong value is refused here, with the field's name and the cure.
"""

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

LAYER_TYPES = ("full_attention", "linear_attention")


@strict
class R1LlamaConfig(LlamaConfig):
    r"""
    Every field of [`LlamaConfig`], and:

    Args:
        kv_lora_rank (`int`, *optional*):
            Width of the latent that full-attention layers cache instead of keys and values. `None`: grouped-query
            attention, as in Llama.
        q_lora_rank (`int`, *optional*):
            Rank of the query projection under latent attention. `None`: a full-rank `q_proj`.
        qk_nope_head_dim (`int`, *optional*):
            Query and key channels a head without positions, under latent attention. Defaults to `head_dim`.
        qk_rope_head_dim (`int`, *optional*):
            Rotary channels of the query head and of the one key that all heads share. Defaults to `head_dim // 2`,
            rounded down to even.
        v_head_dim (`int`, *optional*):
            Value channels a head. Defaults to `head_dim`.
        rope_interleave (`bool`, defaults to `False`):
            Rotary pairs of latent attention are neighbours (DeepSeek's checkpoints) rather than halves (Llama's).
        layer_types (`list[str]`, *optional*):
            "full_attention" or "linear_attention" for each layer. Defaults to full attention everywhere.
        linear_feature_map (`str`, defaults to `"elu"`):
            phi of the linear-attention layers: "elu" (elu(x) + 1), "relu", or "hedgehog", which is learned:
            [softmax(W x), softmax(-W x)] with a W for each head, the identity at first (arXiv:2402.04347).
        linear_use_rope (`bool`, defaults to `False`):
            Rotate phi(q) and phi(k) in the numerator of linear attention, never in its denominator, which stays
            positive (arXiv:2104.09864, section 3.3). Without it those layers know order only through causality, which
            is enough beside full-attention layers.
        linear_decay (`bool`, defaults to `False`):
            Past tokens fade in linear attention, by 1 - 2^(-5 - head) a token for each key head (RetNet,
            arXiv:2307.08621), in the numerator and in the denominator alike.
        linear_window (`int`, *optional*):
            The last tokens, this many, that linear-attention layers weigh by softmax, exactly as Llama; the linear
            part sees those before, without positions (after LoLCATs, arXiv:2410.10254). A shorter text gets Llama's
            output, which makes this the form to convert a pretrained Llama to. Best with "hedgehog". `None`: no
            softmax.
        num_experts (`int`, defaults to 0):
            Routed experts in each layer from `first_k_dense_replace` on. 0: dense.
        num_experts_per_tok (`int`, defaults to 2): Experts that each token is routed to.
        n_shared_experts (`int`, defaults to 0): Experts that every token passes; one MLP of this many widths.
        moe_intermediate_size (`int`, *optional*): Width of one expert. Defaults to `intermediate_size`.
        first_k_dense_replace (`int`, defaults to 0): The first layers that keep a dense MLP.
        scoring_func (`str`, defaults to `"sigmoid"`): "sigmoid" (DeepSeek-V3) or "softmax" scores.
        norm_topk_prob (`bool`, defaults to `True`): Scale the chosen scores to sum to 1.
        routed_scaling_factor (`float`, defaults to 1.0): Factor on the routed experts' output.
        n_group, topk_group (`int`, default to 1):
            Experts come in `n_group` groups; only the best `topk_group` of them, by the sum of their two best
            scores, are eligible for a token.
        output_router_logits (`bool`, defaults to `False`): Return the router logits of each layer.
        router_aux_loss_coef (`float`, defaults to 0.0):
            Weight of the auxiliary balance loss that trainers add. For "softmax" scores only: TRL's formula
            recomputes the routing by softmax and top-k, which a sigmoid router with a bias does not do.
        aux_loss_alpha (`float`, defaults to 0.0):
            Weight of DeepSeek-V3's sequence-wise balance loss, from the experts really used; 1e-4 there. It and the
            next reach the gradient inside the model, with any trainer, and not the loss that is shown.
        router_z_loss_coef (`float`, defaults to 0.0): Weight of ST-MoE's router z-loss, against large logits.
        router_bias_update_rate (`float`, defaults to 1e-3):
            Step of the loss-free balancing of the experts; 0 freezes the bias. See `r1llama.model.balancing`.
        num_mtp_layers (`int`, defaults to 0):
            Layers of multi-token prediction after the last one; see `r1llama.model.multi_token`.
        mtp_loss_coef (`float`, defaults to 0.3): Weight of their loss beside the language loss.

    ```python
    >>> from r1llama import R1LlamaConfig, R1LlamaForCausalLM
    >>> config = R1LlamaConfig(kv_lora_rank=512, qk_rope_head_dim=64, num_experts=8, num_experts_per_tok=2)
    >>> model = R1LlamaForCausalLM(config)
    ```
    """

    model_type = "r1llama"
    base_model_tp_plan = None  # Llama's plan would shard a latent that all heads share

    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    rope_interleave: bool = False

    layer_types: list[str] | None = None
    linear_feature_map: str = "elu"
    linear_use_rope: bool = False
    linear_decay: bool = False
    linear_window: int | None = None

    num_experts: int = 0
    num_experts_per_tok: int = 2
    n_shared_experts: int = 0
    moe_intermediate_size: int | None = None
    first_k_dense_replace: int = 0
    scoring_func: str = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.0
    aux_loss_alpha: float = 0.0
    router_z_loss_coef: float = 0.0
    router_bias_update_rate: float = 1e-3

    num_mtp_layers: int = 0
    mtp_loss_coef: float = 0.3

    @property
    def mtp_layer_types(self) -> list[str]:
        return ["full_attention"] * self.num_mtp_layers

    def __post_init__(self, **kwargs):
        if self.num_attention_heads < 1:
            raise ValueError(f"num_attention_heads is {self.num_attention_heads}: set it to 1 or more")
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if self.kv_lora_rank is not None:
            if self.qk_nope_head_dim is None:
                self.qk_nope_head_dim = head_dim
            if self.qk_rope_head_dim is None:
                self.qk_rope_head_dim = max(head_dim // 4 * 2, 2)
            if self.v_head_dim is None:
                self.v_head_dim = head_dim
        rope = self.rope_parameters or kwargs.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type")) == "yarn":
            if not rope.get(
                "original_max_position_embeddings"
            ):  # or it would become max_position_embeddings, silently
                raise ValueError(
                    "rope_parameters lacks original_max_position_embeddings: set it to the context length that the "
                    "model was trained with before YaRN"
                )
            if self.kv_lora_rank is not None and not {"mscale", "mscale_all_dim", "attention_factor"} & rope.keys():
                # A factor on cos and sin would reach only the rotary part of a latent head: these two keys select
                # DeepSeek's form, a factor on the softmax scale.
                rope.update(mscale=1.0, mscale_all_dim=1.0)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Refuse impossible values. Runs when a config is made or loaded."""
        for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}: set it to 1 or more")
        super().validate_architecture()
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of num_key_value_heads "
                f"({self.num_key_value_heads}): set num_key_value_heads to one of its divisors"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}: rotary embeddings need an even head_dim of 2 or more")
        self._validate_layer_types()
        if self.kv_lora_rank is not None:
            self._validate_latent_attention()
        if self.num_experts:
            self._validate_experts()
        if not 0 <= self.num_mtp_layers <= self.num_hidden_layers:
            raise ValueError(
                f"num_mtp_layers is {self.num_mtp_layers}: set it to 0 (off) up to num_hidden_layers "
                f"({self.num_hidden_layers})"
            )
        if self.mtp_loss_coef < 0:
            raise ValueError(f"mtp_loss_coef is {self.mtp_loss_coef}: set it to 0 or more")

    def _validate_layer_types(self):
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries, but num_hidden_layers is {self.num_hidden_layers}: "
                "give one entry a layer"
            )
        unknown = sorted(set(self.layer_types) - set(LAYER_TYPES))
        if unknown:
            raise ValueError(f"layer_types has unknown {unknown}: use {' or '.join(LAYER_TYPES)}")
        self._validate_linear_attention()

    def _validate_linear_attention(self):
        if self.linear_feature_map not in ("elu", "relu", "hedgehog"):
            raise ValueError(f"linear_feature_map is {self.linear_feature_map!r}: use 'elu', 'relu' or 'hedgehog'")
        if self.linear_window is not None and self.linear_window < 1:
            raise ValueError(
                f"linear_window is {self.linear_window}: set it to 1 or more, or to null to switch it off"
            )
        if self.linear_use_rope and self.linear_window is not None:
            raise ValueError(
                "linear_use_rope with linear_window would rotate twice: a window has Llama's positions already. Set "
                "linear_use_rope to false"
            )
        if self.linear_use_rope and self.linear_feature_map == "relu":
            raise ValueError(
                "linear_use_rope with linear_feature_map 'relu' divides by zero: the denominator of features without "
                "common channels vanishes, the rotated numerator does not. Set linear_feature_map to 'elu'"
            )
        if self.linear_use_rope and self.linear_feature_map == "hedgehog":
            raise ValueError(
                "linear_use_rope with linear_feature_map 'hedgehog': its features have no rotary pairs. Set "
                "linear_use_rope to false; linear_window brings positions"
            )
        if "linear_attention" not in self.layer_types and (self.linear_decay or self.linear_window is not None):
            field = "linear_decay" if self.linear_decay else "linear_window"
            raise ValueError(
                f"{field} without a linear layer: put 'linear_attention' into layer_types, or unset {field}"
            )

    def _validate_latent_attention(self):
        for field in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} is {value}: set it to 1 or more, or to null to switch it off")
        if self.qk_rope_head_dim < 2 or self.qk_rope_head_dim % 2:
            raise ValueError(
                f"qk_rope_head_dim is {self.qk_rope_head_dim}: rotary embeddings need an even number of 2 or more"
            )

    def _validate_experts(self):
        for field in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "n_group", "topk_group"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}: set it to 1 or more")
        for field in (
            "n_shared_experts",
            "first_k_dense_replace",
            "router_bias_update_rate",
            "router_aux_loss_coef",
            "aux_loss_alpha",
            "router_z_loss_coef",
        ):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} is {getattr(self, field)}: set it to 0 or more")
        if self.scoring_func not in ("sigmoid", "softmax"):
            raise ValueError(f"scoring_func is {self.scoring_func!r}: use 'sigmoid' or 'softmax'")
        if self.num_experts % self.n_group:
            raise ValueError(
                f"num_experts ({self.num_experts}) is not a multiple of n_group ({self.n_group}): "
                "set n_group to one of its divisors, or to 1"
            )
        group_size = self.num_experts // self.n_group
        if self.n_group > 1 and group_size < 2:
            raise ValueError(
                f"n_group is {self.n_group}, one expert a group: a group is ranked by its two best experts, so "
                f"set n_group to {self.num_experts // 2} or less"
            )
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group ({self.topk_group}) is above n_group ({self.n_group}): lower topk_group")
        if self.num_experts_per_tok > self.topk_group * group_size:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) is above the {self.topk_group * group_size} experts"
                f" that a token may use (num_experts {self.num_experts}, n_group {self.n_group}, topk_group "
                f"{self.topk_group}): lower num_experts_per_tok"
            )
        if self.scoring_func == "sigmoid" and self.router_aux_loss_coef:
            raise ValueError(
                "router_aux_loss_coef with scoring_func 'sigmoid' would train with the loads of another router (the "
                "trainers' formula is softmax): set it to 0 and use router_bias_update_rate or aux_loss_alpha"
            )


__all__ = ["R1LlamaConfig"]
