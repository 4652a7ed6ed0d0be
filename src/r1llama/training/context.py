"""A longer context by recipe: `rope_parameters` over those of the model's config."""

import json
import math

from huggingface_hub.errors import StrictDataclassError
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .recipe import RecipeError


def with_rope(config, rope_parameters: dict | str | None, max_length: int | None):
    """The config with the recipe's `rope_parameters`, and the context that follows from them.

    With a `factor`, the context becomes that many times what the model was pretrained with
    (`original_max_position_embeddings`; of a model that was never extended, its `max_position_embeddings`): for YaRN,
    what `r1llama.model.extend_context` does. Without one (another `rope_theta`), it reaches to `max_length`.

    Args:
        config: Of a model with rotary positions.
        rope_parameters: As in transformers' configs, such as `{"rope_type": "yarn", "factor": 4.0}`, or that as JSON.
        max_length: The recipe's, in tokens.

    Raises:
        RecipeError: Such parameters make no model, or `max_length` exceeds the context.
    """
    key = f"`rope_parameters: {rope_parameters}`"
    if rope_parameters:
        try:
            given = json.loads(rope_parameters) if isinstance(rope_parameters, str) else dict(rope_parameters)
            rope, context = dict(config.rope_parameters) | given, config.max_position_embeddings
            if rope.get("rope_type", "default") not in ("default", *ROPE_INIT_FUNCTIONS):
                raise ValueError(f"rope_type must be one of default, {', '.join(ROPE_INIT_FUNCTIONS)}")
            if "factor" in given:
                original = rope.setdefault("original_max_position_embeddings", context)
                context = int(original * rope["factor"])
            else:
                context = max(context, max_length or 0)
            changes = {"rope_parameters": rope, "max_position_embeddings": context}
            longer = type(config).from_dict(config.to_dict() | changes)
        except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
            raise RecipeError(f"{key}: {error}") from error
        if context < config.max_position_embeddings:
            raise RecipeError(
                f"{key} would shorten the context from {config.max_position_embeddings} tokens to {context}: `factor` "
                f"counts from {rope['original_max_position_embeddings']} tokens, those of the pretraining"
            )
        config = longer
    context = getattr(config, "max_position_embeddings", None)
    if context and max_length and max_length > context:
        cure = f"set it to {context} tokens or less"
        if getattr(config, "rope_parameters", None):
            original = config.rope_parameters.get("original_max_position_embeddings") or context
            factor = math.ceil(max_length / original)
            cure += f", or extend the context: `rope_parameters: {{rope_type: yarn, factor: {factor}}}`"
        raise RecipeError(f"`max_length: {max_length}` exceeds the model's context: {cure}")
    return config
