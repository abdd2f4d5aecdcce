#!/usr/bin/env bash
# Everything that is claimed of a GPU, in one call; prints its tables and leaves them in OUT.
#
#   benchmarks/gpu.sh [OUT]              default: docs/gpu.txt
#   WHEELS=dir benchmarks/gpu.sh         installs from a folder of wheels: for a machine without a network
#   PYTHON=python3.12 TORCH_PYTHON=python3 SMALL=1 DEVICE=cpu    to try the script itself on a laptop
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-docs/gpu.txt}
python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
mkdir -p "$(dirname "$out")"
{
    date -u
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo "no nvidia-smi"
    "$python" -m jclip_fewshot doctor --device "${DEVICE:-cuda}" || true
    "$python" benchmarks/gpu.py --device "${DEVICE:-cuda}" ${SMALL:+--small} \
        ${TORCH_PYTHON:+--torch-python "$TORCH_PYTHON"}
    if [ -z "${SMALL:-}" ]; then  # seconds of every training in the towers, and what all members give
        "$python" benchmarks/tuning.py --steps 5
        "$python" benchmarks/tuning.py --demo --seeds 1 2 3
    fi
} 2>&1 | tee "$out"
