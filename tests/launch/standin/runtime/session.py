"""A runtime that keeps the real one's bargain with the launcher: rank files after every step, and the stop."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch

from ..model.vocabulary import Fact, Kind, Role, Site


def start(settings: Mapping[str, Any]) -> None:
    if os.environ.get("STANDIN_FAULT"):
        raise RuntimeError("the stand-in broke")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    seen: dict[str, Fact] = {}
    steps = 0

    def write(status: str) -> None:
        content = {
            "format": 1,
            "rank": rank,
            "world_size": world,
            "pid": os.getpid(),
            "status": status,
            "steps": max(0, steps - settings["skip"]),
            "coverage": {"attempts": steps, "setup": {"torch": torch.__version__}},
            "facts": [fact.as_json() for fact in seen.values()],
        }
        path = os.path.join(settings["ranks_folder"], f"rank-{rank}-{os.getpid()}.json")
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(path + ".tmp", path)

    def on_step(dtype: str) -> None:
        nonlocal steps
        steps += 1
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__") == "torch":
            frame = frame.f_back
        site = Site(frame.f_code.co_filename, frame.f_lineno)
        seen[dtype] = Fact(
            kind=Kind.HOLDS, dtype=dtype, role=Role.OPTIMIZER_STATE, site=site, detail="exp_avg", count=4, bytes=64
        )
        if steps < settings["skip"] + settings["steps"]:
            write("watching")
            return
        torch.on_step = None
        write("finished" if settings["keep_going"] else "stopped")
        if not settings["keep_going"]:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    torch.on_step = on_step
