"""What trackers kept, by each tracker's own reader."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32768, 7
"""A .wandb file is a log of LevelDB's kind behind a head of 7 bytes: records in blocks, each behind its own 7 bytes."""


def records(file: Path) -> Iterator[bytes]:
    """The records of an offline run, of which wandb itself has no reader in Python."""
    raw, at, record = file.read_bytes(), HEAD, b""
    while at + HEAD <= len(raw):
        if BLOCK - at % BLOCK < HEAD:
            at += BLOCK - at % BLOCK
        length, kind = struct.unpack_from("<HB", raw, at + 4)
        record += raw[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def summaries(folder: Path) -> list[dict[str, Any]]:
    """The summary of each offline run, as it would be synced."""
    from wandb.proto import wandb_internal_pb2 as proto

    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        values: dict[str, Any] = {}
        for record in map(proto.Record.FromString, records(file)):
            values |= {(u.key or ".".join(u.nested_key)): json.loads(u.value_json) for u in record.summary.update}
        found.append(values)
    return found


def mlflow_runs(environment: dict[str, str]) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()]))


def tensorboard_values(folder: Path) -> dict[str, Any]:
    """The first number or text of each tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    tags = reader.Tags()
    values: dict[str, Any] = {tag: reader.Scalars(tag)[0].value for tag in tags["scalars"]}
    for tag in tags["tensors"]:
        values[tag.removesuffix("/text_summary")] = reader.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    return values


def trackio_rows(environment: dict[str, str], project: str) -> list[dict[str, Any]]:
    """The rows of all runs of a project; trackio reads its folder from the environment as it is imported."""
    code = (
        "from trackio import SQLiteStorage as s\n"
        "import json\n"
        f"rows = [row for run in s.get_runs({project!r}) for row in s.get_logs({project!r}, run)]\n"
        "print(json.dumps(rows, default=str))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return list(json.loads(done.stdout))
