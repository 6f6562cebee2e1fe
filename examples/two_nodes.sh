#!/bin/bash
# A race of GPT-2 124M on two nodes of eight GPUs, without a queue. On both nodes, at the same time:
#
#     examples/two_nodes.sh ADDRESS        # of the first node, as the other one reaches it
#
# The clone, its .venv and its results lie in a folder that both nodes see.
set -euo pipefail
cd "$(dirname "$0")/.."
address=${1:?give the address of the first node, such as 10.0.0.1}

exec .venv/bin/python -m torch.distributed.run \
    --nnodes=2 --nproc_per_node=8 --max-restarts=2 \
    --rdzv_backend=c10d --rdzv_id=speedrun --rdzv_endpoint="$address:29500" \
    speedrun.py adamw muon --track gpt2 --seeds 4 --engine sharded --save-every 250
