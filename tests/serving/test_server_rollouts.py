"""GRPO with `vllm_mode: server`: the weights that arrive, and what becomes of a run whose server does not answer."""

import contextlib
import signal
import threading
import time

import pytest
import torch

from r1llama import R1LlamaConfig, R1LlamaForCausalLM
from tests.training.conftest import argv, byte_tokenizer, json_lines, weights, write_jsonl

pytest.importorskip("vllm")

from r1llama.training import grpo, vllm_client
from r1llama.training.checkpoint import checkpoints
from r1llama.training.recipe import RecipeError
from r1llama.training.stopping import RunStopped

from .conftest import assert_follows_the_model
from .models import BASE, EXPERTS, LATENT
from .server import Server, free_port

DIFFERENCE = "sampling/sampling_logp_difference/max"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`model`: latent attention, experts, tied embeddings; `problems.jsonl`."""
    folder = tmp_path_factory.mktemp("rollouts")
    tokenizer = byte_tokenizer()
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    switches = (
        LATENT | EXPERTS | {"tie_word_embeddings": True, "initializer_range": 0.05, "router_bias_update_rate": 0.05}
    )
    torch.manual_seed(0)
    R1LlamaForCausalLM(R1LlamaConfig(**BASE | switches | ids)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_jsonl(folder / "problems.jsonl", [{"prompt": f"{a}+{b}="} for a in range(4) for b in range(4)])
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with Server(folder / "model", folder / "server.txt", "--rollouts", "--enable-return-routed-experts") as server:
        yield server.wait()


@pytest.fixture
def recipe(folder, server, tmp_path):
    return {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "problems.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "reward_funcs": ["tests.training.rewards.letter_share"],
        "max_steps": 3,
        "save_steps": 100,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 24,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": server.url,
        "vllm_server_timeout": 5,
    }


def logs(out):
    return [log for log in json_lines(out / "metrics.jsonl") if DIFFERENCE in log]


@contextlib.contextmanager
def once_steps_are_done(out, steps, act):
    """Calls `act` from another thread, while the run goes on."""

    def watch():
        path = out / "metrics.jsonl"
        while not (path.exists() and len(path.read_text().splitlines()) >= steps):
            if over.wait(0.02):
                return
        act()

    over = threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_every_weight_arrives_and_updates_follow_the_engine(recipe, tmp_path, replayed):
    grpo.main(argv(recipe, tmp_path / "recipe.yaml"))
    differences = [log[DIFFERENCE] for log in logs(tmp_path / "out")]
    assert len(differences) == 3
    assert max(differences) < 1e-4
    biases = [bias for name, bias in weights(tmp_path / "out").items() if name.endswith("e_score_correction_bias")]
    assert biases
    assert all(bias.abs().max() > 0.01 for bias in biases)  # they move by 0.05 a step, to and fro
    assert_follows_the_model(replayed)


def test_a_server_that_hangs_ends_the_run_and_the_same_command_continues(recipe, server, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_client, "PATIENCE", 2.0)
    monkeypatch.setattr(vllm_client, "PROBE", 0.5)
    command = argv(recipe | {"max_steps": 6}, tmp_path / "recipe.yaml")
    with (
        once_steps_are_done(tmp_path / "out", 2, lambda: server.signal(signal.SIGSTOP)),
        pytest.raises(RunStopped, match=f"{server.url} has shown no sign of life") as stopped,
    ):
        grpo.main(command)
    done = len(logs(tmp_path / "out"))
    assert f"last finished step was {done} of 6, and checkpoint-{done} holds it" in str(stopped.value)
    assert stopped.value.status == 1
    assert checkpoints(tmp_path / "out")[0][0] == done
    with pytest.raises(RecipeError, match=r"no server at .* within `vllm_server_timeout: 1`"):
        grpo.main(argv(recipe | {"max_steps": 6, "vllm_server_timeout": 1}, tmp_path / "recipe.yaml"))
    server.signal(signal.SIGCONT)
    grpo.main(command)
    differences = [log[DIFFERENCE] for log in logs(tmp_path / "out")]
    assert len(differences) == 6
    assert max(differences) < 1e-4


def test_adapters_are_merged_on_the_way(recipe, tmp_path):
    recipe |= {"use_peft": True, "lora_target_modules": ["q_a_proj", "o_proj"], "lora_r": 4, "lora_dropout": 0.0}
    grpo.main(argv(recipe, tmp_path / "recipe.yaml"))
    assert max(log[DIFFERENCE] for log in logs(tmp_path / "out")) < 1e-4
    adapters = weights(tmp_path / "out", "adapter_model")
    assert all(adapter.any() for adapter in adapters.values())


def test_a_server_that_takes_no_weights_is_refused(recipe, monkeypatch):
    monkeypatch.setattr(vllm_client, "RELOAD", "another")
    client = vllm_client.RolloutClient(recipe["vllm_server_base_url"])
    with pytest.raises(RecipeError, match="r1llama serve MODEL --rollouts"):
        client.init_communicator("cpu")


def test_what_a_server_refuses_is_said(recipe, tmp_path):
    command = argv(recipe | {"generation_kwargs": {"logit_bias": {"100000": 1.0}}}, tmp_path / "recipe.yaml")
    with pytest.raises(RunStopped, match=r"answered 400: .*logit_bias"):
        grpo.main(command)


def test_a_server_that_is_killed_ends_the_run_at_once(recipe, server, tmp_path):
    killed = []

    def kill():
        killed.append(time.monotonic())
        server.signal(signal.SIGKILL)

    with (
        once_steps_are_done(tmp_path / "out", 1, kill),
        pytest.raises(RunStopped, match=f"{server.url} went away"),
    ):
        grpo.main(argv(recipe | {"max_steps": 50}, tmp_path / "recipe.yaml"))
    assert time.monotonic() - killed[0] < 20
    assert checkpoints(tmp_path / "out")[0][0] == len(logs(tmp_path / "out"))


def test_no_server(recipe, tmp_path):
    recipe |= {"vllm_server_base_url": f"http://127.0.0.1:{free_port()}", "vllm_server_timeout": 0}
    with pytest.raises(RecipeError, match="start it with `r1llama serve MODEL --rollouts`"):
        grpo.main(argv(recipe, tmp_path / "recipe.yaml"))
