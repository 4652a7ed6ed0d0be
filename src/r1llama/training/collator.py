"""Packed blocks as batches in which no document sees another."""

from dataclasses import dataclass

from trl.trainer.sft_trainer import DataCollatorForLanguageModeling


@dataclass
class PackedCollator(DataCollatorForLanguageModeling):
    """TRL's collator, with packed blocks as the rows of the batch.

    TRL lays all blocks of a batch in one row, as FlashAttention wants it (`padding_free=True`). Other attention would
    then compute scores between blocks only to mask them: as rows, it does not. There is no attention mask, since
    positions that start again already tell the documents apart, to transformers' Llama and to r1llama. A document's
    first token is no label: nothing in its document comes before it.

    A block's `position` (see `BlockStream`) goes along: that of the last one stands for the batch.
    """

    def torch_call(self, examples):
        self.return_position_ids = not self.padding_free
        batch = super().torch_call(examples)
        if not self.padding_free:
            del batch["attention_mask"]
            batch["labels"][batch["position_ids"] == 0] = -100  # padding too is at position 0
        if "position" in examples[-1]:
            batch["position"] = examples[-1]["position"]
        return batch


def pack_in_rows(trainer) -> None:
    """Have an SFTTrainer with `packing` train on packed rows (see `PackedCollator`) where they are the faster form of
    the same loss: not with FlashAttention, and not with experts, which would be balanced for the padding behind the
    rows too."""
    config, collator = trainer.model.config, trainer.data_collator
    has_experts = getattr(config, "num_experts", 0) or getattr(config, "num_local_experts", 0)
    is_stock = type(collator) is DataCollatorForLanguageModeling
    if trainer.args.packing and is_stock and collator.padding_free and not has_experts and not in_one_row(config):
        trainer.data_collator = PackedCollator(collator.pad_token_id, pad_to_multiple_of=collator.pad_to_multiple_of)


def in_one_row(config) -> bool:
    """Whether the model's attention tells packed documents apart only if the batch is one row."""
    return "flash" in (config._attn_implementation or "")
