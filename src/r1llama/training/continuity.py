"""Whether a run may continue from a checkpoint: the recipe, the processes and the data that the checkpoint knew."""

import hashlib
import logging
import os
from pathlib import Path

import yaml
from datasets import Dataset

from r1llama.training.checkpoint import about
from r1llama.training.recipe import RecipeError

log = logging.getLogger("r1llama")

# The checkpoint's tensors would not fit, or would mean something else.
OTHER_MODEL = {
    "config_name",
    "rope_parameters",
    "dtype",
    "use_peft",
    "use_rslora",
    "use_dora",
    "load_in_4bit",
    "load_in_8bit",
    "muon",
    "optim",
    "optim_args",
}
# The checkpoint's optimizer and schedule bring their own: the new value would do nothing.
KEPT_BY_OPTIMIZER = {"learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"}
# The place in the data is counted in batches.
OTHER_BATCHES = {"num_generations", "num_iterations"}
# Free to change: how the run is watched, saved and made fast.
FREE = {
    "output_dir",
    "resume_from_checkpoint",
    "per_device_train_batch_size",  # their product with the processes is what counts
    "gradient_accumulation_steps",
    "generation_batch_size",
    "steps_per_generation",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "push_to_hub",
    "use_cpu",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "attn_implementation",
    "batch_eval_metrics",
    "per_device_eval_batch_size",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "do_eval",
    "dataset_test_split",
    "num_completions_to_print",
    "enable_jit_checkpoint",
}
FREE_PREFIXES = ("logging_", "log_", "save_", "eval_", "hub_", "dataloader_", "vllm_", "ddp_", "trackio_", "torch_")


def check_recipe(values: dict, resume_from: str) -> None:
    """Refuse what makes resuming meaningless, and warn of what changes the run from here on.

    Args:
        values: The resolved recipe.
        resume_from: The checkpoint, complete.

    Raises:
        RecipeError: Another model, optimizer, batch, or number of ZeRO processes.
    """
    folder = Path(resume_from)
    known = about(folder)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    anew = (
        f"to start a new run from its weights, set `model_name_or_path: {folder}` and another `output_dir`; to start "
        "over, `resume_from_checkpoint: false`"
    )
    if known["processes"] != processes:
        if known["sharded_by"]:
            raise RecipeError(
                f"{folder} is divided among {known['processes']} processes by {known['sharded_by']}, and cannot be "
                f"loaded by {processes}: launch {known['processes']}, or, {anew}"
            )
        log.warning(
            "%s was saved by %d processes, and %d continue: the same batches, but other random numbers (dropout, "
            "sampling)",
            folder,
            known["processes"],
            processes,
        )
    path = folder / "recipe.yaml"
    if not path.exists():
        return
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    old, new = _batch(before, known["processes"]), _batch(values, processes)
    if old != new:
        raise RecipeError(
            f"{folder} counts its place in the data in batches of {old} rows, and this run has batches of {new} "
            f"({values['per_device_train_batch_size']} x {values['gradient_accumulation_steps']} x {processes} "
            "processes): change `per_device_train_batch_size` or `gradient_accumulation_steps` so that they agree; "
            f"{anew}"
        )
    for key in sorted(key for key in values if key in before and before[key] != values[key]):
        change = f"`{key}: {before[key]}` until {folder.name}, {values[key]} now"
        is_base = values["use_peft"] and key in ("model_name_or_path", "model_revision")
        if key in OTHER_MODEL or key in OTHER_BATCHES or key.startswith(("lora_", "bnb_")) or is_base:
            raise RecipeError(f"{change}: this checkpoint cannot be continued so. Set it back; {anew}")
        if key in KEPT_BY_OPTIMIZER:
            raise RecipeError(
                f"{change}: it would have no effect, because the checkpoint's optimizer keeps its own. Set it back; "
                f"{anew}"
            )
        if key not in FREE and not key.startswith(FREE_PREFIXES):
            log.warning("%s: the run is another one from here on", change)


def _batch(values: dict, processes: int) -> int:
    return values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * processes


def data_identity(rows) -> dict | None:
    """Number, columns and a digest of 64 rows, evenly spaced; None for streams, which nothing can count."""
    if not isinstance(rows, Dataset):
        return None
    picked = rows.select(sorted({i * len(rows) // 64 for i in range(64)})) if len(rows) else rows
    digest = hashlib.sha256("".join(str(sorted(row.items())) for row in picked.with_format(None)).encode())
    return {"rows": len(rows), "columns": sorted(rows.column_names), "sha256": digest.hexdigest()}


def check_data(identity: dict | None, resume_from: str) -> None:
    """Warn if the data are not those that the checkpoint was trained on."""
    before = about(Path(resume_from)).get("data")
    if before and identity and before != identity:
        what = [key for key in identity if key != "sha256" and before[key] != identity[key]]
        changes = ", ".join(f"{key} {before[key]} until now, {identity[key]} from here on" for key in what)
        log.warning(
            "the dataset is not the one that %s was trained on (%s): some rows may be seen twice, others never",
            resume_from,
            changes or "other rows",
        )
