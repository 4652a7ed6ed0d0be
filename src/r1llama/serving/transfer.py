"""New weights where trainer or server has no CUDA, and NCCL so no use: in a file that both see."""

from safetensors import safe_open

from r1llama.serving.weights import reload


class FileReload:
    """Methods that vLLM adds to its workers (`--worker-extension-cls`), called through `/collective_rpc`."""

    def reload_file(self, path: str) -> None:
        """Put the tensors of a safetensors file, parameters and persistent buffers, into the model."""
        with safe_open(path, "pt") as file:
            reload(self, ((name, file.get_tensor(name)) for name in file.keys()))  # noqa: SIM118  (no mapping)
