"""Multi-token prediction (MTP), as in DeepSeek-V3 (arXiv:2412.19437, section 2.2).

Layer k = 0, 1, ... guesses k + 2 tokens ahead, from what the layer before it knew and one token more:

    h_i^0 = last hidden state of the backbone
    h_i^(k+1) = norm(block_k([norm(E t_(i+k+1)) ; norm(h_i^k)] W_k))
    p(t_(i+k+2)) = softmax(head(h_i^(k+1)))

Embedding and head are the main model's. In training, the layers teach the backbone to plan ahead. In generation they
draft, and the main model keeps the drafts that it would have written itself: `generate(use_mtp=True)`, for one prompt
at a time, of at least `num_mtp_layers` tokens. Layers and names are those of transformers' `MtpModel`, which reads the
weights from the directory that the model was loaded from.

Shapes: B batch, S tokens, D hidden.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import MtpLayer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from .auxiliary_loss import attach_loss
from .experts import RoutedForward

LOSS_CHUNKS = 8  # a fixed number: under ZeRO-3 every rank must gather the head equally often


class R1LlamaMTP(nn.Module):
    """The layers, and two hooks that train them: the trainers of TRL replace `forward` of the model, where the labels
    are, and call the backbone without them."""

    def __init__(self, config, decoder_layer: type[nn.Module]):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            MtpLayer(config, decoder_layer, LlamaRMSNorm, config.num_hidden_layers + k)
            for k in range(config.num_mtp_layers)
        )
        self.kept: tuple[torch.Tensor | None, nn.Module] | None = None

    def keep_labels(self, model: nn.Module, args, kwargs) -> None:
        """Before a forward of the whole model: what its backbone will not be given."""
        self.kept = kwargs.get("labels"), model.get_output_embeddings()

    def join_training(self, backbone: nn.Module, args, kwargs, output):
        """After a forward of the backbone: attach the loss to its last hidden state.

        Only in training, with labels, and unless the layers are frozen (adapters on them count as not) or
        `mtp_loss_coef` is 0.
        """
        (labels, head), self.kept = self.kept or (None, None), None
        if labels is None or not self.training or not torch.is_grad_enabled() or not self.config.mtp_loss_coef:
            return None
        if kwargs.get("past_key_values") is not None or not any(p.requires_grad for p in self.parameters()):
            return None
        if kwargs.get("prompt_length") is not None:
            raise ValueError("prompt_length leaves out what multi-token prediction trains on: set mtp_loss_coef to 0")
        inputs = dict(zip(("input_ids", "attention_mask", "position_ids"), args, strict=False)) | kwargs
        inputs_embeds = inputs.get("inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = backbone.embed_tokens(inputs["input_ids"])
        position_ids = inputs.get("position_ids")
        if position_ids is None:
            position_ids = torch.arange(labels.shape[1], device=labels.device).unsqueeze(0)
        masks, documents = backbone.make_masks(inputs_embeds, inputs.get("attention_mask"), position_ids, None)
        token_mask = masks["linear_attention"]
        loss = self(
            output.last_hidden_state,
            inputs_embeds,
            labels,
            token_mask if documents is None else documents,
            head,
            RoutedForward(token_mask, is_training=True),
            attention_mask=masks["full_attention"],
            position_embeddings=backbone.rotary_emb(inputs_embeds, position_ids),
            position_ids=position_ids,
        )
        backbone.auxiliary_losses["mtp"] = loss.detach()
        output.last_hidden_state = attach_loss(
            output.last_hidden_state, self.config.mtp_loss_coef * loss, backbone.auxiliary_scale
        )
        return output

    def forward(
        self,
        hidden_states: torch.Tensor,
        inputs_embeds: torch.Tensor,
        labels: torch.Tensor,
        documents: torch.Tensor | None,
        head: nn.Module,
        routed: RoutedForward,
        **kwargs,
    ) -> torch.Tensor:
        """The mean of the layers' cross-entropies, a scalar.

        Args:
            hidden_states: `(B, S, D)`, the backbone's last.
            inputs_embeds: `(B, S, D)` of the same tokens.
            labels: `(B, S)`, aligned with the tokens; -100 where a token is not to be learnt.
            documents: `(B, S)`, equal for tokens of one document, or None for one document a row. No token learns to
                guess into another document, nor padding to guess into the text.
            head: hidden states to logits.
            routed: for the experts of the blocks.
            kwargs: for the blocks. The positions may be the backbone's, since only their differences count.
        """
        losses = []
        for k, layer in enumerate(self.layers):
            # What rolls around the end, or in from the next document, reaches no token that has a target
            hidden_states = layer(
                inputs_embeds.roll(-k - 1, dims=1),
                hidden_states,
                past_key_values=None,
                routed=copy.copy(routed),
                **kwargs,
            )
            targets = labels.roll(-k - 2, dims=1)
            targets[:, -k - 2 :] = -100
            if documents is not None:
                targets = targets.masked_fill(documents != documents.roll(-k - 2, dims=1), -100)
            losses.append(chunked_cross_entropy(hidden_states, targets, head))
        return torch.stack(losses).mean()


def chunked_cross_entropy(hidden_states: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """Mean over the targets that are not -100 (0 without any), never holding more than a part of the logits."""

    def loss_of(x, y):
        return F.cross_entropy(head(x).float(), y, ignore_index=-100, reduction="sum")

    parts = zip(
        hidden_states.flatten(0, 1).tensor_split(LOSS_CHUNKS), targets.flatten().tensor_split(LOSS_CHUNKS), strict=True
    )
    total = torch.stack([checkpoint(loss_of, x, y, use_reentrant=False) for x, y in parts]).sum()
    return total / (targets != -100).sum().clamp(min=1)
