"""Accelerate: a loop of the user's own, run by an Accelerator."""

from __future__ import annotations

from collections.abc import Mapping

from precaudit.static.overlays import Call, Method, runners

CALLS: Mapping[str, Call] = {"accelerate.Accelerator": runners.loop_runner}
METHODS: Mapping[str, Method] = {"accelerate.Accelerator": runners.method}
