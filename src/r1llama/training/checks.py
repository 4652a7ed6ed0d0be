"""What cannot work is refused here, before the model loads: each message names the key and the cure.

- `check_values`: numbers out of range, the arithmetic of groups, missing keys (on the resolved recipe)
- `check_machine`: output directory, disk, precision, libraries
- `check_rewards`: reward columns and weights against the dataset
- `check_prompts`: chat template, tags and lengths against the tokenizer and the context
- `check_opened_thoughts`: the format reward against a chat template that opens the thought
"""

import importlib.util
import math
import os
import shutil
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import torch
from trl import GRPOConfig, is_conversational

from r1llama.rewards import FormatReward
from r1llama.rewards.text import is_prefilled
from r1llama.training.output_lock import hold
from r1llama.training.recipe import RecipeError
from r1llama.versions import declared

POSITIVE = [
    "learning_rate",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "max_completion_length",
    "max_length",
    "temperature",
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "log_completions_steps",
    "save_total_limit",
    "lora_r",
    "lora_alpha",
]
NOT_NEGATIVE = ["weight_decay", "max_grad_norm", "warmup_steps", "beta", "epsilon", "seed", "max_resamples"]
VLLM_KEYS = {
    "server": [
        "vllm_server_base_url",
        "vllm_server_host",
        "vllm_server_port",
        "vllm_server_timeout",
        "vllm_group_port",
    ],
    "colocate": [
        "vllm_gpu_memory_utilization",
        "vllm_max_model_length",
        "vllm_tensor_parallel_size",
        "vllm_enable_sleep_mode",
    ],
}
SMALLEST_DISK = 200 * 2**20


def check_values(values: dict) -> None:
    """Refuse resolved recipe values that no run can use."""
    for key in ("model_name_or_path", "output_dir"):
        if not values[key] and not (key == "model_name_or_path" and values.get("config_name")):
            raise RecipeError(f"`{key}` is missing: set it in the recipe or with --{key}")
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"`{key}: {value}` must be a finite number")
    for key in POSITIVE:
        if values.get(key) is not None and values[key] <= 0:
            raise RecipeError(f"`{key}: {values[key]}` must be above 0")
    for key in NOT_NEGATIVE:
        if values.get(key) is not None and values[key] < 0:
            raise RecipeError(f"`{key}: {values[key]}` must not be negative")
    if values["max_steps"] <= 0 and values["num_train_epochs"] <= 0:
        raise RecipeError("nothing to train: set `max_steps` or `num_train_epochs` above 0")
    if values["dataset_streaming"] and values["max_steps"] <= 0:
        raise RecipeError("`dataset_streaming: true`: a stream has no known length, so set `max_steps`")
    if values["dataset_streaming"] and "num_generations" in values:
        raise RecipeError("`dataset_streaming: true`: GRPO checks every prompt before it starts; set it to false")
    if not 0 <= values["lora_dropout"] < 1:
        raise RecipeError(f"`lora_dropout: {values['lora_dropout']}` must lie in [0, 1)")
    if (values["load_in_4bit"] or values["load_in_8bit"]) and not values["use_peft"]:
        raise RecipeError("`load_in_4bit` / `load_in_8bit` freeze the weights: set `use_peft: true` to train adapters")
    if values.get("rope_parameters") and values["use_peft"]:
        raise RecipeError(
            "`rope_parameters` belong to the model's config, which adapters (`use_peft`) are saved without: extend "
            "the context by a full training first"
        )
    if values["muon"]:
        _check_muon(values)
    recipe_says = "fp16" if values["fp16"] else "no" if values["bf16"] is False else "bf16"
    launcher_says = os.environ.get("ACCELERATE_MIXED_PRECISION", recipe_says)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and launcher_says != recipe_says:
        raise RecipeError(
            f"DeepSpeed's launch config has `mixed_precision: {launcher_says}`, but `bf16: {values['bf16']}` and "
            f"`fp16: {values['fp16']}` ask for {recipe_says}: make them agree"
        )
    if "num_generations" in values:
        _check_groups(values)
        _check_rollouts(values)
        if values["use_vllm"]:
            _check_vllm(values)


def _check_muon(values: dict) -> None:
    if values["use_peft"]:
        raise RecipeError("`muon: true` makes whole matrices orthogonal, but `use_peft` trains factors: drop one")
    sharding = {"DEEPSPEED": "deepspeed", "FSDP": "fsdp"}
    for name, key in sharding.items():
        if values[key] or os.environ.get(f"ACCELERATE_USE_{name}") == "true":
            raise RecipeError(
                f"`muon: true` needs whole matrices, but {name} shards them: set it to false, or launch with DDP"
            )
    if not str(values["optim"]).startswith("adamw_torch"):
        raise RecipeError(f"`muon: true` and `optim: {values['optim']}` name two optimizers: drop one")


def _check_groups(values: dict) -> None:
    group = values["num_generations"]
    if group < 2:
        raise RecipeError(f"`num_generations: {group}`: a completion is compared with its group, so at least 2")
    if not 0 < values["top_p"] <= 1:
        raise RecipeError(f"`top_p: {values['top_p']}` must lie in (0, 1]")
    if values["generation_batch_size"] and values["steps_per_generation"]:
        raise RecipeError("`generation_batch_size` and `steps_per_generation` say the same thing: set one of them")
    per_device, ranks = values["per_device_train_batch_size"], int(os.environ.get("WORLD_SIZE", 1))
    steps = values["steps_per_generation"] or values["gradient_accumulation_steps"]
    batch = values["generation_batch_size"] or per_device * ranks * steps
    if batch % group:
        best = math.ceil(batch / group) * group
        cure = f"set `generation_batch_size: {best}`"
        if not values["generation_batch_size"]:
            cure = f"`num_generations: {_near_divisor(batch, group)}` fits, and so does "
            if best % (ranks * steps) == 0:
                cure += f"`per_device_train_batch_size: {best // (ranks * steps)}`"
            else:
                cure += f"`steps_per_generation: {group // math.gcd(group, per_device * ranks)}`"
        raise RecipeError(
            f"a batch of {batch} completions (per_device_train_batch_size {per_device} x {ranks} processes x "
            f"{steps} steps per generation) does not divide into groups of `num_generations: {group}`: {cure}"
        )
    if batch % (per_device * ranks):
        raise RecipeError(
            f"`generation_batch_size: {batch}` must be a multiple of per_device_train_batch_size {per_device} x "
            f"{ranks} processes = {per_device * ranks}"
        )


def _check_rollouts(values: dict) -> None:
    if values["log_completions"] and values["log_completions_steps"]:
        raise RecipeError("`log_completions` and `log_completions_steps` write the same tables: set one of them")
    low = values["min_pass_rate"] or 0.0
    high = 1.0 if values["max_pass_rate"] is None else values["max_pass_rate"]
    if not 0 <= low <= high <= 1:
        raise RecipeError(f"`min_pass_rate: {low}` to `max_pass_rate: {high}` must be a band within 0 to 1")
    length, cache = values["max_completion_length"], values["soft_punish_cache"]
    if not 0 <= cache <= length:
        raise RecipeError(f"`soft_punish_cache: {cache}` must lie in 0 to `max_completion_length: {length}`")
    if values["sync_ref_model"] and (values["use_peft"] or not values["beta"]):
        raise RecipeError("`sync_ref_model` renews a reference model, which needs `beta` above 0 and no `use_peft`")
    if not values["max_resamples"]:
        return
    for key, compares in (("scale_rewards", "batch"), ("multi_objective_aggregation", "normalize_then_sum")):
        if values[key] == compares:
            raise RecipeError(
                f"`max_resamples` mixes groups of several generations, but `{key}: {compares}` compares the groups of "
                f"one: change `{key}`, or set `max_resamples: 0`"
            )
    steps = values["steps_per_generation"] or values["gradient_accumulation_steps"]
    rollouts = values["per_device_train_batch_size"] * steps
    if values["generation_batch_size"]:
        rollouts = values["generation_batch_size"] // int(os.environ.get("WORLD_SIZE", 1))
    if rollouts % values["num_generations"]:
        raise RecipeError(
            f"`max_resamples` replaces whole groups, but each process generates {rollouts} completions: make that a "
            f"multiple of `num_generations: {values['num_generations']}`, or set `max_resamples: 0`"
        )


def _check_vllm(values: dict) -> None:
    mode = values["vllm_mode"]
    if mode not in ("colocate", "server"):
        raise RecipeError(f"`vllm_mode: {mode}` must be colocate or server")
    defaults = {field.name: field.default for field in fields(GRPOConfig)}
    for key in VLLM_KEYS["server" if mode == "colocate" else "colocate"]:
        if values[key] != defaults[key]:
            cure = (
                "`vllm_mode: server`" if mode == "colocate" else "the flag of the same name when you start the server"
            )
            raise RecipeError(f"`{key}: {values[key]}` means nothing with `vllm_mode: {mode}`: use {cure}")
    if not 0 < values["vllm_gpu_memory_utilization"] <= 1:
        raise RecipeError(
            f"`vllm_gpu_memory_utilization: {values['vllm_gpu_memory_utilization']}` must lie in (0, 1]: a share of "
            "the memory of one GPU, beside what training takes"
        )
    if values["load_in_4bit"] or values["load_in_8bit"]:
        raise RecipeError(
            "`use_vllm: true` sends merged weights to vLLM, and rounding them to 4 or 8 bits again would make another "
            "policy of them: set `use_vllm: false`, or train adapters over 16-bit weights"
        )


def _near_divisor(batch: int, group: int) -> int:
    """The divisor of `batch`, at least 2, nearest to `group`."""
    return min((d for d in range(2, batch + 1) if batch % d == 0), key=lambda d: abs(d - group), default=batch)


def check_machine(values: dict) -> None:
    """Refuse what this machine cannot do. Makes the output directory, and holds it for this run."""
    folder = Path(values["output_dir"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RecipeError(f"`output_dir: {folder}` cannot be written: {error.strerror}") from error
    hold(folder)
    start = values["model_name_or_path"]
    weights = sum(path.stat().st_size for path in Path(start).glob("*.safetensors")) if start else 0
    check_space(folder, max(SMALLEST_DISK, 4 * weights))
    cuda = torch.cuda.is_available() and not values["use_cpu"]
    if values["bf16"] and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RecipeError(f"`bf16: true`: {torch.cuda.get_device_name()} has none; set `bf16: false` and `fp16: true`")
    if values["load_in_4bit"] or values["load_in_8bit"]:
        _need("bitsandbytes", "`load_in_4bit` / `load_in_8bit`", "quant")
    if values.get("use_vllm") and values["vllm_enable_sleep_mode"] and not cuda:
        raise RecipeError(
            "`vllm_enable_sleep_mode: true` frees the memory of a GPU, and here is none: set it to false"
        )


def check_space(folder: Path, need: int) -> None:
    """Refuse a disk with less than `need` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise RecipeError(
            f"`output_dir: {folder}` has {free / 2**20:.0f} MiB left; a checkpoint with its optimizer and the final "
            f"model take about {need / 2**20:.0f}: free some, or point output_dir elsewhere"
        )


def _need(package: str, key: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise RecipeError(f"{key} needs {package}: `pip install 'r1llama[{extra}]'`, or switch it off")
    requirement = declared().get(package)
    for name in metadata.packages_distributions().get(package, []) if requirement else []:
        version = metadata.version(name)
        if not requirement.specifier.contains(version, prereleases=True):
            raise RecipeError(f"{key}: {name} {version} is outside the tested range {requirement.specifier}")


def check_rewards(names: list[str], weights: list[float] | None, needed: list[set[str]], columns: list[str]) -> None:
    """Refuse rewards that lack a weight or a dataset column.

    Args:
        names: Reward names, for the message.
        weights: `reward_weights`, or None for all 1.
        needed: The columns that each reward asks for.
        columns: The dataset's columns.
    """
    if weights is not None and len(weights) != len(names):
        raise RecipeError(f"`reward_weights` has {len(weights)} numbers for {len(names)} rewards: {', '.join(names)}")
    for name, asked in zip(names, needed, strict=True):
        missing = sorted(set(asked) - set(columns))
        if missing:
            raise RecipeError(
                f"reward `{name}` needs the column `{missing[0]}`, but the dataset has {', '.join(columns)}: rename a "
                "column, or set `task` so that rows become `prompt` and `solution`"
            )


def check_prompts(rows, tokenizer, config, completion_length: int, template_keywords: dict | None = None) -> int:
    """Refuse prompts that the tokenizer cannot render, or that leave no room for the completion.

    Args:
        rows: Dataset with a `prompt` column.
        tokenizer: The tokenizer.
        config: The model's config; `max_position_embeddings` is the context in tokens.
        completion_length: `max_completion_length`, in tokens.
        template_keywords: `chat_template_kwargs`.

    Returns:
        Tokens of the longest prompt.
    """
    if "prompt" not in rows.column_names:
        raise RecipeError(
            f"the dataset has no column `prompt`, but {', '.join(rows.column_names)}: rename one, or set `task`"
        )
    kind = type(rows[0]["prompt"])
    for index, prompt in enumerate(rows["prompt"]):
        if not prompt or not isinstance(prompt, kind):
            raise RecipeError(
                f"row {index} (from 0) has the prompt {prompt!r}: each row needs one, as text or as chat messages, "
                f"and row 0 has a {kind.__name__}"
            )
    check_chat_template(rows[0], tokenizer)
    hidden = [tag for tag in ("<think>", "</think>", "<answer>", "</answer>") if tag in tokenizer.all_special_tokens]
    if hidden:
        raise RecipeError(
            f"{hidden[0]} is a special token: rollouts are decoded without special tokens, so no reward would ever "
            f"see it. Add it with `tokenizer.add_tokens(..., special_tokens=False)` instead"
        )
    context = getattr(config, "max_position_embeddings", None) or math.inf
    lengths = [len(ids) for ids in _prompt_ids(rows, tokenizer, template_keywords)]
    room = context - completion_length
    too_long = [index for index, length in enumerate(lengths) if length > room]
    if too_long:
        first = too_long[0]
        raise RecipeError(
            f"{len(too_long)} of {len(lengths)} prompts do not fit, the first at row {first}: {lengths[first]} tokens "
            f"+ `max_completion_length: {completion_length}` > the model's context of {context}. Lower "
            f"`max_completion_length` or drop these rows"
        )
    return max(lengths, default=0)


def check_chat_template(row: dict, tokenizer) -> None:
    """Refuse chat messages when the tokenizer has no template to render them."""
    if is_conversational(row) and tokenizer.chat_template is None:
        raise RecipeError(
            "the dataset holds chat messages, but the tokenizer has no chat template: set `tokenizer.chat_template` "
            "in the model directory (for SFT, `chat_template_path` does it), or use plain-text prompts"
        )


def check_opened_thoughts(row: dict, tokenizer, template_keywords: dict | None, rewards: list) -> None:
    """Refuse a format reward that would miss `<think>` in every completion, because the chat template has written it
    already: the reward gets the chat messages, not what they are rendered to."""
    if not is_conversational(row):
        return
    rendered = _rendered(row["prompt"], tokenizer, template_keywords)
    for reward in rewards:
        if isinstance(reward, FormatReward) and reward.prefilled is None and is_prefilled(rendered):
            raise RecipeError(
                "the chat template opens the thought (`chat_template_kwargs`): no completion will hold <think>, and "
                "the format reward would be 0: in `reward_funcs`, write `{name: format, prefilled: true}` for `format`"
            )


def _rendered(prompt: list[dict], tokenizer, template_keywords: dict | None) -> str:
    return tokenizer.apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=True, **(template_keywords or {})
    )


def _prompt_ids(rows, tokenizer, template_keywords):
    prompts = rows["prompt"]
    if is_conversational(rows[0]):
        prompts = [_rendered(prompt, tokenizer, template_keywords) for prompt in prompts]
        return tokenizer(prompts, add_special_tokens=False)["input_ids"]
    return tokenizer(list(prompts))["input_ids"]
