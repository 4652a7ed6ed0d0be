"""Nothing is lost: what a checkpoint, a run and an output directory survive. `benchmarks/faults` does it by chance."""

import builtins
import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from r1llama.training import checkpoint, output_lock, sft, stage
from r1llama.training.checkpoint import MARKER, newest_complete, publish, publish_model, why_incomplete
from r1llama.training.recipe import RecipeError
from r1llama.training.stopping import RunStopped, StopSignals

from .conftest import SFT_KEYS, argv, assert_same_weights, json_lines, write_jsonl


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_dir, demonstrations):
    """The output of four uninterrupted steps of SFT with a checkpoint at each, and its recipe."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = {
        "model_name_or_path": str(model_dir),
        "dataset_name": str(demonstrations),
        "output_dir": str(folder / "out"),
        "max_steps": 4,
        "save_steps": 1,
        **SFT_KEYS,
    }
    sft.main(argv(recipe, folder / "r.yaml"))
    return folder / "out", recipe


@pytest.fixture
def cut(whole, tmp_path):
    """A copy of the first two checkpoints, and the words that continue from there."""
    out = tmp_path / "out"
    for name in ("checkpoint-1", "checkpoint-2"):
        shutil.copytree(whole[0] / name, out / name)
    return out, argv(whole[1], tmp_path / "r.yaml", output_dir=str(out))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": (flip, "is damaged"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, not"),
    "emptied": (lambda path: path.write_bytes(b""), "has 0 bytes, not"),
    "deleted": (Path.unlink, "is missing"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_every_damage_to_every_file_is_found(how, whole, tmp_path):
    damage, reason = DAMAGES[how]
    names = [path.name for path in (whole[0] / "checkpoint-2").iterdir() if path.name != MARKER]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"} < set(names)
    for name in names:
        copy = shutil.copytree(whole[0] / "checkpoint-2", tmp_path / name / "checkpoint-2")
        assert why_incomplete(copy) is None
        damage(copy / name)
        assert why_incomplete(copy).startswith(name)
        assert reason in why_incomplete(copy)
        assert newest_complete(copy.parent)[0] is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 2}', '{"files": {"a": 3}}', '{"optimizer.pt": 12}'])
def test_a_damaged_marker_is_no_marker(content, whole, tmp_path):
    copy = shutil.copytree(whole[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    (copy / MARKER).write_text(content)
    assert "complete.json is damaged" in why_incomplete(copy)


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


SYSTEM_CALLS = [("replace", os), ("rename", os), ("fsync", os), ("unlink", Path), ("rmtree", shutil)]


def killed_at(nth, act, monkeypatch):
    """Run `act` and end it before its `nth` change to the disk; False if it makes fewer."""
    count = 0

    def counted(call):
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == nth:
                raise Killed
            return call(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        for name, owner in SYSTEM_CALLS:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            act()
        except Killed:
            return True
    return False


def test_a_checkpoint_killed_at_any_point_is_whole_or_absent(tmp_path, monkeypatch):
    ends = set()
    for nth in range(1, 30):
        out = tmp_path / str(nth)
        draft = out / checkpoint.DRAFTS / "checkpoint-1"
        (draft / "shards").mkdir(parents=True)
        (draft / "a.bin").write_bytes(b"a" * 1000)
        (draft / "shards" / "b.bin").write_bytes(b"b" * 1000)
        is_killed = killed_at(nth, lambda d=draft, o=out: publish(d, o / "checkpoint-1", {}), monkeypatch)
        is_there = (out / "checkpoint-1").exists()
        assert newest_complete(out) == ((out / "checkpoint-1") if is_there else None, [])
        ends.add((is_killed, is_there))
        if not is_killed:
            break
    assert ends == {(True, False), (True, True), (False, True)}


def test_a_model_killed_at_any_point_is_the_new_one_or_none(tmp_path, monkeypatch):
    """Over an older model of two shards, whose files must not be mixed with the new one's."""
    old = {"config.json": "old", "model-1-of-2.safetensors": "old", "model.safetensors.index.json": "old"}
    new = {"config.json": "new", "model.safetensors": "new", "tokenizer.json": "new"}
    for nth in range(1, 40):
        folder = tmp_path / str(nth)
        draft = folder / checkpoint.DRAFTS / "model"
        draft.mkdir(parents=True)
        for place, files in ((folder, old), (draft, new)):
            for name, text in files.items():
                (place / name).write_text(text)
        is_killed = killed_at(nth, lambda d=draft, f=folder: publish_model(d, f), monkeypatch)
        found = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
        assert "config.json" not in found or found in (old, new)
        if not is_killed:
            break
    assert found == new
    assert nth > 5


def test_a_planted_pickle_does_not_run(cut, tmp_path):
    """Even under a marker that fits it."""

    class Plant:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    out, words = cut
    newest = out / "checkpoint-2"
    torch.save({"state": Plant()}, newest / "optimizer.pt")
    assert "optimizer.pt" in why_incomplete(newest)
    (newest / MARKER).unlink()
    os.rename(newest, tmp_path / "draft")
    publish(tmp_path / "draft", newest, checkpoint.about(out / "checkpoint-1") | {"step": 2})
    assert why_incomplete(newest) is None
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        sft.main(words)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_trainer_is_refused_by_path(cut):
    out, words = cut
    (out / "checkpoint-2" / MARKER).unlink()
    with pytest.raises(RecipeError, match=r"no complete.json.*`model_name_or_path` starts a new run"):
        sft.main([*words, "--resume_from_checkpoint", str(out / "checkpoint-2")])


def test_killed_after_the_last_checkpoint_no_step_is_taken_twice(whole, tmp_path):
    out = shutil.copytree(whole[0], tmp_path / "out")
    for name in ("all_results.json", "config.json", "model.safetensors"):
        (out / name).unlink()
    metrics = sft.main(argv(whole[1], tmp_path / "r.yaml", output_dir=str(out)))
    assert_same_weights(whole[0], out)
    assert "train_loss" not in metrics
    assert [log["step"] for log in json_lines(out / "metrics.jsonl") if "loss" in log] == [1, 2, 3, 4]


def test_a_damaged_checkpoint_is_kept_and_named(cut, whole, caplog):
    out, words = cut
    flip(out / "checkpoint-2" / "optimizer.pt")
    before = (out / "checkpoint-2" / "optimizer.pt").read_bytes()
    sft.main(words)
    assert "passed over checkpoint-2: optimizer.pt is damaged" in caplog.text
    assert "now it is called checkpoint-2.aside" in caplog.text
    assert (out / "checkpoint-2.aside" / "optimizer.pt").read_bytes() == before
    assert_same_weights(whole[0], out)


def test_the_best_checkpoint_stays_and_is_loaded(sft_recipe, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        write_jsonl(data / f"{split}.jsonl", [{"prompt": f"{a}=", "completion": f"{a}"} for a in range(16)])
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_total_limit": 1}
    sft.main(argv(sft_recipe, tmp_path / "r.yaml", dataset_name=str(data), **best, **every))
    out = tmp_path / "out"
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-4"]
    state = json.loads((out / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(out / "checkpoint-1")
    assert_same_weights(out, out / "checkpoint-1")


REFUSED = {
    "optim": ("sgd", "cannot be continued so"),
    "learning_rate": (1e-2, "it would have no effect"),
    "per_device_train_batch_size": (2, r"in batches of 4 rows, and this run has batches of 2"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_recipe_that_cannot_continue_is_refused(key, cut):
    value, reason = REFUSED[key]
    _, words = cut
    with pytest.raises(RecipeError, match=reason) as refused:
        sft.main([*words, f"--{key}", str(value)])
    assert "`resume_from_checkpoint: false`" in str(refused.value)


@pytest.mark.parametrize("change", ["other layers", "another size"])
def test_the_weights_of_another_model_are_refused(change, cut, expert_dir, model_dir, tmp_path):
    start = expert_dir
    if change == "another size":
        start = shutil.copytree(model_dir, tmp_path / "start", ignore=shutil.ignore_patterns("*.safetensors"))
        config = json.loads((start / "config.json").read_text())
        (start / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(RecipeError, match="the weights of another model"):
        sft.main([*cut[1], "--model_name_or_path", str(start)])


def test_a_changed_recipe_and_dataset_are_named(cut, whole, tmp_path, caplog):
    rows = [json.loads(line) for line in Path(whole[1]["dataset_name"]).read_text().splitlines()]
    data = write_jsonl(tmp_path / "more.jsonl", rows + rows[:4])
    sft.main([*cut[1], "--dataset_name", str(data), "--lr_scheduler_type", "constant", "--logging_steps", "2"])
    assert "`lr_scheduler_type: linear` until checkpoint-2, constant now" in caplog.text
    assert "rows 16 until now, 20 from here on" in caplog.text
    assert "`logging_steps" not in caplog.text


def test_the_same_batches_in_other_pieces_continue(cut, whole):
    out, words = cut
    sft.main([*words, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"])
    assert_same_weights(whole[0], out, rtol=1e-3, atol=1e-5)


def test_another_number_of_processes_is_told_or_refused(cut, caplog):
    out, words = cut
    marker = out / "checkpoint-2" / MARKER
    known = json.loads(marker.read_text())
    marker.write_text(json.dumps(known | {"processes": 2}))
    with pytest.raises(RecipeError, match=r"batches of 8 rows, and this run has batches of 4 \(4 x 1 x 1 processes\)"):
        sft.main(words)
    marker.write_text(json.dumps(known | {"processes": 2, "sharded_by": "deepspeed"}))
    with pytest.raises(RecipeError, match="divided among 2 processes by deepspeed, and cannot be loaded by 1"):
        sft.main(words)
    marker.write_text(json.dumps(known | {"processes": 2}))
    sft.main([*words, "--gradient_accumulation_steps", "2"])
    assert "saved by 2 processes, and 1 continue" in caplog.text


def test_a_loss_that_is_no_number_ends_the_run_before_the_weights_change(cut, monkeypatch):
    out, words = cut
    step = sft.SFTTrainer.compute_loss

    def third_is_nan(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 2 else loss

    monkeypatch.setattr(sft.SFTTrainer, "compute_loss", third_is_nan)
    with pytest.raises(
        RunStopped,
        match=r"step 3: the loss is nan.*this batch did it.*checkpoint-2 is from before",
    ):
        sft.main(words)
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert not (out / "config.json").exists()


def test_weights_broken_by_an_update_are_named(sft_recipe, tmp_path):
    changes = {"learning_rate": 1e38, "max_grad_norm": 0, "optim": "sgd", "save_steps": 1}
    with pytest.raises(RunStopped, match=r"step 2: .* an update before broke the weights.*`learning_rate: 1e\+38"):
        sft.main(argv(sft_recipe, tmp_path / "r.yaml", **changes))


@contextlib.contextmanager
def files_up_to(size):
    """Writing more than `size` bytes into a file fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_disk_that_fills_up_in_a_checkpoint(name, cut, whole, monkeypatch):
    """Each file is larger than those written before it, or cut short by the limit."""
    out, words = cut
    size = (out / "checkpoint-2" / name).stat().st_size - 1
    write = sft.SFTTrainer._save_checkpoint

    def limited(self, *args):
        with files_up_to(size):
            write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(sft.SFTTrainer, "_save_checkpoint", limited)
        with pytest.raises(RunStopped, match=r"saving checkpoint-3: no space for it .* checkpoint-2 is whole"):
            sft.main(words)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["checkpoint-1", "checkpoint-2"]
    sft.main(words)
    assert_same_weights(whole[0], out)


def test_a_disk_that_fills_up_in_the_final_save(cut, whole, monkeypatch):
    out, words = cut
    save = stage.save

    def limited(*args):
        with files_up_to(4096):
            save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "save", limited)
        with pytest.raises(RunStopped, match=r"saving the model: no space for it .* checkpoint-4 is whole"):
            sft.main(words)
    assert not (out / "config.json").exists()
    assert not (out / "all_results.json").exists()
    sft.main(words)
    assert_same_weights(whole[0], out)


def test_a_disk_too_small_for_a_model_from_scratch(cut, monkeypatch):
    """Which its directory does not tell: it holds no weights."""
    monkeypatch.setattr(stage, "get_model_param_count", lambda model, trainable_only: 10**15)
    with pytest.raises(RecipeError, match="take about 15258789062: free some"):
        sft.main(cut[1])


@pytest.mark.parametrize("name", ["trainer_state.json", "all_results.json", "metrics.jsonl"])
def test_a_disk_that_fills_up_for_a_record(name, cut, whole, monkeypatch):
    """The records beside the model, too, end the run with one message and are whole in the next."""
    out, words = cut
    opened = open

    def full(path, mode="r", *args, **kwargs):
        if Path(path).parent == out and Path(path).name.startswith(name) and mode in ("w", "a"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return opened(path, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", full)
        with pytest.raises(RunStopped, match=r"(training|the end of the run): no space for it .* is whole"):
            sft.main(words)
    assert not (out / "all_results.json").exists()
    sft.main(words)
    assert_same_weights(whole[0], out)
    assert json.loads((out / "all_results.json").read_text())


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT])
def number(request):
    """A signal that is not ignored, as SIGINT is where the tests run in a shell's background."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_ends_the_run_with_a_checkpoint_that_continues(number, cut, whole, monkeypatch):
    out, words = cut
    step = sft.SFTTrainer.training_step

    def signalled(self, *args, **kwargs):
        if self.state.global_step == 2:
            os.kill(os.getpid(), number)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sft.SFTTrainer, "training_step", signalled)
        with pytest.raises(RunStopped, match=rf"stopped by {number.name} after step 3 of 4") as stopped:
            sft.main([*words, "--save_steps", "100"])
    assert stopped.value.status == 128 + number
    assert newest_complete(out)[0].name == "checkpoint-3"
    assert not (out / "config.json").exists()
    assert signal.getsignal(number) == signal.default_int_handler
    sft.main(words)
    assert_same_weights(whole[0], out)


def test_an_ignored_signal_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
    assert signals.received is None
    assert signal.getsignal(number) == signal.SIG_IGN


def test_one_run_for_one_directory(tmp_path):
    """Another process holds it; when that is killed, it is free."""
    reader, writer = os.pipe()
    other = os.fork()
    if other == 0:
        output_lock.hold(tmp_path)
        os.write(writer, b"held")
        signal.pause()
    assert os.read(reader, 4) == b"held"
    try:
        with pytest.raises(RecipeError, match=rf"is in use by process {other} on "):
            output_lock.hold(tmp_path)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    output_lock.hold(tmp_path)
    output_lock.hold(tmp_path)
    assert f"process {os.getpid()} on" in (tmp_path / "_lock").read_text()


@pytest.mark.slow
def test_every_stage_survives_kills_damage_and_a_full_disk(tmp_path):
    command = [sys.executable, "-m", "benchmarks.faults", "--quick", "--json", str(tmp_path / "rows.json")]
    subprocess.run(command, cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    for row in json.loads((tmp_path / "rows.json").read_text()):
        assert row["lost steps"] == row["unreadable"] == 0, row
        assert row["runs equal"] == row["runs"], row
        assert row["passed over"] == row["kept"] == row["then equal"] == row["corruptions"], row
        if "full disks" in row:
            assert row["one message"] == row["earlier whole"] == row["equal after"] == row["full disks"], row
