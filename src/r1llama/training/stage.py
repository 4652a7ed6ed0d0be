"""What both stages share: arguments, data, model and tokenizer, resuming, and the final save."""

import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerState, set_seed
from transformers.trainer_pt_utils import get_model_param_count
from trl import get_peft_config, get_quantization_config
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

import r1llama  # noqa: F401  (registers the architecture with the Auto classes)
from r1llama.data.chat import TEMPLATES, special_tokens, template_path
from r1llama.data.loading import DataError, looks_local
from r1llama.data.tokenizer import end_of_turn
from r1llama.model import lora_targets
from r1llama.training import recipe
from r1llama.training.callbacks import AuxiliaryLosses, MetricsFile, RouterBalancing
from r1llama.training.checkpoint import about, newest_complete, replace_text, why_unusable
from r1llama.training.checks import check_space
from r1llama.training.continuity import check_data, check_recipe, data_identity
from r1llama.training.dataset import DataArguments, load_dataset, sources_of  # noqa: F401  (stages load through this)
from r1llama.training.durable import DurableTrainer
from r1llama.training.optimizers import Muon, param_groups
from r1llama.training.recipe import RecipeError
from r1llama.training.stopping import RunStopped, StopSignals, disk_watched

log = logging.getLogger("r1llama")

PAD_CANDIDATES = ["<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|endoftext|>", "<unk>"]


@dataclass
class StageArguments(DataArguments):
    """The keys of a training recipe that neither TRL's config nor its `ModelConfig` has."""

    log_completions_steps: int | None = field(
        default=None,
        metadata={"help": "Write sample completions to output_dir/completions/ every so many optimizer steps."},
    )
    muon: bool = field(
        default=False,
        metadata={
            "help": "Train the matrices with Muon, the rest with AdamW; `learning_rate`, `weight_decay` and the "
            "schedule mean the same as with AdamW alone. Not with adapters, ZeRO or FSDP."
        },
    )
    rope_parameters: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "For a longer context, over the model's own: `{rope_type: yarn, factor: 4.0}` makes it four times "
            "that of the pretraining. Saved with the model. Read by pretrain and sft."
        },
    )


def set_up() -> None:
    """Log to stderr, from the main process only, and stay off the network unless the recipe names a hub id."""
    if "HF_HUB_DISABLE_TELEMETRY" not in os.environ:
        constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL would report each run
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO if PartialState().is_main_process else logging.ERROR)


def record(values: dict, resume_from: str | None = None) -> None:
    """Log the resolved recipe, save it where the model will lie, and compare it with that of the checkpoint.

    Raises:
        RecipeError: The run cannot continue from this checkpoint, see `r1llama.training.continuity`.
    """
    if resume_from:
        check_recipe(values, resume_from)
    if PartialState().is_main_process:
        path = Path(values["output_dir"]) / "recipe.yaml"
        recipe.save(values, path)
        path.with_name("all_results.json").unlink(missing_ok=True)  # the sign of a finished run
        log.info("recipe: %s", json.dumps(values, sort_keys=True, default=str))
    PartialState().wait_for_everyone()


def load_config(model_args, trust_remote_code: bool):
    """The model's config: cheap, and enough to refuse what cannot work."""
    name = model_args.model_name_or_path
    if looks_local(name) and not Path(name).expanduser().is_dir():
        raise RecipeError(f"`model_name_or_path: {name}` does not exist (looked at {Path(name).absolute()})")
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        raise RecipeError(
            f"`model_name_or_path: {name}` holds no config.json: if a stage writes there, it has not finished"
        )
    if (Path(name) / "recipe.yaml").exists() and not (Path(name) / "all_results.json").exists():
        log.warning("%s: a run has begun there and not finished: this is the model of the run before it", name)
    try:
        return AutoConfig.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"`model_name_or_path: {name}`: {error} A local directory needs no network.") from error


def load_tokenizer(model_args, config, trust_remote_code: bool, name: str | None = None):
    """The tokenizer, with a padding token that is not the end of sequence where the vocabulary has one to offer.

    Args:
        model_args: `model_name_or_path` and its revision.
        config: The model's, whose vocabulary must be large enough; None for a model that is yet to be made.
        trust_remote_code: Whether its own code may run.
        name: Where the tokenizer lies, if not with the model (`tokenizer_name`).
    """
    key = f"`tokenizer_name: {name}`" if name else f"`model_name_or_path: {model_args.model_name_or_path}`"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name or model_args.model_name_or_path,
            revision=None if name else model_args.model_revision,
            trust_remote_code=trust_remote_code,
            padding_side="left",
            truncation_side="left",
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"{key}: no tokenizer: {error}") from error
    if config is not None and len(tokenizer) > config.vocab_size:
        raise RecipeError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model's config `vocab_size: {config.vocab_size}`: "
            "resize the model's embeddings, or use the tokenizer that belongs to it"
        )
    if tokenizer.eos_token is None:
        raise RecipeError(
            "the tokenizer has no eos_token: the model could never stop; set it in tokenizer_config.json"
        )
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        vocabulary = tokenizer.get_vocab()
        spare = [t for t in PAD_CANDIDATES if t in vocabulary and t not in (tokenizer.eos_token, tokenizer.bos_token)]
        if spare:
            log.info("pad token: %s (was %s)", spare[0], tokenizer.pad_token)
            tokenizer.pad_token = spare[0]
        else:
            log.warning("no token to pad with but eos %s: padding is told apart by the mask", tokenizer.eos_token)
            tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def set_chat_template(training_args, tokenizer) -> None:
    """Give the tokenizer the template that `chat_template_path` names: one of `r1llama.data.chat`, or a Jinja file.
    A model directory or hub id there is left to TRL. Refuse what `assistant_only_loss` cannot learn from."""
    name = training_args.chat_template_path
    if name and (name in TEMPLATES or name.endswith((".jinja", ".j2"))):
        try:
            tokenizer.chat_template = template_path(name).read_text(encoding="utf-8")
        except DataError as error:
            raise RecipeError(f"`chat_template_path`: {error}") from error
        training_args.chat_template_path = None
        missing = [mark for mark in special_tokens(tokenizer.chat_template) if mark not in tokenizer.get_vocab()]
        if missing:
            raise RecipeError(
                f"`chat_template_path: {name}` writes {', '.join(missing)}, which the tokenizer lacks: use the "
                "template of its own family, or add them as special tokens and resize the embeddings"
            )
        if end_of_turn(tokenizer) is None:
            log.warning("`chat_template_path: %s` ends an assistant's turn in no special token", name)
    if not training_args.assistant_only_loss or training_args.chat_template_path or not tokenizer.chat_template:
        return
    if not has_generation_markers(tokenizer.chat_template):
        try:
            get_training_chat_template(tokenizer)
        except ValueError as error:
            raise RecipeError(
                "`assistant_only_loss: true` needs a chat template with {% generation %}, and TRL knows none for this "
                f"tokenizer's: set `chat_template_path` to a Jinja file, or to one of {', '.join(TEMPLATES)}"
            ) from error


def has_weights(folder: Path) -> bool:
    """Whether a model directory holds more than a config; what is no directory (a hub id) does."""
    patterns = ["*.safetensors", "pytorch_model*.bin", "adapter_config.json"]
    return not folder.is_dir() or any(next(folder.glob(pattern), None) for pattern in patterns)


def load_model(model_args, training_args, config, changed: bool = False):
    """What to hand to the trainer: a name that it loads itself, or, for a directory that holds a config but no
    weights, a model initialised from the seed. Fills in `training_args.model_init_kwargs`; with `changed`, `config`
    is not the one that lies with the weights, and replaces it."""
    if model_args.dtype == "bfloat16" and not model_args.use_peft and training_args.deepspeed_plugin is None:
        log.warning(
            "`dtype: bfloat16`: updates below 1/256 of a weight are lost; `dtype: float32` with `bf16` keeps them"
        )
    folder = Path(model_args.model_name_or_path)
    if has_weights(folder):
        training_args.model_init_kwargs = {
            "revision": model_args.model_revision,
            "attn_implementation": model_args.attn_implementation,
            "dtype": model_args.dtype,
            **({"config": config} if changed else {}),
            **(training_args.model_init_kwargs or {}),
        }
        return model_args.model_name_or_path
    if getattr(training_args, "beta", 0.0):
        raise RecipeError(f"`beta` needs a trained reference model, but {folder} holds no weights: set `beta: 0`")
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise RecipeError(f"nothing to quantise: {folder} holds no weights")
    log.info("%s holds no weights", folder)
    return new_model(model_args, training_args, config)


def new_model(model_args, training_args, config):
    """A model initialised from the seed."""
    log.info("starting from random weights, seed %d", training_args.seed)
    set_seed(training_args.seed)
    keywords = {"dtype": torch.float32 if model_args.dtype == "auto" else getattr(torch, model_args.dtype)}
    if model_args.attn_implementation:
        keywords["attn_implementation"] = model_args.attn_implementation
    return AutoModelForCausalLM.from_config(
        config,
        trust_remote_code=training_args.trust_remote_code,
        **keywords,
        **(training_args.model_init_kwargs or {}),
    )


def adapters(model_args, config) -> dict:
    """`peft_config` and `quantization_config` as the trainers take them. Without `lora_target_modules` and
    `lora_target_parameters`, an r1llama model's adapters reach what `r1llama.model.lora_targets` says."""
    is_open = model_args.lora_target_modules is None and model_args.lora_target_parameters is None
    if model_args.use_peft and is_open and config.model_type == "r1llama":
        targets = lora_targets(config)
        model_args.lora_target_modules = targets["target_modules"]
        model_args.lora_target_parameters = targets.get("target_parameters")
        log.info("adapters on %s", ", ".join(name for names in targets.values() for name in names))
    if model_args.use_peft and model_args.lora_target_parameters and model_args.lora_dropout:
        raise RecipeError(
            f"`lora_dropout: {model_args.lora_dropout}`: adapters on experts can have none: set it to 0, or set "
            "`lora_target_modules` to adapt other layers only"
        )
    if (model_args.load_in_4bit or model_args.load_in_8bit) and getattr(config, "num_experts", 0):
        log.info(
            "`load_in_4bit` and `load_in_8bit` quantise linear layers alone: fused expert tensors stay %s",
            model_args.dtype,
        )
    return {
        "peft_config": get_peft_config(model_args),
        "quantization_config": get_quantization_config(model_args),
    }


def resume_point(training_args) -> str | None:
    """The checkpoint to continue from, by `resume_from_checkpoint`: auto (or true), false, or a path. The main process
    verifies it, for all."""
    wish = str(training_args.resume_from_checkpoint)
    if wish.lower() in ("false", "none"):
        return None
    found: list[str | None] = [None, None]  # the checkpoint, and what is wrong with the one wished for
    if PartialState().is_main_process and wish.lower() in ("auto", "true"):
        folder, passed_over = newest_complete(training_args.output_dir)
        for reason in passed_over:
            log.warning("passed over %s", reason)
        log.info("resuming from %s", folder) if folder else log.info("no checkpoint to resume from: step 0")
        found = [str(folder) if folder else None, None]
    elif PartialState().is_main_process:
        found = [wish, why_unusable(Path(wish)) if Path(wish).is_dir() else "no such directory"]
    folder, reason = broadcast_object_list(found)
    if reason:
        raise RecipeError(
            f"`resume_from_checkpoint: {wish}`: {reason}; `auto` finds the newest complete one in `output_dir`, and "
            "`model_name_or_path` starts a new run from the weights of any model"
        )
    return folder


def finished(training_args, resume_from: str | None) -> dict[str, float] | None:
    """The metrics of the run, if its last step and its final save lie behind us; None if there is work left.

    The trainer cannot be asked: resumed at its last step, it takes one more.
    """
    results = Path(training_args.output_dir) / "all_results.json"
    if resume_from is None or not results.exists():
        return None
    state = TrainerState.load_from_json(os.path.join(resume_from, "trainer_state.json"))
    if training_args.max_steps > 0:
        left = training_args.max_steps - state.global_step
    else:
        left = training_args.num_train_epochs - state.epoch
    if left > 0:
        return None
    log.info("finished at step %d: nothing to do; `resume_from_checkpoint: false` starts over", state.global_step)
    return json.loads(results.read_text(encoding="utf-8"))


def train(trainer, args: StageArguments, stage: str, resume_from: str | None) -> dict[str, float]:
    """Run the trainer with the callbacks of every stage, evaluate if the recipe says so, and save.

    Returns:
        The trainer's metrics, also in `all_results.json`.
    """
    training_args = trainer.args
    output_dir = Path(training_args.output_dir)
    # Now that the model is there: weights and two moments in fp32, and the final model
    check_space(output_dir, 16 * get_model_param_count(trainer.model, trainable_only=True))
    trainer.add_callback(MetricsFile(output_dir / "metrics.jsonl"))
    identity, began = data_identity(trainer.train_dataset), 0
    if resume_from:
        check_data(identity, resume_from)
        began = about(Path(resume_from))["step"]
    DurableTrainer.adopt(trainer, data=identity)
    if trainer.model.config.model_type == "r1llama":
        trainer.callback_handler.callbacks.insert(0, AuxiliaryLosses())
    if getattr(trainer.model.config, "num_experts", 0):
        trainer.callback_handler.callbacks.insert(0, RouterBalancing())  # before those that show or send the logs
    if args.muon:
        trainer.optimizer = Muon(
            param_groups(trainer.model, training_args.weight_decay, muon=True),
            lr=training_args.learning_rate,
            betas=(training_args.adam_beta1, training_args.adam_beta2),
            eps=training_args.adam_epsilon,
        )
    decayed = trainer.get_decay_parameter_names
    # The trainer knows a norm by its name, and not those of multi-token prediction
    trainer.get_decay_parameter_names = lambda model: [
        name for name in decayed(model) if not name.endswith(("enorm.weight", "hnorm.weight"))
    ]
    with disk_watched(output_dir, "training"), StopSignals() as signals:
        trainer.add_callback(signals)
        metrics = trainer.train(resume_from_checkpoint=resume_from).metrics
    step, last = trainer.state.global_step, trainer.state.max_steps
    if signals.received and step < last:
        raise RunStopped(
            f"stopped by {signal.Signals(signals.received).name} after step {step} of {last}, with checkpoint-{step}: "
            "the same command continues",
            status=128 + signals.received,
            of_all=True,
        )
    if step == began:
        del metrics["train_loss"]  # a mean over no steps
    with disk_watched(output_dir, "the end of the run"):
        if training_args.eval_strategy != "no":
            metrics |= trainer.evaluate()
        save(trainer, args, stage)
        if training_args.push_to_hub:
            trainer.push_to_hub()
        trainer.save_state()
        if trainer.is_world_process_zero():  # last: it says that all the rest is there
            replace_text(output_dir / "all_results.json", json.dumps(metrics, indent=4, sort_keys=True))
    log.info("done: %s", output_dir)
    if getattr(training_args, "use_vllm", False):
        trainer.vllm_generation.close()
    trainer.accelerator.end_training()
    return metrics


def save(trainer, args: StageArguments, stage: str) -> None:
    """Save a directory that `from_pretrained` loads, ready to generate: cache on, stopping where training stopped."""
    model, tokenizer = trainer.model, trainer.processing_class
    model.config.use_cache = True
    if model.can_generate():  # a verifier does not
        model.generation_config.use_cache = True
        stops = model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops]
        stops = dict.fromkeys([tokenizer.eos_token_id, *stops, end_of_turn(tokenizer)])
        stops = [stop for stop in stops if stop is not None]
        model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    trainer.save_model(trainer.args.output_dir)
    hub_datasets = [source.path for source in sources_of(args) if not looks_local(source.path)]
    hub_datasets = [name for name in hub_datasets if not os.path.exists(name)]
    trainer.create_model_card(
        model_name=Path(trainer.args.output_dir).name,
        dataset_name=hub_datasets or None,
        tags=["r1llama", "reasoning", stage],
    )


def run(main) -> None:
    """Entry point of `python -m`: a refusal is one message on stderr and exit status 2, without a traceback."""
    try:
        main(sys.argv[1:])
    except RunStopped as error:
        if not error.of_all or os.environ.get("RANK", "0") == "0":
            print(f"r1llama: {error}", file=sys.stderr)
        sys.exit(error.status)
    except (RecipeError, DataError) as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(30)  # the launcher ends all processes with the first: that one is to be the one that speaks
        print(f"r1llama: {error}", file=sys.stderr)
        sys.exit(2)
