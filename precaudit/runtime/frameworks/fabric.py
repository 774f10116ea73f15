"""Lightning Fabric: the precision it was given, as with Lightning's Trainer."""

from __future__ import annotations

from .lightning import Lightning


class Fabric(Lightning):
    """Fabric wraps the user's own loop; its module wrapper adds nothing to the names that the user knows."""

    title = "Fabric"
    order = 60
    classes = ("lightning.fabric.wrappers",)
    awaits = ("lightning.fabric.fabric",)
    inserts = frozenset({"_forward_module", "_original_module"})
    maker = ("lightning.fabric.fabric", "Fabric")
