"""Rollouts by vLLM: TRL's `VLLMGeneration`, with an engine that samples from exactly the policy that is trained."""

import contextlib
import copy
import importlib.metadata
import os
import re
import socket
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import GenerationConfig
from trl.generation.vllm_generation import empty_cache
from trl.trainer import grpo_trainer
from trl.trainer.utils import ensure_master_addr_port

from r1llama.serving import TESTED, is_tested
from r1llama.training.recipe import RecipeError
from r1llama.training.vllm_client import ServerRollouts

CPU_CACHE = 1 << 30  # bytes, where VLLM_CPU_KVCACHE_SPACE does not say otherwise
BATCHED_TOKENS = 4096  # as TRL has it
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
KEYS = {
    "gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "max_model_len": "vllm_max_model_length",
    "enable_return_routed_experts": "replay_routing",
}


def why_no_vllm() -> str | None:
    """What keeps vLLM from making the rollouts; None if nothing does."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            return None if is_tested(version) else f"vLLM {version} is not tested, but {TESTED} is"
    return "vLLM is not installed (`pip install 'r1llama[vllm]'`)"


class VLLMRollouts(ServerRollouts):
    """Colocated, it differs from TRL's in what the engine samples from:

    - The model that is trained: its config and tokenizer make the engine, and its weights come with the first sync.
      What lies at its `name_or_path` may be another model, or none.
    - The precision that the trainer computes in.
    - Every sync brings all parameters and persistent buffers, such as the bias of routers, through
      [`r1llama.serving.weights.reload`]. Adapters are merged on the way, and the weights under them stay as they were,
      bit by bit; TRL has no sync of adapters alone.
    - The noise of sampling is torch's, seeded by the trainer and part of its checkpoints: runs repeat and resume.
    - With `returns_experts` the engine tells which experts each token used, where [`why_no_experts`] is None:
      `routed_experts` are those of the newest rollouts, `(T - 1, layers, K)` each.

    Args:
        args, kwargs: As TRL's trainers give them.

    Raises:
        RecipeError: The engine does not start.
    """

    routed_experts: list

    def __init__(self, *args, returns_experts: bool = False, **kwargs):
        self.returns_experts = returns_experts
        super().__init__(*args, **kwargs)

    def why_no_experts(self) -> str | None:
        """What keeps the engine from telling the experts of a model that has some; None if nothing does."""
        if self.mode == "server" and self.is_told:
            return None
        from r1llama.serving.architectures import NO_PREFIXES, keeps_prefixes

        if not keeps_prefixes(self.model.config, self.dtype):
            return NO_PREFIXES
        return "the server was started without --enable-return-routed-experts" if self.mode == "server" else None

    @property
    def dtype(self) -> torch.dtype:
        """What the trainer computes in."""
        return PRECISIONS.get(self.accelerator.mixed_precision, self.model.dtype)

    def _init_vllm(self):
        if self.mode == "server":
            super()._init_vllm()
            told = [self.accelerator.is_main_process and self.vllm_client.returns_experts]
            self.is_told = broadcast_object_list(told, from_process=0)[0]
            return
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        size = self.tensor_parallel_size
        if processes % size:
            raise RecipeError(f"`vllm_tensor_parallel_size: {size}` must divide the number of processes, {processes}")
        if size > 1:  # `generate` shares the prompts of a group
            groups = torch.arange(processes).view(-1, size).tolist()
            self.tp_group, _ = torch.distributed.new_subgroups_by_enumeration(groups)
        with tempfile.TemporaryDirectory() as folder, launched(self.accelerator):
            self._describe_model(folder)
            try:
                self.llm = self._engine(folder, seed=torch.initial_seed() - index + index // size)
            except (ValueError, RuntimeError) as error:
                reason = re.sub("|".join(KEYS), lambda key: KEYS[key.group()], _first_reason(error))
                raise RecipeError(f"`use_vllm: true`, but vLLM's engine does not start: {reason}") from error
        self._llm_weights_sleeping = self.enable_sleep_mode
        if self.enable_sleep_mode:
            self.llm.sleep(level=2)
        self.accelerator.wait_for_everyone()

    def _engine(self, folder: str, seed: int):
        """An engine without weights."""
        from vllm.distributed import cleanup_dist_env_and_memory
        from vllm.platforms import current_platform

        from r1llama import serving
        from r1llama.serving.architectures import BLOCK
        from r1llama.serving.rollouts import RolloutLLM

        serving.register()
        model = self.model
        is_ours = model.config.model_type == "r1llama"
        cpu = {}
        if current_platform.is_cpu():
            cpu = {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE}
            if not is_ours:  # r1llama models choose for themselves
                cpu["block_size"] = BLOCK
        has_experts = is_ours and model.config.num_experts > 0
        try:
            return RolloutLLM(
                folder,
                load_format="dummy",
                dtype=self.dtype,
                seed=seed,
                tensor_parallel_size=self.tensor_parallel_size,
                distributed_executor_backend="external_launcher",
                gpu_memory_utilization=self.gpu_memory_utilization,
                max_model_len=self.max_model_length,
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=max(BATCHED_TOKENS, self.max_model_length or 0),
                enable_sleep_mode=self.enable_sleep_mode,
                model_impl=self.model_impl,
                trust_remote_code=self.trust_remote_code,
                enable_return_routed_experts=self.returns_experts and has_experts and self.why_no_experts() is None,
                logprobs_mode="processed_logprobs",  # with temperature: what the importance ratios need
                **cpu,
            )
        except BaseException:
            if self.accelerator.num_processes == 1:  # the next engine in this process would join vLLM's groups of it
                cleanup_dist_env_and_memory()
            raise

    def _describe_model(self, folder: str) -> None:
        """Write all of a saved model but its weights."""
        model, tokenizer = self.model, self.processing_class
        if isinstance(model, PeftModel):
            model = model.get_base_model()
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        stops = model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops]
        stops = [stop for stop in dict.fromkeys([tokenizer.eos_token_id, *stops]) if stop is not None]
        GenerationConfig(eos_token_id=stops).save_pretrained(folder)

    def sync_weights(self):
        if self.mode == "server":
            super().sync_weights()
            return
        from r1llama.serving.weights import reload

        if self.enable_sleep_mode:
            empty_cache()
            self.llm.wake_up(tags=["weights"])
            self._llm_weights_sleeping = False
        self.llm.collective_rpc(reload, args=(self._iter_named_params(),))
        self.llm.reset_prefix_cache()

    def generate(self, prompts, *args, **kwargs):
        generated = super().generate(prompts, *args, **kwargs)
        rank = self.accelerator.process_index
        if self.mode == "colocate":  # a group for tensor parallelism writes the rollouts of all its processes
            ids = self.llm.routed_experts
            rank = torch.distributed.get_rank(self.tp_group) if self.tensor_parallel_size > 1 else 0
        elif self.is_told:
            told = [self.vllm_client.routed_experts() if self.accelerator.is_main_process else None]
            (ids,) = broadcast_object_list(told, from_process=0)
        else:
            return generated
        self.routed_experts = ids[rank * len(prompts) : (rank + 1) * len(prompts)]
        return generated

    def close(self):
        """End a colocated engine, before the processes that it runs in part."""
        if self.mode == "colocate":
            self.llm.llm_engine.engine_core.shutdown()

    def _iter_named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters, gathered one by one, and then persistent buffers, which nothing shards."""
        if isinstance(self.model, PeftModel) and not (self._dist.is_zero3 or self._dist.is_fsdp):
            yield from self._iter_merged_params()
        else:
            yield from super()._iter_named_params()
        for path, module in self.model.named_modules():
            for name, buffer in module.named_buffers(path, recurse=False):
                if name.rpartition(".")[2] not in module._non_persistent_buffers_set and "original_module" not in name:
                    yield self._saved_name(name), buffer

    def _iter_merged_params(self):
        """One layer at a time, so that no second model is needed. TRL's way, to merge and then subtract, moves the
        weights under the adapters by a rounding error at each sync."""
        adapters = defaultdict(list)
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                adapters[module.get_base_layer()].append(module)
        for path, module in self.model.named_modules():
            if self.model.prefix in path or "original_module" in path:
                continue
            kept = [(param, param.data) for param in module.parameters(recurse=False)]
            for adapter in adapters[module]:
                adapter.merge(safe_merge=True)  # into a copy
            for name, param in module.named_parameters(path, recurse=False):
                yield self._saved_name(name), param.data
            for adapter in adapters[module]:
                adapter.merged_adapters.clear()
            for param, data in kept:
                param.data = data

    def _saved_name(self, name: str) -> str:
        """As a saved model has it, without what adapters and FSDP add."""
        name = name.removeprefix("base_model.model.").replace(".base_layer", "")
        return self._fix_param_name_to_vllm(name, ["_fsdp_wrapped_module.", "modules_to_save.default."])


def _first_reason(error: Exception) -> str:
    """One line; pydantic, which checks vLLM's settings, wraps it in others."""
    wrapped = re.search(r"error, (.*?) \[type=", str(error), re.DOTALL)
    return wrapped[1] if wrapped else str(error).strip().splitlines()[0]


@contextlib.contextmanager
def launched(accelerator):
    """The environment of a launcher, in which vLLM joins the processes that there are."""
    before = dict(os.environ)
    os.environ["RANK"] = str(accelerator.process_index)
    os.environ["LOCAL_RANK"] = str(accelerator.local_process_index)
    os.environ["WORLD_SIZE"] = str(accelerator.num_processes)
    if accelerator.num_processes == 1:
        with socket.socket() as free:  # not 29500, the first choice of accelerate and TRL: another run may have it
            free.bind(("", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    ensure_master_addr_port()
    try:
        yield
    finally:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


@contextlib.contextmanager
def in_place_of_trls(**arguments):
    """Inside, TRL's trainers make their rollouts by [`VLLMRollouts`], with `arguments`; TRL names its class and takes
    no other."""
    trls = grpo_trainer.VLLMGeneration
    grpo_trainer.VLLMGeneration = partial(VLLMRollouts, **arguments)
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = trls
