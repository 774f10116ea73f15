"""Tells from its name and its neighbours what a value in a checkpoint is for: one table of names, read top down."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from precaudit.checkpoint.leaves import Keys, Leaf, Tensor


class Part(str, Enum):
    """What a value of a checkpoint is for; finer than a Role, which follows once the whole checkpoint is known."""

    WEIGHT = "weight"
    ADAPTER = "adapter"
    QUANTIZED = "quantised weight"
    STATISTICS = "running statistics"
    POSITIONS = "positions"
    AVERAGE = "averaged weights"
    MASTER = "master weight"
    MOMENT = "optimizer state"
    COMPENSATION = "compensation of rounding"
    STEP = "step counter"
    SCALER = "loss scale"
    BESIDE = "beside a quantised tensor"
    """Scales, code books and zero points."""
    OTHER = "other"


MOMENTS = frozenset(
    "exp_avg exp_avg_sq max_exp_avg_sq momentum_buffer square_avg grad_avg acc_delta exp_inf exp_avg_sq_row "
    "exp_avg_sq_col row_var col_var state1 state2".split()
)
"""Names that optimizers alone use. Source: torch/optim, bitsandbytes, transformers.Adafactor."""
BLOCKWISE = frozenset("absmax1 absmax2 qmap1 qmap2 new_max1 new_max2 max1 max2 unorm_vec scale qmap".split())
"""What stands beside block-wise quantised optimizer state. Source: bitsandbytes/optim, torchao/optim."""
QUANTIZED_BESIDE = frozenset("absmax quant_map nested_absmax nested_quant_map SCB weight_format qzeros g_idx".split())
"""What stands beside a quantised weight. Source: bitsandbytes.functional.QuantState.as_dict, GPTQ."""
OPTIMIZERS = re.compile(
    r"^(optim|optims|opt|optimizers?|optimizer_states?|optimizer_state_dicts?|base_optimizer_state)$"
)
MASTERS = re.compile(
    r"^(fp32_flat_groups|single_partition_of_fp32_groups|fp32_groups\w*|fp32_from_\w+|fp32_params?|param_fp32|fp32"
    r"|master_weights?|master_params?|main_params?|fp32_partitioned_groups_flat|fp32_master\w*)$"
)
"""Where masters stand. Source: DeepSpeed's stage_1_and_2, stage3 and unfused_optimizer, apex, Megatron-LM."""
AVERAGES = re.compile(
    r"^(ema|ema_model|model_ema|ema_state_dict|state_dict_ema|ema_params|ema_weights|shadow_params|swa_model)$"
)
SCALERS = re.compile(
    r"^(amp_|grad_|loss_|_?)?scaler\d*$|^(cur_scale|loss_scale)$|^MixedPrecision$|^native_amp_scaling_state$"
)
ADAPTERS = re.compile(
    r"(^|\.)(lora_\w+|adapter\w*|ia3_\w+|vera_\w+|hada_\w+|oft_\w+|lokr_\w+|prompt_embeddings|modules_to_save)(\.|$)"
)
POSITIONS = re.compile(r"(^|[._])(inv_freq|freqs_cis|position_ids|relative_position_index|alphas_cumprod|timesteps)$")
STATES = re.compile(
    r"^(\w*model\w*|\w*state_dict\w*|module|params|weights|net\w*|generator|discriminator|encoder|decoder)$"
)
"""Keys under which people keep a model's state_dict."""
PARAMETERS = frozenset({"weight", "bias", "running_mean"})


class Sorted(NamedTuple):
    """One value with what it is for."""

    leaf: Leaf
    part: Part


class Names:
    """The names of one file, and what only all of them together tell."""

    def __init__(self, leaves: Iterable[Leaf], flat: bool) -> None:
        self.flat = flat
        """The file is one state_dict, as safetensors are."""
        self.children: dict[Keys, set[str]] = {}
        for keys, _ in leaves:
            for depth, key in enumerate(keys):
                self.children.setdefault(keys[:depth], set()).add(key)
        # `state.0.weight.exp_avg` is how torch.distributed.checkpoint flattens an optimizer's state_dict.
        self.optimizers = {
            at
            for at, names in self.children.items()
            if {"state", "param_groups"} <= {name.partition(".")[0] for name in names}
        }
        self.states = {
            at for at, names in self.children.items() if any(name.rpartition(".")[2] in PARAMETERS for name in names)
        }
        self.quantized = {
            (keys[:-1], keys[-1].rpartition(".")[0].removesuffix(".quant_state"))
            for keys, _ in leaves
            if keys and (_last(keys) in QUANTIZED_BESIDE or ".quant_state." in keys[-1])
        }
        """Where a name stands whose neighbours say that it is quantised."""

    def in_optimizer(self, keys: Keys) -> bool:
        return any(keys[:depth] in self.optimizers for depth in range(len(keys))) or any(
            OPTIMIZERS.match(key) for key in keys[:-1]
        )

    def beside(self, keys: Keys) -> set[str]:
        return self.children.get(keys[:-1], set())

    def in_state_dict(self, keys: Keys) -> bool:
        return self.flat or keys[:-1] in self.states or any(STATES.match(key) for key in keys[:-1])

    def is_quantized(self, keys: Keys, dtype: str) -> bool:
        """By its neighbours, or because no layer computes in such a dtype."""
        tagged = (keys[:-1], keys[-1]) in self.quantized
        return tagged or (dtype in STORED_ONLY and _last(keys) in ("weight", "qweight", "weight_packed", "CB"))


STORED_ONLY = frozenset(
    {"int8", "uint8", "int32", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn_x2", "qint8", "quint8"}
)


def sort(leaves: Iterable[Leaf], names: Names) -> list[Sorted]:
    """Each value of a file with what it is for."""
    return [Sorted(leaf, _part(leaf, names)) for leaf in leaves]


def _part(leaf: Leaf, names: Names) -> Part:
    for part, holds in TABLE:
        if holds(leaf, names):
            return part
    return Part.OTHER


def _last(keys: Keys) -> str:
    return keys[-1].rpartition(".")[2] if keys else ""


def _tokens(keys: Keys) -> list[str]:
    return [token for key in keys for token in key.split(".")]


def _floating(leaf: Leaf) -> bool:
    return isinstance(leaf.value, Tensor) and leaf.value.dtype.startswith(("float", "bfloat"))


def _large(leaf: Leaf) -> bool:
    return isinstance(leaf.value, Tensor) and len(leaf.value.shape) > 0 and leaf.value.numel != 1


def _is_scaler(leaf: Leaf, names: Names) -> bool:
    if "growth_factor" in names.beside(leaf.keys):
        return _last(leaf.keys) in ("scale", "_growth_tracker")
    named = any(SCALERS.match(key) for key in leaf.keys)
    number = (
        isinstance(leaf.value, (int, float))
        or leaf.value == "{}"
        or (isinstance(leaf.value, Tensor) and leaf.value.numel == 1)
    )
    return named and number and "param_groups" not in leaf.keys and not any("config" in key for key in leaf.keys)


def _is_step(leaf: Leaf, names: Names) -> bool:
    return _last(leaf.keys) in ("step", "steps", "global_step", "global_steps") and not _large(leaf)


def _is_master(leaf: Leaf, names: Names) -> bool:
    return _large(leaf) and _floating(leaf) and any(MASTERS.match(token) for token in _tokens(leaf.keys))


def _is_compensation(leaf: Leaf, names: Names) -> bool:
    return names.in_optimizer(leaf.keys) and any("kahan" in t or "compensation" in t for t in _tokens(leaf.keys))


def _is_moment(leaf: Leaf, names: Names) -> bool:
    if not _large(leaf) or "param_groups" in leaf.keys or _last(leaf.keys) in BLOCKWISE:
        return False
    if _last(leaf.keys) in MOMENTS:
        return True
    return (
        names.in_optimizer(leaf.keys)
        and ("state" in leaf.keys or not {"param", "params"} & set(leaf.keys))
        and (_floating(leaf) or _last(leaf.keys) == "codes")
    )


def _is_average(leaf: Leaf, names: Names) -> bool:
    return _large(leaf) and _floating(leaf) and any(AVERAGES.match(token) for token in _tokens(leaf.keys)[:-1])


def _is_beside(leaf: Leaf, names: Names) -> bool:
    in_optimizer = names.in_optimizer(leaf.keys) and _last(leaf.keys) in BLOCKWISE
    return in_optimizer or _last(leaf.keys) in QUANTIZED_BESIDE or ".quant_state." in ".".join(leaf.keys)


def _is_quantized(leaf: Leaf, names: Names) -> bool:
    return isinstance(leaf.value, Tensor) and bool(leaf.keys) and names.is_quantized(leaf.keys, leaf.value.dtype)


def _is_weight(leaf: Leaf, names: Names) -> bool:
    return _floating(leaf) and not names.in_optimizer(leaf.keys) and names.in_state_dict(leaf.keys)


TABLE: tuple[tuple[Part, Callable[[Leaf, Names], bool]], ...] = (
    (Part.SCALER, _is_scaler),
    (Part.STEP, _is_step),
    (Part.MASTER, _is_master),
    (Part.COMPENSATION, _is_compensation),
    (Part.MOMENT, _is_moment),
    (Part.AVERAGE, _is_average),
    (Part.STATISTICS, lambda leaf, _: _last(leaf.keys) in ("running_mean", "running_var") and _floating(leaf)),
    (Part.POSITIONS, lambda leaf, _: _floating(leaf) and bool(POSITIONS.search(".".join(leaf.keys)))),
    (Part.BESIDE, _is_beside),
    (Part.QUANTIZED, _is_quantized),
    (Part.ADAPTER, lambda leaf, names: _is_weight(leaf, names) and bool(ADAPTERS.search(".".join(leaf.keys)))),
    (Part.WEIGHT, _is_weight),
)
"""The first row that holds decides."""

SCALING: Mapping[str, Callable[[object], bool]] = {
    "fp16": lambda value: value is True,
    "precision": lambda value: value in ("16-mixed", "16") or (value == 16 and not isinstance(value, bool)),
    "mixed_precision": lambda value: value == "fp16",
}
"""Settings that frameworks keep in a checkpoint, and the value with which they scale a float16 loss."""


def proves_scaling(keys: Keys, value: object) -> str:
    """A setting that says that the run scaled its float16 loss, as `fp16=True`; empty where this is none."""
    if keys[-2:] == ("fp16", "enabled") and value is True:
        return "fp16.enabled=True"
    if keys and keys[-1] in SCALING and not isinstance(value, Tensor) and SCALING[keys[-1]](value):
        return f"{keys[-1]}={value!r}"
    return ""
