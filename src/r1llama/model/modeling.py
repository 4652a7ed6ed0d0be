"""R1Llama: Llama with latent attention, linear attention, experts and YaRN, each switched on by the config.

    R1LlamaModel                        the backbone; everything that matters happens here, because TRL's trainers
                                        call it directly and never run `R1LlamaForCausalLM.forward`
    R1LlamaForCausalLM                  text
    R1LlamaForSequenceClassification    outcome verifiers and reward models
    R1LlamaForTokenClassification       process verifiers

What is not overridden is Llama's own.
"""

import copy

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import (
    create_causal_mask,
    create_recurrent_attention_mask,
    find_packed_sequence_indices,
)
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils import logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .cache import prepare_cache
from .configuration import R1LlamaConfig
from .experts import R1LlamaExperts, R1LlamaMoE, R1LlamaRouter, RoutedForward
from .latent_attention import R1LlamaLatentAttention
from .linear_attention import HedgehogFeatureMap, R1LlamaLinearAttention
from .multi_token import R1LlamaMTP
from .shared_prompts import PromptCache, SharedPrompts, attend, distinct_rows, split

logger = logging.get_logger(__name__)

FORWARDS_BEFORE_WARNING = 512  # training forwards without an update of the router bias


class R1LlamaRotaryEmbedding(LlamaRotaryEmbedding):
    """Llama's, for `dim` channels, with frequencies that stay fp32 when the model is cast."""

    def __init__(self, config: R1LlamaConfig, dim: int):
        config = copy.copy(config)
        config.head_dim = dim
        super().__init__(config)

    def forward(self, x, position_ids):
        if self.inv_freq.dtype != torch.float32:
            compute = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
            self.inv_freq = compute(self.config)[0].to(x.device)
        return super().forward(x, position_ids)


class R1LlamaDecoderLayer(LlamaDecoderLayer):
    def __init__(self, config: R1LlamaConfig, layer_idx: int):
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        if [*config.layer_types, *config.mtp_layer_types][layer_idx] == "linear_attention":
            self.self_attn = R1LlamaLinearAttention(config, layer_idx)
        elif config.kv_lora_rank is not None:
            self.self_attn = R1LlamaLatentAttention(config, layer_idx)
        else:
            self.self_attn = LlamaAttention(config, layer_idx)
        has_experts = config.num_experts and layer_idx >= config.first_k_dense_replace
        self.mlp = R1LlamaMoE(config) if has_experts else LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args,
        prompt_of: torch.Tensor | None = None,
        routed: RoutedForward | None = None,
        **kwargs,
    ):
        """As Llama's; with `prompt_of`, on the one row of `shared_prompts`; `routed` is for the experts."""
        if isinstance(self.mlp, R1LlamaMoE):
            self.mlp.routed = routed
        if prompt_of is None:
            return super().forward(hidden_states, *args, **kwargs)
        x = attend(self.self_attn, self.input_layernorm(hidden_states), prompt_of, **kwargs)
        hidden_states = hidden_states + x
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class R1LlamaPreTrainedModel(LlamaPreTrainedModel):
    config_class = R1LlamaConfig
    config: R1LlamaConfig
    _no_split_modules = ["R1LlamaDecoderLayer"]
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]
    # Only `R1LlamaForCausalLM` has these layers; transformers' `MtpModel` looks for their prefix here
    _keys_to_ignore_on_load_unexpected = [r"^mtp\."]
    _can_set_experts_implementation_cached_value = True  # transformers greps this file for a decorator of another
    _can_record_outputs = {
        "hidden_states": R1LlamaDecoderLayer,
        "attentions": [
            OutputRecorder(LlamaAttention, index=1),
            OutputRecorder(R1LlamaLatentAttention, index=1),
        ],
        "router_logits": OutputRecorder(R1LlamaRouter, index=0),
    }

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        return super().get_correct_experts_implementation(requested_experts or "r1llama")

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, R1LlamaRouter):
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.e_score_correction_bias)
        elif isinstance(module, R1LlamaExperts):
            init.normal_(module.gate_up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)
        elif isinstance(module, HedgehogFeatureMap):
            init.copy_(module.weight, torch.eye(module.weight.shape[-1]).expand_as(module.weight))
        elif isinstance(module, R1LlamaLinearAttention) and module.window is not None:
            init.zeros_(module.log_window_weight)


class R1LlamaModel(R1LlamaPreTrainedModel, LlamaModel):
    def __init__(self, config: R1LlamaConfig):
        R1LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList([R1LlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        rotary_dim = config.head_dim if config.kv_lora_rank is None else config.qk_rope_head_dim
        self.rotary_emb = R1LlamaRotaryEmbedding(config, rotary_dim)
        has_linear_positions = config.linear_use_rope or config.linear_window is not None
        if has_linear_positions and "linear_attention" in config.layer_types:
            self.linear_rotary_emb = R1LlamaRotaryEmbedding(config, config.head_dim)
        self.has_full_attention = "full_attention" in [*config.layer_types, *config.mtp_layer_types]
        self.gradient_checkpointing = False
        self.forwards_since_balancing = 0
        # Plain attributes for trainers, see `auxiliary_loss`: detached values of the last training forward, by name,
        # and 1 / micro-batches per optimizer step
        self.auxiliary_losses: dict[str, torch.Tensor] = {}
        self.auxiliary_scale = 1.0
        # See `routing_replay`
        self.recorded_routing: list[torch.Tensor] | None = None
        self.replayed_routing: torch.Tensor | None = None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        prompt_length: int | None = None,
        **kwargs,
    ) -> MoeModelOutputWithPast:
        """
        Args:
            input_ids: `(B, S)`; or `inputs_embeds`, `(B, S, hidden)`.
            attention_mask: `(B, T)` with 0 for padding, on either side; or what `create_masks_for_generate` returns.
            position_ids: `(B, S)`. Without an attention mask and a cache, positions that start again mark packed
                documents, which never see each other.
            past_key_values: a cache of transformers; one is made if `use_cache`.
            prompt_length: P. Each row is a prompt of P tokens, padded on the left, and a completion; what rows share
                as prompts is computed once (see `shared_prompts`). The hidden states returned then begin at the last
                prompt token, `(B, S - P + 1, hidden)`: all that the completions are predicted from.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if prompt_length is not None:
            if input_ids is None or position_ids is not None or past_key_values is not None:
                raise ValueError(
                    "prompt_length takes input_ids and an attention_mask, no embeddings, positions or cache"
                )
            return self.forward_shared(input_ids, attention_mask, prompt_length, **kwargs)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)

        if past_key_values is not None:
            prepare_cache(past_key_values, self.config)
        if position_ids is None:
            past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_length
            position_ids = position_ids.unsqueeze(0)
        masks, segment_ids = self.make_masks(inputs_embeds, attention_mask, position_ids, past_key_values)
        if use_cache and past_key_values is None:
            past_key_values = prepare_cache(DynamicCache(config=self.config), self.config)

        hidden_states = self.run_layers(
            inputs_embeds,
            self.route(inputs_embeds.shape[:2], masks["linear_attention"]),
            masks,
            self.make_rotary(inputs_embeds, position_ids),
            segment_ids,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def forward_shared(self, input_ids, attention_mask, prompt_length, **kwargs):
        """[`forward`] with `prompt_length`."""
        prompts = SharedPrompts(input_ids, attention_mask, prompt_length)
        inputs_embeds = self.embed_tokens(prompts.input_ids)
        caches = None, PromptCache(prompts.prompt_of, prompt_length)
        masks, rotary = [], []
        for x, mask, positions, cache in zip(
            split(inputs_embeds, prompts.position_ids), prompts.masks, prompts.position_ids, caches, strict=True
        ):
            masks.append(self.make_masks(x, mask, positions, cache)[0])
            rotary.append(self.make_rotary(x, positions))
        hidden_states = self.run_layers(
            inputs_embeds,
            self.route(input_ids.shape, attention_mask, prompts.rows),
            {layer_type: tuple(mask[layer_type] for mask in masks) for layer_type in masks[0]},
            {layer_type: tuple(x[layer_type] for x in rotary) for layer_type in rotary[0]},
            position_ids=prompts.position_ids,
            prompt_of=prompts.prompt_of,
            **kwargs,
        )
        return MoeModelOutputWithPast(last_hidden_state=self.norm(prompts.from_last_prompt_token(hidden_states)))

    def run_layers(self, hidden_states, routed, masks, rotary, segment_ids=None, **kwargs):
        """All layers, with the mask and the cos and sin of their type. `routed` is what [`route`] returns."""
        self.auxiliary_losses = {}
        for i, (layer, layer_type) in enumerate(zip(self.layers, self.config.layer_types, strict=True)):
            if layer_type == "linear_attention":
                kwargs["segment_ids"] = segment_ids
            else:
                kwargs.pop("segment_ids", None)
            hidden_states = layer(
                hidden_states,
                routed=routed.get(i),
                attention_mask=masks[layer_type],
                position_embeddings=rotary[layer_type],
                **kwargs,
            )
        for name in next(iter(routed.values())).losses if routed else ():
            self.auxiliary_losses[name] = torch.stack([forward.losses[name] for forward in routed.values()]).mean()
        if self.recorded_routing is not None:
            self.recorded_routing.append(torch.stack([forward.ids for forward in routed.values()]))
        return hidden_states

    def make_rotary(self, inputs_embeds, position_ids):
        """cos and sin of each layer type; None for linear attention without positions."""
        rotary = {"full_attention": self.rotary_emb(inputs_embeds, position_ids), "linear_attention": None}
        if hasattr(self, "linear_rotary_emb"):
            rotary["linear_attention"] = self.linear_rotary_emb(inputs_embeds, position_ids)
        return rotary

    def make_masks(self, inputs_embeds, attention_mask, position_ids, past_key_values):
        """The mask of each layer type, and the ids `(B, S)` of packed documents (None if nothing is packed)."""
        if isinstance(attention_mask, dict):  # `generate` with a static cache
            return {"full_attention": None, "linear_attention": None} | attention_mask, None
        arguments = {
            "config": self.config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        masks = {
            "full_attention": create_causal_mask(**arguments) if self.has_full_attention else None,
            "linear_attention": create_recurrent_attention_mask(**arguments),
        }
        segment_ids = None
        if attention_mask is None and past_key_values is None:
            segment_ids = find_packed_sequence_indices(position_ids.expand(inputs_embeds.shape[0], -1))
        return masks, segment_ids

    def route(self, shape_BS, token_mask: torch.Tensor | None, rows_BS: torch.Tensor | None = None):
        """A `RoutedForward` by the index of each layer with experts; `{}` if there is nothing to tell them."""
        blocks = {i: layer.mlp for i, layer in enumerate(self.layers) if isinstance(layer.mlp, R1LlamaMoE)}
        is_training = self.training and torch.is_grad_enabled()
        replayed = self.replayed_routing
        if not blocks or not (is_training or replayed is not None or self.recorded_routing is not None):
            return {}
        if replayed is not None and replayed.shape[:3] != (len(blocks), *shape_BS):
            raise ValueError(
                f"replay_routing was given ids of shape {tuple(replayed.shape)} for {len(blocks)} layers with experts "
                f"and inputs of shape {tuple(shape_BS)}: give (layers with experts, B, S, K), -1 where a token "
                "chooses for itself"
            )
        if is_training:
            self.warn_of_forgotten_balancing(next(iter(blocks.values())))
        return {
            i: RoutedForward(
                token_mask, rows_BS, is_training, self.auxiliary_scale, None if replayed is None else replayed[layer]
            )
            for layer, i in enumerate(blocks)
        }

    def warn_of_forgotten_balancing(self, block: R1LlamaMoE) -> None:
        self.forwards_since_balancing = 0 if block.load is None else self.forwards_since_balancing + 1
        if self.forwards_since_balancing == FORWARDS_BEFORE_WARNING and self.config.router_bias_update_rate:
            logger.warning_once(
                f"{FORWARDS_BEFORE_WARNING} training forwards and nothing updates the router bias, so the experts may "
                "collapse unseen: add `r1llama.training.RouterBalancing()` to the trainer's callbacks, or call "
                "`r1llama.model.update_router_bias(model)` once per optimizer step"
            )


class R1LlamaForCausalLM(R1LlamaPreTrainedModel, LlamaForCausalLM):
    shares_prompts = True  # `generate` computes equal prompts once

    def __init__(self, config: R1LlamaConfig):
        R1LlamaPreTrainedModel.__init__(self, config)
        self.model = R1LlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # A recurrent state cannot be rolled back: `generate` then refuses assisted decoding, in words
        self._is_stateful = "linear_attention" in config.layer_types
        if config.num_mtp_layers:
            self.mtp = R1LlamaMTP(config, R1LlamaDecoderLayer)
            self.register_forward_pre_hook(self.mtp.keep_labels, with_kwargs=True)
            self.model.register_forward_hook(self.mtp.join_training, with_kwargs=True)
        self.post_init()

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.use_mtp and not self.config.num_mtp_layers:
            raise ValueError("use_mtp: this model has no layers to draft with (its config has num_mtp_layers 0)")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if isinstance(model_kwargs.get("past_key_values"), Cache):
            prepare_cache(model_kwargs["past_key_values"], self.config)

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        """Computes each distinct prompt once, and branches the cache for its rows: a group's rollouts, beams."""
        cache = model_kwargs.get("past_key_values")
        per_row = {name: x for name, x in model_kwargs.items() if isinstance(x, torch.Tensor)}
        can_share = (
            self.shares_prompts
            and isinstance(cache, DynamicCache)
            and cache.get_seq_length() == 0
            and per_row.keys() <= {"attention_mask", "position_ids"}
            and all(x.shape[0] == input_ids.shape[0] for x in per_row.values())
            and not (generation_config.output_attentions or generation_config.output_hidden_states)
        )
        if can_share:
            first, prompt_of = distinct_rows(input_ids, per_row.get("attention_mask"))
        if not can_share or len(first) == len(input_ids):
            return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)
        distinct = model_kwargs | {name: x[first] for name, x in per_row.items()}
        recorded = self.model.recorded_routing
        before = len(recorded or ())
        outputs = super()._prefill(input_ids[first], generation_config, distinct, *args, **kwargs)
        if recorded is not None:
            recorded[before:] = [ids[:, prompt_of] for ids in recorded[before:]]
        outputs.logits = outputs.logits[prompt_of]
        outputs.past_key_values.reorder_cache(prompt_of)
        return outputs


class _KnowsItsConfig:
    """The heads make their backbone by `AutoModel`. Where this file is loaded from a checkpoint, the config may be of
    another copy of its class than the one registered below."""

    def __init__(self, config):
        AutoModel.register(type(config), R1LlamaModel, exist_ok=True)
        super().__init__(config)


class R1LlamaForSequenceClassification(_KnowsItsConfig, GenericForSequenceClassification, R1LlamaPreTrainedModel):
    pass


class R1LlamaForTokenClassification(_KnowsItsConfig, GenericForTokenClassification, R1LlamaPreTrainedModel):
    pass


# Here and not in the package, so that it also holds where this file is loaded from a checkpoint.
AutoConfig.register("r1llama", R1LlamaConfig, exist_ok=True)
for auto_class, model_class in (
    (AutoModel, R1LlamaModel),
    (AutoModelForCausalLM, R1LlamaForCausalLM),
    (AutoModelForSequenceClassification, R1LlamaForSequenceClassification),
    (AutoModelForTokenClassification, R1LlamaForTokenClassification),
):
    auto_class.register(R1LlamaConfig, model_class, exist_ok=True)
    # A saved model carries this code: it loads where r1llama is not installed, with `trust_remote_code=True`.
    model_class.register_for_auto_class(auto_class.__name__)
R1LlamaConfig.register_for_auto_class()
