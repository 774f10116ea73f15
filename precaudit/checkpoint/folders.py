"""Finds the checkpoints at a path: which files belong together, and which of them are missing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from precaudit.checkpoint.dcp import METADATA
from precaudit.disk import read, read_text
from precaudit.foreign import ForeignError, parse_json

ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl")
"""How files end that may be checkpoints. A file that is named itself may end as it likes."""
INDEX = ".index.json"
TOGETHER: Mapping[str, str] = {
    r"(bf16_|fp16_)?(zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt": "DeepSpeed",
    r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_(model|optim)_states\.pt": "DeepSpeed",
    r"layer_\d+-model.*\.pt|expp_rank_\d+_.*_optim_states\.pt|expert_.*\.pt": "DeepSpeed",
    r"training_args\.bin|trainer_state\.json": "HF Trainer",
    r"random_states_\d+\.pkl|sampler(_\d+)?\.bin|custom_checkpoint_\d+\.pkl": "accelerate",
    r"adapter_model(-\d+-of-\d+)?\.(safetensors|bin)|adapter_config\.json": "PEFT",
    r"meta\.pt|\.metadata": "",
    r"(model|pytorch_model|tf_model|diffusion_pytorch_model)([-_.]\d+-of-\d+|_\d+)?\.(safetensors|bin|pt)": "",
    r"(optimizer|scheduler|scaler|rng_state)(_\d+)*\.(pt|bin|pth)": "",
}
"""Names of files that frameworks put beside each other -> the framework that such a name gives away."""
PARTS = re.compile(r"^(pytorch_model|pytorch_model_fsdp|model|optim|optimizer|dist_ckpt)(_\d+)?$")
"""Folders in which accelerate and others keep a part of the checkpoint around them."""


@dataclass(slots=True)
class Checkpoint:
    """Files that are one checkpoint."""

    path: Path
    """The file, or the folder they are in."""
    files: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    framework: str = ""
    steps: int = 0
    """Steps that a trainer's own notes count; 0 where there are none."""


def discover(path: Path) -> Iterator[Checkpoint]:
    """Every checkpoint at or below a path. Raises OSError for a folder that cannot be listed."""
    if path.is_dir():
        yield from _below(path)
    elif path.name.endswith(INDEX):
        found = Checkpoint(path)
        _shards(path, found)
        yield found
    else:
        yield Checkpoint(path, [path], framework=_framework([path.name]))


def _below(folder: Path) -> Iterator[Checkpoint]:
    names = sorted(os.listdir(folder))
    whole = Checkpoint(folder)
    alone, deeper, passed = [], [], []
    for name in names:
        path = folder / name
        if path.is_dir():
            if path.is_symlink():
                passed.append(path)
            elif not name.startswith("."):
                deeper.append(path)
        elif path.name == METADATA or (name.endswith(ENDINGS) and _is_part(name)):
            whole.files.append(path)
        elif name.endswith(INDEX):
            _shards(path, whole)
        elif name.endswith(ENDINGS):
            alone.append(path)
    latest = _latest(folder) if "latest" in names else ""
    for path in list(deeper):
        if path.name == latest or (PARTS.match(path.name) and names_a_trainer(names)):
            deeper.remove(path)
            for inner in _below(path):
                whole.files += inner.files
                whole.problems += inner.problems
                whole.framework = whole.framework or inner.framework
    whole.framework = _framework(names) or whole.framework
    whole.steps = _steps(folder / "trainer_state.json") if "trainer_state.json" in names else 0
    linked = "a link to a folder, which is not followed; name it to have it read"
    whole.problems += [f"{path}: {linked}" for path in passed if path.name != latest]
    if whole.files or whole.problems:
        whole.files = list(dict.fromkeys(whole.files))
        yield whole
    yield from (Checkpoint(path, [path]) for path in alone)
    for path in deeper:
        yield from _below(path)


def names_a_trainer(names: list[str]) -> bool:
    """Whether a folder holds what trainers leave beside a model, so that its sub-folders are parts of it."""
    return any(re.match(r"trainer_state\.json|random_states_|scheduler|training_args\.bin|rng_state", n) for n in names)


def _is_part(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in TOGETHER)


def _framework(names: list[str]) -> str:
    for pattern, framework in TOGETHER.items():
        if framework and any(re.fullmatch(pattern, name) for name in names):
            return framework
    return "torch.distributed.checkpoint" if METADATA in names else ""


def _shards(index: Path, into: Checkpoint) -> None:
    """The files that `model.safetensors.index.json` names."""
    try:
        names = sorted(set(parse_json(read(index))["weight_map"].values()))
    except (OSError, ForeignError, KeyError, TypeError, AttributeError):
        into.problems.append(f"{index}: it is not an index of shards: it has no weight_map")
        return
    for name in names:
        path = index.parent / str(name)
        if os.path.basename(str(name)) != name:
            into.problems.append(f"{index}: it names a file outside of its folder: {name}")
        elif not path.is_file():
            into.problems.append(f"{path}: {index.name} names it, and it is not there")
        elif path not in into.files:
            into.files.append(path)


def _latest(folder: Path) -> str:
    """The folder that DeepSpeed's file `latest` names."""
    try:
        return read_text(folder / "latest", 10_000)[:200].strip()
    except OSError:
        return ""


def _steps(path: Path) -> int:
    try:
        steps = parse_json(read(path))["global_step"]
    except (OSError, ForeignError, KeyError, TypeError):
        return 0
    return steps if isinstance(steps, int) else 0
