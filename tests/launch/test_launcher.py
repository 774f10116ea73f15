"""A launcher's prefix says how many ranks there would be, and which command each of them is."""

from __future__ import annotations

import pytest

from precaudit.errors import UsageError
from precaudit.launch.launcher import read


@pytest.mark.parametrize(
    ("line", "nodes", "per_node", "command"),
    [
        ("train.py --lr 1", 1, 1, "train.py --lr 1"),
        ("torchrun train.py", 1, 1, "train.py"),
        ("torchrun --nnodes 64 --nproc-per-node 8 train.py --nnodes 3", 64, 8, "train.py --nnodes 3"),
        ("torchrun --standalone --nproc_per_node=4 -m pkg.train --lr 1", 1, 4, "-m pkg.train --lr 1"),
        ("torchrun --nnodes=2:4 --rdzv-id x --nproc-per-node 8 train.py", 2, 8, "train.py"),
        ("python -m torch.distributed.run --nproc-per-node 2 train.py", 1, 2, "train.py"),
        ("-m torch.distributed.launch --nproc_per_node 2 train.py", 1, 2, "train.py"),
        ("/opt/bin/torchrun --nproc-per-node 2 train.py", 1, 2, "train.py"),
        ("deepspeed --num_gpus 8 --num_nodes 2 train.py --x", 2, 8, "train.py --x --local_rank=0"),
        ("deepspeed --no_local_rank --num_gpus 8 train.py", 1, 8, "train.py"),
        (
            "accelerate launch --multi_gpu --num_machines 2 --num_processes 16 --mixed_precision bf16 train.py --x 1",
            2, 8, "accelerate launch --num_processes 1 --mixed_precision bf16 train.py --x 1",
        ),
        ("accelerate launch --use_fsdp train.py", 1, 1, "accelerate launch --num_processes 1 --use_fsdp train.py"),
        ("bash run.sh", 1, 1, "bash run.sh"),
    ],
)  # fmt: skip
def test_a_prefix_is_read_for_its_counts(line: str, nodes: int, per_node: int, command: str) -> None:
    found = read(line.split())
    assert (found.nodes, found.per_node, found.size) == (nodes, per_node, nodes * per_node)
    assert " ".join(found.command) == command


def test_a_launcher_without_a_script_is_refused() -> None:
    with pytest.raises(UsageError, match="torchrun: names no script; write it behind the options"):
        read(["torchrun", "--nnodes", "2"])
