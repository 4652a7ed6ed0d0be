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
