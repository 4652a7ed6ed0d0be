"""A longer context by YaRN (arXiv:2309.00071): slow rotary channels are interpolated, fast ones stay as they are."""

from .configuration import R1LlamaConfig


def extend_context(config: R1LlamaConfig, factor: float) -> R1LlamaConfig:
    """A copy of `config` whose context is `factor` times as long. The weights stay the same:
    `from_pretrained(path, config=extend_context(config, 8))`, then a little training on long texts.

    Extending twice is extending once by the product: YaRN always starts from the context length of the pretraining,
    which is `max_position_embeddings` of a config without YaRN, and stays in `original_max_position_embeddings`. Under
    latent attention the temperature is a factor on the softmax scale, see `R1LlamaConfig`.

    Args:
        config: of a model with rotary positions.
        factor: above 1.

    Raises:
        ValueError: there is nothing to extend, or another method has extended it.
    """
    if not factor > 1:
        raise ValueError(f"factor is {factor}: the context becomes `factor` times as long, so set it above 1")
    if "full_attention" not in config.layer_types and not config.linear_use_rope:
        raise ValueError("this model has linear attention without rotary positions: its context needs no extension")
    rope = dict(config.rope_parameters)
    if rope["rope_type"] not in ("default", "yarn"):
        raise ValueError(
            f"rope_parameters has rope_type {rope['rope_type']!r}, which changes the frequencies already: start from "
            "a model of type 'default' or 'yarn'"
        )
    if rope.get("attention_factor"):
        raise ValueError(
            "rope_parameters has an attention_factor, which belongs to its present factor: remove it, so that it "
            "follows from the new one"
        )
    original = rope.setdefault("original_max_position_embeddings", config.max_position_embeddings)
    rope |= {"rope_type": "yarn", "factor": float(rope.get("factor", 1.0) * factor)}
    return type(config).from_dict(
        config.to_dict() | {"rope_parameters": rope, "max_position_embeddings": int(original * rope["factor"])}
    )
