"""Expert ids of every token, returned with its text, on a CPU.

`enable_return_routed_experts` is vLLM's own: `CompletionOutput.routed_experts` then holds `(T - 1, layers, K)`, the
experts of all tokens of prompt and completion but the last one, which no forward reads; rows of layers without experts
mean nothing. vLLM collects them in its newer model runner alone, and that one needs Triton. Here its own collector
works for the runner that a CPU has, so that both devices answer in the same way.

Prompts that come from the prefix cache keep the ids of their first computation; they are forgotten with the cache.
"""

from types import SimpleNamespace

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.distributed.aux_output_connector.connector import AuxOutputSchedulerConnector
from vllm.distributed.aux_output_connector.worker import get_aux_output_connector
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker


def return_experts(vllm_config: VllmConfig) -> None:
    """Let the engine of `vllm_config` return expert ids, which its user asked for."""
    parallel = vllm_config.parallel_config
    if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
        raise ValueError("enable_return_routed_experts: on a CPU, without tensor and pipeline parallelism")
    if vllm_config.speculative_config is not None:
        raise ValueError("enable_return_routed_experts: on a CPU, without speculative decoding")
    if not vllm_config.cache_config.enable_prefix_caching:
        raise ValueError("enable_return_routed_experts: vLLM keeps expert ids beside its prefix cache, which is off")
    # vLLM refuses it with this runner; besides, its scheduler alone would ask
    vllm_config.aux_output_config.enable_return_routed_experts = False
    vllm_config.scheduler_config.scheduler_cls = f"{__name__}.RoutingScheduler"
    parallel.worker_cls = f"{__name__}.RoutingWorker"


class RoutingScheduler(Scheduler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.aux_output_connector = AuxOutputSchedulerConnector()


class RoutingModelRunner(CPUModelRunner):
    batch = None

    def initialize_kv_cache(self, kv_cache_config, *args, **kwargs):
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)
        self.collector = get_aux_output_connector(self.model, self.vllm_config, kv_cache_config)

    def execute_model(self, scheduler_output, *args, **kwargs):
        self.collector.begin_step(scheduler_output.aux_output_connector_metadata)
        output = super().execute_model(scheduler_output, *args, **kwargs)
        if output is None:  # there are tokens to sample
            count = self.input_batch.num_reqs
            self.batch = SimpleNamespace(
                req_ids=self.input_batch.req_ids,
                query_start_loc_np=self.query_start_loc.np[: count + 1].copy(),
                num_computed_tokens_np=self.input_batch.num_computed_tokens_cpu[:count].copy(),
            )
        return output

    def sample_tokens(self, *args, **kwargs):
        output = super().sample_tokens(*args, **kwargs)
        if self.batch is not None:
            ids = self.collector.prepare_output(self.batch)
            sampled = np.array([len(tokens) for tokens in output.sampled_token_ids])
            ids.enqueue_cpu_copy(num_sampled=sampled, num_rejected=np.zeros_like(sampled))
            output.aux_output_connector_output = ids.process_output()
            self.batch = None
        return output


class RoutingWorker(CPUWorker):
    def init_device(self):
        super().init_device()
        self.model_runner = RoutingModelRunner(self.vllm_config, torch.device("cpu"))

    def shutdown(self):
        self.model_runner.collector.close()
        super().shutdown()
