"""Training configs, told by their content: DeepSpeed JSON, accelerate, Hugging Face and Lightning YAML or JSON."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from precaudit.foreign import ForeignError, parse_json, parse_yaml
from precaudit.model.vocabulary import Fact, Kind, Role, Scalar, Site
from precaudit.static.files.discovery import Found

DEEPSPEED_KEYS = frozenset(
    {
        "zero_optimization",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "fp16",
        "bf16",
        "torch_autocast",
        "data_types",
        "communication_data_type",
        "gradient_clipping",
    }
)
TRAINER_PRECISIONS = ("16-true", "bf16-true")
LOW_NAMES = {"fp16": "float16", "float16": "float16", "half": "float16", "bf16": "bfloat16", "bfloat16": "bfloat16"}
LARGEST_SCALE_POWER = 24
MANY_MICRO_BATCHES = 4
"""From which on a sum in bfloat16 that nobody asked for is told: of two or three the error is small."""
LARGEST_CONFIG = 1_000_000


class Remark(NamedTuple):
    """Something a config says: the path of keys to it, and what a Fact needs."""

    keys: tuple[str, ...]
    kind: Kind
    attrs: dict[str, Scalar]
    dtype: str = ""
    detail: str = ""
    role: Role | None = None


def deepspeed(config: Mapping[str, Any], perhaps: Collection[str] = ()) -> Iterator[Remark]:
    """What is wrong in a DeepSpeed config; of the sections that are `perhaps` there one may exclude the other.

    Source: https://www.deepspeed.ai/docs/config-json/
    """
    modes = [name for name in ("fp16", "bf16", "torch_autocast") if _section(config, name).get("enabled") is True]
    if len(modes) > 1 and sum(name in perhaps for name in modes) < 2:
        detail = f"{modes[0]} and {modes[1]} are both enabled"
        yield Remark((modes[1], "enabled"), Kind.CONFIG, {"conflict": True, "key": "enabled"}, detail=detail)
    for mode in ("fp16", "bf16"):
        key = f"{mode}_master_weights_and_grads"
        for holder in ((mode,), ()):
            section = _section(config, mode) if holder else config
            if section.get(key) is True:
                yield Remark((*holder, key), Kind.CONFIG, {"key": key}, detail="")
    many = config.get("gradient_accumulation_steps")
    if isinstance(many, int) and many > 1:
        accumulated = LOW_NAMES.get(str(_section(config, "data_types").get("grad_accum_dtype")))
        if accumulated:
            yield _accumulation(("data_types", "grad_accum_dtype"), accumulated, many)
        elif many >= MANY_MICRO_BATCHES and _sums_in_bfloat16(config) and "bf16" not in perhaps:
            remark = _accumulation(("bf16",), "bfloat16", many)
            detail = f"{remark.detail}, since it follows bf16 where it is not set"
            yield remark._replace(detail=detail, attrs={**remark.attrs, "key": "grad_accum_dtype"})
        reduced = LOW_NAMES.get(str(config.get("communication_data_type")))
        if reduced:
            yield _accumulation(("communication_data_type",), reduced, many)
    fp16 = _section(config, "fp16")
    if fp16.get("enabled") is True:
        scale = fp16.get("loss_scale", 0)
        power = fp16.get("initial_scale_power", 16)
        if isinstance(scale, (int, float)) and scale > 0:
            attrs: dict[str, Scalar] = {"extreme": True, "dynamic": False, "scale": float(scale)}
            detail = f"loss_scale={scale:g} is never adapted; 0 is dynamic"
            yield Remark(("fp16", "loss_scale"), Kind.LOSS_SCALING, attrs, detail=detail, role=Role.LOSS_SCALE)
        elif isinstance(power, int) and power > LARGEST_SCALE_POWER:
            attrs = {"extreme": True, "dynamic": True, "scale": float(2 ** min(power, 1000))}
            detail = f"initial_scale_power={power} overflows float16 gradients"
            yield Remark(("fp16", "initial_scale_power"), Kind.LOSS_SCALING, attrs, detail=detail, role=Role.LOSS_SCALE)


def _sums_in_bfloat16(config: Mapping[str, Any]) -> bool:
    """Whether gradients are summed in bfloat16 since nothing else is said. Source: DeepSpeedEngine.get_data_types."""
    enabled = _section(config, "bf16").get("enabled") is True
    return enabled and _section(config, "data_types").get("grad_accum_dtype") is None


def _accumulation(keys: tuple[str, ...], dtype: str, many: int) -> Remark:
    attrs: dict[str, Scalar] = {"key": keys[-1], "many_micro_batches": True}
    return Remark(keys, Kind.CONFIG, attrs, dtype, f"over {many} micro-batches")


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def trainer(config: Mapping[str, Any]) -> Iterator[Remark]:
    """What is wrong in Hugging Face arguments or a Lightning trainer section."""
    if config.get("fp16") is True and config.get("bf16") is True:
        yield Remark(("bf16",), Kind.CONFIG, {"conflict": True, "key": "bf16"}, detail="fp16 and bf16 are both on")
    for holder in ((), ("trainer",)):
        section = _section(config, "trainer") if holder else config
        precision = section.get("precision")
        known = {"max_epochs", "max_steps", "accelerator", "devices", "strategy"} & set(section)
        if precision in TRAINER_PRECISIONS and (holder or known):
            yield Remark((*holder, "precision"), Kind.CONFIG, {"precision": str(precision), "key": "precision"})


def remarks(config: Any) -> Iterator[Remark]:
    """Everything to say about a parsed config, by what it looks like; nothing for any other file."""
    if not isinstance(config, Mapping):
        return
    keys = set(config)
    if "zero_optimization" in keys or len(keys & DEEPSPEED_KEYS) >= 2:
        yield from deepspeed(config)
    nested = config.get("deepspeed_config")
    if isinstance(nested, Mapping):
        for remark in deepspeed(nested):
            yield remark._replace(keys=("deepspeed_config", *remark.keys))
    yield from trainer(config)


def examine_config(item: Found, raw: bytes) -> dict[str, Any]:
    """The result for a config file: Facts at the lines of the keys. A file that is no config has none."""
    from precaudit import suppressions

    if len(raw) > LARGEST_CONFIG:
        return {}
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return {"error": "not UTF-8 text"}
    is_json = item.path.name.endswith(".json")
    try:
        config = parse_json(text) if is_json else parse_yaml(text)
    except ForeignError as error:
        if not _looks_like_config(text):
            return {}
        return {"error": f"not valid {'JSON' if is_json else 'YAML'}: {error}"}
    facts = []
    for remark in remarks(config):
        line, column, end = locate(text, remark.keys)
        site = Site(item.shown, line, column, line, end, ".".join(remark.keys))
        facts.append(Fact(remark.kind, remark.dtype, remark.role, site, detail=remark.detail, attrs=remark.attrs))
    rows = [] if is_json else suppressions.read_config(text)
    return {
        "facts": [fact.as_json() for fact in facts],
        "suppressions": [[s.line, s.column, s.first, s.last, list(s.rules), s.whole_file, s.foreign] for s in rows],
    }


def _looks_like_config(text: str) -> bool:
    return "zero_optimization" in text or "mixed_precision" in text


def locate(text: str, keys: tuple[str, ...]) -> tuple[int, int, int]:
    """Line, column and end column (from 1) of a nested key, each key sought after the one that holds it."""
    at = 0
    match = None
    for key in keys:
        match = re.compile(rf"(?m)[\"']?\b{re.escape(key)}\b[\"']?\s*:[^\n,}}]*").search(text, at)
        if match is None:
            return 1, 1, 1
        at = match.start() + 1
    assert match is not None
    line = text.count("\n", 0, match.start()) + 1
    column = match.start() - (text.rfind("\n", 0, match.start()) + 1) + 1
    return line, column, column + len(match[0].rstrip())
