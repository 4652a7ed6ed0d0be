#!/usr/bin/env bash
# Everything that wants a GPU, in one call of a few minutes: build, check, measure. Records go into RESULTS.md by hand,
# with the date and the hardware.
#   benchmarks/gpu.sh [DEVICE]     DEVICE is cuda unless given; cpu tries the script itself
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda}
make .venv/installed-dev
python=.venv/bin/python
$python - "$device" <<'PY'
import platform, sys, torch
name = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else platform.processor() or platform.machine()
print(f"torch {torch.__version__} on {name}")
PY
echo "== the model's invariants on $device"
R1LLAMA_TEST_DEVICE=$device $python -m pytest tests/model
echo "== logits against transformers' own models"
$python -m benchmarks.correctness --device "$device"
echo "== torch.compile through Inductor"
R1LLAMA_TEST_DEVICE=$device $python -m pytest tests/model/test_compile.py -m slow -k inductor
echo "== the architecture against its peers"
if [ "$device" = cuda ]; then
  $python -m benchmarks.architecture --device cuda --json benchmarks/architecture-cuda.json
  echo "== the stages beside plain TRL"
  $python -m benchmarks.training --device cuda --json benchmarks/training-cuda.json
else
  $python -m benchmarks.architecture --quick
  $python -m benchmarks.training --quick
fi
echo "== vLLM, in an environment of its own"
smollm2=models/smollm2-135m-instruct
[ -d $smollm2 ] || $python examples/offline_model.py --output $smollm2
make .venv-vllm/installed
if [ "$device" = cuda ]; then
  .venv-vllm/bin/python -m benchmarks.serving --device cuda --json benchmarks/serving-cuda.json
else
  .venv-vllm/bin/python -m benchmarks.serving --quick
fi
