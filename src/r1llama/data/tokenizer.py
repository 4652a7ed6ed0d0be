"""Byte-level BPE tokenizer, trained from scratch, that knows the four reasoning tags.

- `TAGS`: `<think> </think> <answer> </answer>`
- `train_tokenizer`: texts in, `PreTrainedTokenizerFast` out

The alphabet is the 256 bytes, so no text is unknown and there is no unk token.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
EOS = "<|end_of_text|>"
PAD = "<|pad|>"  # not EOS: a padding id that is masked from the loss must not hide the end of a text
MIN_VOCAB_SIZE = 256 + len(TAGS) + 2


def train_tokenizer(texts: Iterable[str], vocab_size: int = MIN_VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; the same texts in the same order give a byte-identical tokenizer.

    Every digit is one token, because arithmetic on variable-length number pieces is needlessly hard. The tags are
    single tokens with `special=False`: trainers decode with `skip_special_tokens=True`, and a special tag would
    vanish before the reward functions see it.

    Args:
        texts: training texts, read once.
        vocab_size: upper bound on the vocabulary: 256 bytes, end of text, padding, four tags, then merges. The
            default leaves no room for merges: one token a byte.

    Returns:
        A tokenizer that adds no token of its own to a text, decodes to exactly the text encoded, and pads on the left.

    Raises:
        ValueError: `vocab_size` is below `MIN_VOCAB_SIZE`.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size={vocab_size}: 256 bytes, 4 tags, eos and pad need at least {MIN_VOCAB_SIZE}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS),  # the tags are added afterwards
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
