"""TRL's trainers and their configs: Trainers with habits of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precaudit.model.frameworks import framework
from precaudit.static.language.values import Value
from precaudit.static.overlays import Call, transformers

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run


def trainer(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """TRL's trainers prepare a k-bit model themselves."""
    run.met("trl")
    run.training.trainer_prepares = True
    return transformers.trainer(run, name, args, kwargs, node)


CALLS: Mapping[str, Call] = {
    **{f"trl.{method}Trainer": trainer for method in framework("trl").named("methods")},
    **{f"trl.{method}Config": transformers.training_arguments for method in framework("trl").named("methods")},
}
BASES: Mapping[str, Call] = {f"trl.{method}Trainer": trainer for method in framework("trl").named("methods")}
