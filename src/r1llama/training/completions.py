"""What the policy writes while it learns: a Parquet table of its rollouts every so many steps."""

import json
import math
import os
import re
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet
from transformers import TrainerCallback

from r1llama.training.stopping import disk_watched


class CompletionTables(TrainerCallback):
    """Every `every` steps, the newest rollouts as `completions_{step:05d}.parquet`, the name and the columns of TRL's
    own `log_completions`: step, prompt, completion, each reward before its weight (null: cannot be judged), whatever
    the rewards tell with `log_extra`, advantage. `datasets.load_dataset("parquet", data_dir=folder)` reads them all.

    A table is written aside and renamed, so that none is ever torn. A resumed run first removes those beyond its
    checkpoint.

    Args:
        folder: Where the tables go.
        every: In optimizer steps.
        trainer: The `GRPOTrainer`, whose own log buffers are read (already gathered from all processes).
    """

    def __init__(self, folder: Path, every: int, trainer):
        self.folder, self.every, self.trainer = folder, every, trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            named = re.fullmatch(r"completions_(\d+)\.parquet(\.part)?", path.name)
            if named and (named[2] or int(named[1]) > state.global_step):
                path.unlink()

    def on_step_end(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or state.global_step % self.every:
            return
        logs = self.trainer._logs
        count = len(logs["prompt"])
        table = pa.table(
            {
                "step": pa.array([state.global_step] * count, pa.int64()),
                "prompt": pa.array(list(logs["prompt"])),
                "completion": pa.array(list(logs["completion"])),
                **{name: _numbers(rewards) for name, rewards in logs["rewards"].items()},
                **{name: _values(values) for name, values in logs["extra"].items()},
                "advantage": _numbers(logs["advantages"]),
            }
        )
        path = self.folder / f"completions_{state.global_step:05d}.parquet"
        draft = path.with_name(path.name + ".part")
        with disk_watched(Path(args.output_dir), f"writing {path.name}"), open(draft, "wb") as file:
            parquet.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)


def _numbers(values) -> pa.Array:
    return pa.array([None if math.isnan(value) else value for value in values], pa.float64())


def _values(values) -> pa.Array:
    """As pyarrow reads them; a column without any value as text, so that all tables agree; a mixed one as JSON."""
    values = list(values)
    try:
        return pa.array(values, pa.string() if all(value is None for value in values) else None)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([json.dumps(value, ensure_ascii=False, default=str) for value in values], pa.string())
