"""The devices that a preflight can stand in for, as data: what torch.cuda would say of them."""

from __future__ import annotations

from typing import NamedTuple


class Device(NamedTuple):
    """One kind of accelerator."""

    name: str
    """As `torch.cuda.get_device_name` gives it."""
    major: int
    """Of `torch.cuda.get_device_capability`, with minor."""
    minor: int
    memory: int
    """Bytes, as its maker counts them: 80 GB are 80e9."""
    processors: int
    bfloat16: bool = True
    """What `torch.cuda.is_bf16_supported(including_emulation=False)` says."""
    tf32: bool = True
    architecture: str = ""
    """AMD's name of it; empty for NVIDIA."""


DEVICES = {
    "h100": Device("NVIDIA H100 80GB HBM3", 9, 0, 80 * 10**9, 132),
    "a100": Device("NVIDIA A100-SXM4-80GB", 8, 0, 80 * 10**9, 108),
    "v100": Device("Tesla V100-SXM2-32GB", 7, 0, 32 * 10**9, 80, bfloat16=False, tf32=False),
    "b200": Device("NVIDIA B200", 10, 0, 192 * 10**9, 148),
    "mi300": Device("AMD Instinct MI300X", 9, 4, 192 * 10**9, 304, architecture="gfx942"),
}
"""What `--device` names; `commands/preflight.py` has the same names."""
