"""Byte-level BPE tokenizer, trained from scratch, that knows the four reasoning tags.

- `TAGS`: `<think> </think> <answer> </answer>`
- `train_tokenizer`: texts in, `PreTrainedTokenizerFast` out
- `check_tokenizer`: what any tokenizer must hold to for the stages that follow
- `compression`: characters and bytes per token

The alphabet is the 256 bytes, so no text is unknown and there is no unk token.
"""

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .chat import special_tokens

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
EOS = "<|end_of_text|>"
PAD = "<|pad|>"  # not EOS: a padding id that is masked from the loss must not hide the end of a text
MIN_VOCAB_SIZE = 256 + len(TAGS) + 2

# Merges stay inside these pieces, so that none is learnt across words: the pattern of Llama 3's tokenizer, but with
# \p{N} for its \p{N}{1,3}, which makes every digit a token, because arithmetic on number pieces of varying length is
# needlessly hard. Qwen2's tokenizer has the same pattern, so engines that read GGUF files know it by that name.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PROBES = [
    "",
    " ",
    "  two  spaces \n\n\t\r\n",
    "don't .  , ! It'S",
    "\x00\x7f\u200b\ufeff\ufffd",
    "e\u0301 é ﬁ Å",
    "👩‍👩‍👧 🦙",
    "1234567890 ١٢٣ ½",
    "<think", "< think>", "<think> a\n</think>\n\n<answer> 4 </answer>",
    "def f(x):\n    return x**2  # 東京",
]  # fmt: skip


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = MIN_VOCAB_SIZE, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; the same texts in the same order give a byte-identical tokenizer.

    Every digit is one token. The tags are single tokens with `special=False`: trainers decode with
    `skip_special_tokens=True`, and a special tag would vanish before the reward functions see it. Tags and marks of
    the template in the texts are not learnt from: no merge holds a part of one.

    Args:
        texts: training texts, read once.
        vocab_size: upper bound on the vocabulary: 256 bytes, end of text, padding, four tags, the marks of the chat
            template, then merges. The default leaves no room for merges: one token a byte. It is not reached when no
            further pair of tokens occurs twice in the texts.
        chat_template: text of a Jinja chat template; its marks (`<|im_end|>`) become special tokens.

    Returns:
        A tokenizer that adds no token of its own to a text, decodes to exactly the text encoded, and pads on the left.

    Raises:
        ValueError: `vocab_size` is too small for what every tokenizer holds.
    """
    marks = special_tokens(chat_template or "")
    specials = list(dict.fromkeys([EOS, PAD, *marks]))
    least = 256 + len(TAGS) + len(specials)
    if vocab_size < least:
        held = f"256 bytes, {len(TAGS)} tags and {len(specials)} special tokens"
        raise ValueError(f"vocab_size={vocab_size}: {held} need at least {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS),  # the tags are added afterwards
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    whole = re.compile("|".join(map(re.escape, [*specials, *TAGS])))
    tokenizer.train_from_iterator((whole.sub("\n", text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    trained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=marks,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    trained.chat_template = chat_template
    return trained


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that models can be trained with a tokenizer, and reasoning rewarded.

    Raises:
        ValueError: An id outside the vocabulary or a hole in it; no eos; a pad token that is missing, unknown or
            ends a text; a tag that is several tokens or special; a text that does not come back; a chat template
            whose assistant turn ends in no special token.
    """
    if sorted(tokenizer.get_vocab().values()) != list(range(len(tokenizer))):
        raise ValueError(f"the ids are not 0 to {len(tokenizer) - 1}: an embedding of len(tokenizer) rows cannot fit")
    if tokenizer.eos_token_id is None:
        raise ValueError("no eos_token: a model could never stop")
    for name in ("unk", "eos"):
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id == getattr(tokenizer, f"{name}_token_id"):
            raise ValueError(f"the pad token is {tokenizer.pad_token}: it must be one, and not the {name} token")
    for tag in TAGS:
        if len(tokenizer(tag, add_special_tokens=False)["input_ids"]) != 1:
            raise ValueError(f"{tag} is not one token")
        if tag in tokenizer.all_special_tokens:
            raise ValueError(f"{tag} is a special token: decoding would drop it before a reward sees it")
    for text in PROBES:
        back = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
        if back != text:
            raise ValueError(f"{text!r} comes back as {back!r}")
    if tokenizer.chat_template and end_of_turn(tokenizer) is None:
        raise ValueError("the chat template ends an assistant's turn in no special token: a model could not stop")


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the special token that the chat template writes after an assistant's turn; None if there is none."""
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "r1llama"}]
    after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("r1llama")[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.all_special_ids else None


def compression(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> dict[str, float]:
    """How many characters and UTF-8 bytes of the texts a token stands for: more is better.

    Returns:
        `documents`, `characters_per_token`, `bytes_per_token`.
    """
    documents = characters = size = tokens = 0
    for text in texts:
        documents += 1
        characters += len(text)
        size += len(text.encode())
        tokens += len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return {
        "documents": documents,
        "characters_per_token": characters / max(tokens, 1),
        "bytes_per_token": size / max(tokens, 1),
    }
