"""Pretraining, from scratch or continued: TRL's SFTTrainer on packed documents, from a recipe.

    accelerate launch -m r1llama.training.pretrain --config recipe.yaml [--key value ...]

The dataset holds documents in the column `text` (`dataset_text_field`). Each is ended with EOS, and all are packed
into blocks of `max_length` tokens in which no document sees another: nothing is padded or cut off. A dataset of a
known size is packed once, before training; with `dataset_streaming: true` documents are read while training goes on,
and `max_steps` says when to end. A stream has its place in each checkpoint (`stream.json`), so that a resumed run sees
the documents that the uninterrupted one would have seen, on any number of processes.

For perplexity, hold documents out: `eval_strategy: steps` with a split of their own (`dataset_test_split`), or a part
of the only one (`dataset_train_split: train[1%:]`, `dataset_test_split: train[:1%]`).

    BlockTrainer  SFTTrainer on blocks
    main          the stage
"""

import json
import logging
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from trl import ModelConfig, SFTConfig, SFTTrainer

from r1llama.data.loading import DataError
from r1llama.data.packing import BATCH, BlockStream, Packer, decode_position, pack, tokenise
from r1llama.training import recipe, stage
from r1llama.training.checks import check_machine, check_values
from r1llama.training.collator import PackedCollator, in_one_row
from r1llama.training.context import with_rope
from r1llama.training.recipe import RecipeError
from r1llama.training.schedule import optimizer_steps, plan
from r1llama.training.throughput import Perplexity, Throughput

log = logging.getLogger("r1llama")

STREAM_FILE = "stream.json"
STREAM_KEYS = (
    "dataset_name",
    "dataset_config",
    "dataset_train_split",
    "datasets",
    "task",
    "sample_by",
    "on_error",
    "deduplicate",
    "decontaminate",
    "on_error",
    "deduplicate",
    "decontaminate",
    "dataset_text_field",
    "max_length",
    "shuffle_dataset",
    "shuffle_window",
    "seed",
    "data_seed",
    "dataloader_num_workers",  # in a worker, datasets draws from a mixture in another order
)


@dataclass
class PretrainArguments(stage.StageArguments):
    config_name: str | None = field(
        default=None,
        metadata={
            "help": "Config of a model to start from random weights: a JSON file, or a directory with config.json. "
            "Vocabulary and special tokens come from the tokenizer. Instead of model_name_or_path."
        },
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Directory or hub id of the tokenizer, if it is not with the model."}
    )
    shuffle_window: int = field(
        default=BATCH,
        metadata={"help": "With dataset_streaming and shuffle_dataset: documents that are shuffled together."},
    )
    max_eval_blocks: int | None = field(
        default=None, metadata={"help": "Evaluate on the first so many blocks only; a stream needs it."}
    )


class BlockTrainer(Perplexity, SFTTrainer):
    """SFTTrainer on blocks of packed documents.

    Args:
        stream: The blocks to train on; None if `train_dataset` holds them.
        keys: What the order of the stream hangs on; a checkpoint with other values is refused.
        **kwargs: SFTTrainer's.
    """

    def __init__(self, stream: BlockStream | None, keys: dict, **kwargs):
        super().__init__(data_collator=PackedCollator(kwargs["processing_class"].pad_token_id), **kwargs)
        self.data_collator.padding_free = in_one_row(self.model.config)
        self.args.include_num_input_tokens_seen = "all"  # there is no padding
        self.stream, self.stream_keys = stream, keys
        self.position = self.resumed_from = None

    def train(self, resume_from_checkpoint=None, **kwargs):
        if self.stream is not None:
            self.args.ignore_data_skip = True  # the stream itself returns to its place
            self.resumed_from = resume_from_checkpoint
            if resume_from_checkpoint:
                self.stream.resume(read_position(Path(resume_from_checkpoint), self.stream_keys))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self):
        if self.stream is None:
            return super().get_train_dataloader()
        return self._get_dataloader(self.stream, "Training", self._train_batch_size, is_training=True)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns.append("position")

    def training_step(self, model, inputs, *args):
        if self.stream is not None:
            self.position = inputs.pop("position")
            if self.resumed_from:  # making the data loader has drawn a random number
                self._load_rng_state(self.resumed_from)
                self.resumed_from = None
        return super().training_step(model, inputs, *args)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        if self.stream is not None and self.args.should_save:
            state = decode_position(self.position)
            # This process has the last block of its own batch; the batches of those after it come next in the stream
            others = self.args.world_size - 1 - self.args.process_index
            state["blocks"] += others * self._train_batch_size
            state["keys"] = self.stream_keys
            Path(output_dir, STREAM_FILE).write_text(json.dumps(state), encoding="utf-8")


def read_position(folder: Path, keys: dict) -> dict:
    """The place in the stream that a checkpoint holds.

    Raises:
        RecipeError: It holds none, or that of another stream.
    """
    path = folder / STREAM_FILE
    if not path.exists():
        raise RecipeError(
            f"{path} is missing: the checkpoint is of a run without `dataset_streaming`; start over with "
            "`resume_from_checkpoint: false`, or with another output_dir"
        )
    state = json.loads(path.read_text(encoding="utf-8"))
    for key, before in state.pop("keys").items():
        if keys.get(key) != before:
            raise RecipeError(
                f"`{key}: {keys.get(key)}`, but the stream of {folder} was made with {before}: set it back, or train "
                "on from the saved model (`model_name_or_path`) in another output_dir"
            )
    return state


def main(argv: list[str]) -> dict[str, float]:
    """Run the stage.

    Args:
        argv: Such as `["--config", "pretrain.yaml", "--seed", "1"]`.

    Returns:
        The trainer's metrics.

    Raises:
        RecipeError: The run cannot work; raised before the model is made.
    """
    args, training_args, model_args, values = recipe.read((PretrainArguments, SFTConfig, ModelConfig), argv, check)
    check_machine(values)
    stage.set_up()
    if args.config_name:
        tokenizer = stage.load_tokenizer(model_args, None, training_args.trust_remote_code, args.tokenizer_name)
        config = new_config(args.config_name, tokenizer)
    else:
        config = stage.load_config(model_args, training_args.trust_remote_code)
        tokenizer = stage.load_tokenizer(model_args, config, training_args.trust_remote_code, args.tokenizer_name)
    tokenizer.padding_side = "right"
    length = training_args.max_length
    config = with_rope(config, args.rope_parameters, length)

    rows, stream, keys = load_documents(args, training_args, args.dataset_train_split), None, {}
    if isinstance(rows, IterableDataset):
        seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
        seed = seed if training_args.shuffle_dataset else None
        keys = {name: values[name] for name in STREAM_KEYS}
        stream = BlockStream(rows, tokenizer, length, training_args.dataset_text_field, args.shuffle_window, seed)
        log.info("schedule: %s", plan(training_args, training_args.max_steps))
    else:
        if training_args.shuffle_dataset:
            rows = rows.shuffle(seed=training_args.seed)
        rows = packed(rows, tokenizer, training_args)
        steps = optimizer_steps(training_args, len(rows))
        log.info("%d blocks of %d tokens; schedule: %s", len(rows), length, plan(training_args, steps))
    evaluation = None
    if training_args.eval_strategy != "no":
        evaluation = evaluation_blocks(args, training_args, tokenizer)
    resume_from = stage.resume_point(training_args)
    if metrics := stage.finished(training_args, resume_from):
        return metrics
    if stream is not None and resume_from:
        read_position(Path(resume_from), keys)
    stage.record(values, resume_from)

    if args.config_name:
        model = stage.new_model(model_args, training_args, config)
    else:
        model = stage.load_model(model_args, training_args, config, changed=bool(args.rope_parameters))
    training_args.dataset_kwargs = {"skip_prepare_dataset": True}  # blocks are ready for the trainer
    training_args.packing = training_args.padding_free = False
    trainer = BlockTrainer(
        stream,
        keys,
        model=model,
        args=training_args,
        train_dataset=rows,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        **stage.adapters(model_args, config),
    )
    Throughput.add_to(trainer, length)
    return stage.train(trainer, args, "pretrain", resume_from)


def check(values: dict) -> None:
    """`check_values`, and what only pretraining refuses."""
    if values["config_name"] and values["model_name_or_path"]:
        raise RecipeError(
            "`config_name` starts from random weights and `model_name_or_path` from trained ones: set one of them"
        )
    if values["config_name"] and not values["tokenizer_name"]:
        raise RecipeError(
            "`config_name` needs `tokenizer_name`: a directory that `r1llama tokenizer` wrote, or a hub id"
        )
    check_values(values)
    if values["max_length"] is None:
        raise RecipeError("`max_length` is missing: pretraining packs documents into blocks of so many tokens")
    for key in ("shuffle_window", "max_eval_blocks"):
        if values[key] is not None and values[key] <= 0:
            raise RecipeError(f"`{key}: {values[key]}` must be above 0")
    for key in ("assistant_only_loss", "completion_only_loss"):
        if values[key]:
            raise RecipeError(f"`{key}: true` belongs to SFT: pretraining learns every token")


def new_config(name: str, tokenizer):
    """A config as JSON, with the vocabulary and the special tokens of the tokenizer."""
    path = Path(name).expanduser()
    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        model_type = values.pop("model_type")
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"`config_name: {name}` is no JSON config with a `model_type`: {error}") from error
    if values.setdefault("vocab_size", len(tokenizer)) < len(tokenizer):
        raise RecipeError(
            f"`config_name: {name}` says `vocab_size: {values['vocab_size']}`, but the tokenizer has {len(tokenizer)} "
            "tokens: leave it out"
        )
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values[token] = getattr(tokenizer, token)
    try:
        return AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise RecipeError(f"`config_name: {name}`: {error}") from error


def load_documents(args, training_args, split: str) -> Dataset | IterableDataset:
    rows = stage.load_dataset(args, split, "text")
    if isinstance(rows, IterableDataset) and training_args.dataloader_num_workers > 1:
        raise RecipeError(
            f"`dataloader_num_workers: {training_args.dataloader_num_workers}`: each would read the stream from its "
            "beginning; set it to 1, which tokenises while the model trains, or to 0"
        )
    return rows


def packed(rows: Dataset, tokenizer, training_args) -> Dataset:
    with PartialState().main_process_first():
        try:
            return pack(rows, tokenizer, training_args.max_length, training_args.dataset_text_field)
        except DataError as error:
            raise RecipeError(f"`dataset_name`: {error}") from error


def evaluation_blocks(args, training_args, tokenizer) -> Dataset:
    rows, most = load_documents(args, training_args, args.dataset_test_split), args.max_eval_blocks
    if isinstance(rows, Dataset):
        blocks = packed(rows, tokenizer, training_args)
        return blocks if most is None else blocks.select(range(min(most, len(blocks))))
    if most is None:
        raise RecipeError("`eval_strategy` on a stream: set `max_eval_blocks`, how much of it to evaluate on")
    packer, text_field = Packer(training_args.max_length), training_args.dataset_text_field
    documents = (ids for row in rows for ids in tokenise([row[text_field]], tokenizer))
    blocks = list(islice((block for ids in documents for block in packer.add(ids)), most))
    if not blocks:
        raise RecipeError(f"`dataset_test_split: {args.dataset_test_split}` has too few tokens for one block")
    return Dataset.from_list(blocks)


if __name__ == "__main__":
    stage.run(main)
