"""What every stage's trainer does so that nothing is lost."""

import os
import shutil
from pathlib import Path

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from trl.trainer.utils import RepeatSampler

from r1llama.training.checkpoint import (
    DRAFTS,
    checkpoints,
    publish,
    publish_model,
    remove,
    set_aside,
    why_incomplete,
)
from r1llama.training.recipe import RecipeError
from r1llama.training.stopping import RunStopped, disk_watched, log, why_not_finite


class DurableTrainer:
    """Put in front of any `transformers.Trainer`'s class by `DurableTrainer.adopt(trainer)`:

    - checkpoints and the final model are written aside, forced to disk and renamed (`r1llama.training.checkpoint`);
      every process writes its own part, one publishes the whole;
    - old checkpoints go (`keep`) once a newer one is complete;
    - a full disk ends the run with one message;
    - a loss or gradient that is not finite ends it before the weights change;
    - resumed at its last step, it takes no further one; resumed with the weights of another model, it refuses.

    `keep` is how many checkpoints stay, None for all; `about` is what the marker of each says beside its step.
    """

    keep: int | None = None
    about: dict = {}
    _is_drafting = False

    @classmethod
    def adopt(cls, trainer, **about) -> None:
        """Make a trainer durable, before it trains."""
        trainer.__class__ = type(type(trainer).__name__, (cls, type(trainer)), {})
        trainer.about = about
        # Trainer's own rotation would run before the new checkpoint is complete, and its filter replaces a loss that
        # is not finite by the mean of the others.
        trainer.keep, trainer.args.save_total_limit = trainer.args.save_total_limit, None
        trainer.args.logging_nan_inf_filter = False
        trainer.add_callback(_SetAside())

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, DRAFTS) if self._is_drafting else folder

    def _save_checkpoint(self, model, trial):
        output_dir = Path(self._get_output_dir(trial))
        folder = output_dir / f"checkpoint-{self.state.global_step}"
        draft = output_dir / DRAFTS / folder.name
        with disk_watched(output_dir, f"saving {folder.name}"):
            self._is_drafting = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._is_drafting = False
            if Path(self.state.best_model_checkpoint or "") == draft:
                self.state.best_model_checkpoint = str(folder)
                if self.args.should_save:
                    self.state.save_to_json(draft / TRAINER_STATE_NAME)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if (output_dir / "recipe.yaml").exists():
                    shutil.copy(output_dir / "recipe.yaml", draft)
                publish(
                    draft,
                    folder,
                    {
                        "step": self.state.global_step,
                        "processes": self.args.world_size,
                        "sharded_by": "deepspeed" if self.is_deepspeed_enabled else None,
                        "model_only": self.args.save_only_model,
                        **self.about,
                    },
                )
                self._rotate(output_dir)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(folder))

    def _push_from_checkpoint(self, checkpoint_folder):
        """Later, when the checkpoint has its name."""

    def _rotate(self, output_dir: Path) -> None:
        if not self.keep:
            return
        complete = [folder for _, folder in checkpoints(output_dir) if why_incomplete(folder, digests=False) is None]
        for folder in complete[self.keep :]:
            if folder != Path(self.state.best_model_checkpoint or ""):
                remove(folder)

    def save_model(self, output_dir=None, _internal_call=False):
        if self._is_drafting:
            return super().save_model(output_dir, _internal_call)
        folder = Path(output_dir or self.args.output_dir)
        draft = folder / DRAFTS / "model"
        with disk_watched(folder, "saving the model"):
            super().save_model(str(draft), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save and draft.exists():
                publish_model(draft, folder)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _load_from_checkpoint(self, checkpoint, model=None):
        try:
            super()._load_from_checkpoint(checkpoint, model)
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            raise RecipeError(f"{checkpoint} holds the weights of another model: {error}") from error

    def _issue_warnings_after_load(self, result):
        tied = getattr(self.model, "all_tied_weights_keys", {})
        strange = [name for name in result.missing_keys if name not in tied] + result.unexpected_keys
        if strange:
            raise RecipeError(
                f"the checkpoint holds the weights of another model: {strange[0]} is not in both. "
                "`resume_from_checkpoint: false` starts over"
            )

    def _get_train_sampler(self, *args, **kwargs):
        sampler = super()._get_train_sampler(*args, **kwargs)
        return _OrderOfTheEpoch(sampler, self) if isinstance(sampler, RepeatSampler) and sampler.shuffle else sampler

    def _load_best_model(self):
        best = Path(self.state.best_model_checkpoint)
        if reason := why_incomplete(best):
            raise RunStopped(f"`load_best_model_at_end`: {best}: {reason}; the last model is in the newest checkpoint")
        super()._load_best_model()

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss).all():
            self._refuse(f"the loss is {loss.item()}")
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        scaler = getattr(self.accelerator, "scaler", None)  # a scaler skips such steps, and grows more careful
        if norm is not None and scaler is None and not torch.isfinite(torch.as_tensor(norm)).all():
            self._refuse(f"the gradient's norm is {float(norm)}")
        return norm

    def _refuse(self, what: str):
        raise RunStopped(why_not_finite(self.model, what, self.args, self.state.global_step + 1))

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            self._load_rng_state(kwargs["resume_from_checkpoint"])  # for what comes after training
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)


class _OrderOfTheEpoch(Sampler):
    """TRL's `RepeatSampler`, whose generator runs on from epoch to epoch: a resumed run would take the first epoch's
    order again. Here seed and epoch make the order; the first epoch's is TRL's."""

    def __init__(self, sampler: RepeatSampler, trainer):
        self.sampler, self.trainer = sampler, trainer

    def __len__(self):
        return len(self.sampler)

    def __iter__(self):
        self.sampler.generator.manual_seed(self.sampler.seed + int(self.trainer.state.epoch or 0))
        return iter(self.sampler)


class _SetAside(TrainerCallback):
    """What another run left beyond this one's first step is not taken for this one's."""

    def on_train_begin(self, args, state, control, **kwargs):
        if not args.should_save:
            return
        output_dir = Path(args.output_dir)
        if (output_dir / DRAFTS).exists():
            log.info("removing what an interrupted save left in %s", output_dir / DRAFTS)
            shutil.rmtree(output_dir / DRAFTS)
        for step, folder in checkpoints(output_dir):
            if step > state.global_step:
                aside = set_aside(folder)
                log.warning(
                    "%s lies beyond step %d, where this run begins: now it is called %s; yours to delete",
                    folder,
                    state.global_step,
                    aside.name,
                )
