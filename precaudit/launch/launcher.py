"""Reads a launcher's prefix for its counts, and gives the command of one rank: `torchrun --nnodes 64 train.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from precaudit.errors import UsageError

NODES = ("--nnodes", "--num_machines", "--num-machines", "--num_nodes")
PER_NODE = ("--nproc_per_node", "--nproc-per-node", "--num_gpus")
ALL = ("--num_processes", "--num-processes")
"""Of accelerate: the processes of all nodes together."""
WORDS = {
    "torchrun": (NODES[0], *PER_NODE[:2]),
    "accelerate": (*NODES[1:3], *ALL),
    "deepspeed": (NODES[3], PER_NODE[2]),
}
"""Launcher -> its options that count."""
ALONE = {"--standalone", "--no_python", "--no-python", "--run_path", "--run-path", "-m", "--module", "--no_local_rank"}
"""Options of torchrun and deepspeed that no value follows."""
OF_MANY = {"--multi_gpu", "--multi-gpu"}
"""Options of accelerate that say nothing but that there are many."""
PLACES = {"--machine_rank", "--main_process_ip", "--main_process_port", "--rdzv_backend", "--gpu_ids"}
"""Options of accelerate that say where the others are."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """How many ranks a launcher would start, and the words that start one without it."""

    nodes: int
    per_node: int
    command: tuple[str, ...]

    @property
    def size(self) -> int:
        """All ranks."""
        return self.nodes * self.per_node


def read(words: Sequence[str]) -> Ranks:
    """What a command line asks for; one rank where it names no launcher. Raises UsageError, one line."""
    kind, rest = _launcher(words)
    if not kind:
        return Ranks(1, 1, tuple(words))
    counts: dict[str, int] = {}
    kept: list[str] = []
    module, local_rank, at = False, kind == "deepspeed", 0
    while at < len(rest) and rest[at].startswith("-"):
        name, joined, value = rest[at].partition("=")
        alone = name in ALONE or name in OF_MANY
        takes = not joined and not alone and (kind != "accelerate" or _has_value(rest, at))
        value = value if joined else rest[at + 1] if takes and at + 1 < len(rest) else ""
        if name in WORDS[kind]:
            counts[name] = _number(name, value)
        elif name not in OF_MANY | PLACES:
            kept += rest[at : at + 1 + takes]
        module |= name in ("-m", "--module")
        local_rank &= name != "--no_local_rank"
        at += 1 + takes
    program = tuple(rest[at:])
    if not program:
        raise UsageError(f"{kind}: names no script; write it behind the options")
    nodes = next((counts[name] for name in NODES if name in counts), 1)
    per_node = next((counts[name] for name in PER_NODE if name in counts), 1)
    if every := next((counts[name] for name in ALL if name in counts), 0):
        per_node = -(-every // nodes)
    if kind == "accelerate":
        return Ranks(nodes, per_node, ("accelerate", "launch", "--num_processes", "1", *kept, *program))
    start = ("-m", *program) if module else program
    return Ranks(nodes, per_node, (*start, "--local_rank=0") if local_rank else start)


def _launcher(words: Sequence[str]) -> tuple[str, list[str]]:
    """The launcher's name and what follows it."""
    name = Path(words[0]).name if words else ""
    if name.startswith("python") and list(words[1:2]) == ["-m"]:
        return _launcher(words[1:])
    if name == "-m" and len(words) > 1 and words[1] in ("torch.distributed.run", "torch.distributed.launch"):
        return "torchrun", list(words[2:])
    if name == "-m" and len(words) > 2 and words[1] == "accelerate.commands.launch":
        return "accelerate", list(words[2:])
    if name == "accelerate" and list(words[1:2]) == ["launch"]:
        return "accelerate", list(words[2:])
    return (name, list(words[1:])) if name in ("torchrun", "deepspeed") else ("", [])


def _has_value(words: Sequence[str], at: int) -> bool:
    """Whether an option of accelerate, of which there are a hundred, is followed by its value."""
    following = words[at + 1] if at + 1 < len(words) else "-"
    return not following.startswith("-") and not following.endswith(".py") and at + 2 < len(words)


def _number(name: str, value: str) -> int:
    """A count; of "2:4" nodes the fewest."""
    try:
        found = int(value.partition(":")[0])
    except ValueError:
        raise UsageError(f"{name} {value}: a preflight needs a number here, as in {name} 8") from None
    if found < 1:
        raise UsageError(f"{name} {value}: at least 1")
    return found
