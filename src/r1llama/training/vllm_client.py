"""The trainer's side of `vllm_mode: server`: TRL's client, for a run that ends well when its server does not.

Where TRL tries again, and then perhaps samples from the first weights of a server that was started anew, this client
stops the run; where TRL waits for an answer without end, it asks every few seconds whether the server lives.
"""

import base64
import io
import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterator

import numpy as np
import requests
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from r1llama.training.recipe import RecipeError
from r1llama.training.stopping import RunStopped

log = logging.getLogger("r1llama")

CONNECT, PROBE = 10.0, 5.0  # seconds: to connect; for a sign of life, and between two
PATIENCE = 60.0  # seconds without a sign of life, after which a request is given up
RELOAD = "r1llama.serving.transfer.FileReload"
ROUTING = "r1llama.serving.routing.RoutingWorker"  # on a CPU
COMMAND = "r1llama serve MODEL --rollouts"


class ServerLost(RunStopped):
    """The server did not do what a running one does. The message names it, and says why."""


class RolloutClient(VLLMClient):
    """Differs from TRL's in that

    - no request is sent again, and none waits longer than `PATIENCE` for a server that shows no sign of life;
    - weights go as a file where trainer or server has no CUDA.

    Args:
        base_url: Such as `http://localhost:8000`.
        group_port: Of the NCCL group.
        connection_timeout: Seconds for the server to come up.

    Raises:
        RecipeError: It did not, or serves in a way that no trainer can use.
        ServerLost: It went away, or refused a request.
    """

    def __init__(self, base_url: str, group_port: int = 51216, connection_timeout: float = 0.0):
        super().__init__(base_url, group_port=group_port, connection_timeout=connection_timeout)
        self.session = requests.Session()
        self.session.headers["Connection"] = "close"  # a kept one may be closed by the server as it is used again
        self.info = self.get_server_info()
        self.is_by_file = True
        self.folder = tempfile.TemporaryDirectory(prefix="r1llama-weights-")

    def check_server(self, total_timeout: float = 0.0, retry_interval: float = 2.0):
        end = time.monotonic() + total_timeout
        while not self.is_alive():
            if time.monotonic() > end:
                raise RecipeError(
                    f"`vllm_mode: server`: no server at {self.base_url} within `vllm_server_timeout: "
                    f"{total_timeout:g}` seconds: start it with `{COMMAND}`"
                )
            time.sleep(retry_interval)

    def is_alive(self) -> bool:
        try:
            return requests.get(f"{self.base_url}/health", timeout=PROBE).status_code == 200
        except requests.RequestException:
            return False

    def get_server_info(self) -> dict:
        response = self._send("GET", f"{self.base_url}/server_info", params={"config_format": "json"})
        if response.status_code == 404:
            raise RecipeError(
                f"`vllm_mode: server`: the server at {self.base_url} takes no weights: start it with `{COMMAND}`"
            )
        return self._checked(response).json()["vllm_config"]

    def _get(self, url: str, **kwargs) -> dict:
        return self._checked(self._send("GET", url, **kwargs)).json()

    def _post(self, url: str, **kwargs) -> dict:
        answer = self._checked(self._send("POST", url, **kwargs)).json()
        self.choices = answer.get("choices", [])
        return answer

    @property
    def returns_experts(self) -> bool:
        is_asked = self.info["aux_output_config"]["enable_return_routed_experts"]
        return is_asked or self.info["parallel_config"]["worker_cls"] == ROUTING

    def routed_experts(self) -> list[np.ndarray]:
        """Of the newest rollouts, `(T - 1, layers, K)` each."""
        return [np.load(io.BytesIO(base64.b64decode(choice["routed_experts"]))) for choice in self.choices]

    def _checked(self, response: requests.Response) -> requests.Response:
        if response.status_code != 200:
            raise ServerLost(
                f"the vLLM server at {self.base_url} answered {response.status_code}: {response.text.strip()[:300]}"
            )
        return response

    def _send(self, method: str, url: str, **kwargs) -> requests.Response:
        answers: queue.Queue = queue.Queue()

        def ask():
            try:
                answers.put(self.session.request(method, url, timeout=(CONNECT, None), **kwargs))
            except requests.RequestException as error:
                answers.put(error)

        threading.Thread(target=ask, daemon=True).start()
        alive = time.monotonic()
        while True:
            try:
                answer = answers.get(timeout=PROBE)
            except queue.Empty:
                if self.is_alive():
                    alive = time.monotonic()
                elif time.monotonic() - alive > PATIENCE:
                    raise ServerLost(
                        f"the vLLM server at {self.base_url} has shown no sign of life for {PATIENCE:g} seconds"
                    ) from None
                continue
            if isinstance(answer, Exception):
                raise ServerLost(f"the vLLM server at {self.base_url} went away ({type(answer).__name__})") from answer
            return answer

    def init_communicator(self, device: torch.device | str | int = 0):
        self.is_by_file = "cpu" in (torch.device(device).type, self.info["device_config"]["device"])
        extension = self.info["parallel_config"]["worker_extension_cls"]
        if extension != RELOAD if self.is_by_file else self.info["weight_transfer_config"] is None:
            raise RecipeError(
                f"`vllm_mode: server`: the server at {self.base_url} takes no weights: start it with `{COMMAND}`"
            )
        if not self.is_by_file:
            super().init_communicator(device)

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ):
        if not self.is_by_file:
            super().update_named_params(metadata, named_params)
            return
        path = os.path.join(self.folder.name, "model.safetensors")
        # Copies: a gathered parameter is gone when the next one comes
        weights = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in named_params}
        save_file(weights, path)
        try:
            self._post(f"{self.base_url}/collective_rpc", json={"method": "reload_file", "args": [path]})
        except ServerLost as error:
            if "No such file" not in str(error):
                raise
            raise RecipeError(
                f"`vllm_mode: server`: the server at {self.base_url} does not see {path}: where one of the two has no "
                "CUDA, weights go through a folder that both share; set TMPDIR to one"
            ) from error


def check_server(training_args, dtype: str, tokens: int) -> None:
    """Wait for a recipe's server, before the model loads.

    Args:
        training_args: TRL's.
        dtype: What the trainer computes in, such as `bfloat16`.
        tokens: Of the longest prompt with its completion.

    Raises:
        RecipeError: No such server, or not one for this run. On every process.
    """
    failure: list[RunStopped | RecipeError | None] = [None]
    if PartialState().is_main_process:
        try:
            _check_server(training_args, dtype, tokens)
        except (ServerLost, RecipeError) as error:
            failure = [error]
    broadcast_object_list(failure, from_process=0)
    if failure[0] is not None:
        raise failure[0]


def _check_server(training_args, dtype: str, tokens: int) -> None:
    url = training_args.vllm_server_base_url
    url = url or f"http://{training_args.vllm_server_host}:{training_args.vllm_server_port}"
    client = RolloutClient(url, connection_timeout=training_args.vllm_server_timeout)
    served = client.info["model_config"]
    if served["max_model_len"] < tokens:
        raise RecipeError(
            f"the server at {client.base_url} has a context of {served['max_model_len']} tokens, but the longest "
            f"prompt and completion have {tokens}: start it with --max-model-len {tokens}, or without"
        )
    if (precision := served["dtype"].removeprefix("torch.")) != dtype:
        log.warning(
            "the server at %s computes in %s and the trainer in %s: `sampling/kl` tells what that costs; --dtype %s "
            "makes them agree",
            client.base_url,
            precision,
            dtype,
            dtype,
        )


class ServerRollouts(VLLMGeneration):
    """Of a server, TRL's with [`RolloutClient`]; what ends the main process's part ends that of every process: the
    others would wait for it.

    Args:
        args, kwargs: As TRL's trainers give them.
    """

    def _init_vllm(self):
        if self.accelerator.is_main_process:
            url = self.server_base_url or f"http://{self.server_host}:{self.server_port}"
            self.vllm_client = RolloutClient(url, self.group_port, self.server_timeout)
            self.vllm_client.init_communicator(self.accelerator.device)
        self.accelerator.wait_for_everyone()

    def generate(self, *args, **kwargs):
        try:
            return super().generate(*args, **kwargs)
        except ServerLost as error:
            if self.accelerator.is_main_process:
                broadcast_object_list([_NoRollouts(error)], from_process=0)  # where the others wait for rollouts
            raise

    def sync_weights(self):
        failure: list[RuntimeError | ValueError | None] = [None]
        try:
            super().sync_weights()
        except (ServerLost, RecipeError) as error:
            failure = [error]
        broadcast_object_list(failure, from_process=0)
        if failure[0] is not None:
            raise failure[0]


class _NoRollouts:
    """In the place of the main process's rollouts: unpacked, it raises."""

    def __init__(self, error: ServerLost):
        self.error = error

    def __iter__(self):
        raise self.error
