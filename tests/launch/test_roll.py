"""What a reader is told of ranks that ended first, late, silently or elsewhere; and nothing where all went well."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from precaudit.launch import roll
from precaudit.launch.collect import read_peers
from precaudit.launch.merge import Merged
from precaudit.launch.roll import Ends
from precaudit.model.wire import PeerFile, RankFile


def seen(world: int, **statuses: str) -> Merged:
    out = Merged()
    for name, status in statuses.items():
        out.add(RankFile(format=1, rank=int(name[1:]), world_size=world, status=status))  # type: ignore[arg-type]
    out.finish()
    return out


def peer(rank: int, state: str, world: int = 2, **more: object) -> PeerFile:
    return PeerFile(pid=100 + rank, rank=rank, state=state, world_size=world, **more)  # type: ignore[arg-type]


def ends(*order: set[int], running: set[int] | None = None) -> Ends:
    out = Ends(Path("nowhere"))
    out.at = {100 + rank: float(moment) for moment, ranks in enumerate(order) for rank in ranks}
    out.running = {100 + rank for rank in running or ()}
    return out


def test_ranks_that_all_stopped_need_no_word() -> None:
    peers = [peer(0, "stopped", done=True), peer(1, "stopped", done=True)]
    assert roll.call(seen(2, r0="stopped", r1="stopped"), peers, ends({0}, {1})) == []


def test_a_rank_that_was_stopped_was_not_killed_whatever_it_had_seen_of_its_window() -> None:
    peers = [peer(0, "stopped"), peer(1, "stopped")]
    assert roll.call(seen(2, r0="stopped", r1="stopped"), peers, ends({0}, {1})) == []


def test_the_first_of_several_to_end_is_named_and_the_others_are_said_to_follow() -> None:
    peers = [peer(0, "gone", error="RuntimeError: Connection closed by peer"), peer(1, "running")]
    assert roll.call(seen(2, r0="watching", r1="watching"), peers, ends({1}, {0})) == [
        "rank 1 ended first, before the traced steps were over, without a word (killed, out of memory, or os._exit); "
        "rank 0 ended after it"
    ]


def test_the_first_to_fail_is_named_with_its_error_though_others_were_then_killed() -> None:
    peers = [peer(0, "running"), peer(1, "gone", error="ValueError: bad data")]
    (line,) = roll.call(seen(2, r0="watching", r1="watching"), peers, ends({1}, {0}))
    assert line == (
        "rank 1 ended first, before the traced steps were over, with ValueError: bad data; rank 0 ended after it"
    )


def test_where_nobody_saw_the_order_the_one_without_a_word_was_first() -> None:
    peers = [peer(0, "gone", error="RuntimeError: Connection closed by peer"), peer(1, "running")]
    (line,) = roll.call(seen(2, r0="watching", r1="watching"), peers)
    assert line.startswith("rank 1 ended first")


def test_ranks_that_are_late_silent_or_elsewhere_are_said() -> None:
    peers = [peer(0, "stopped", 4, done=True), peer(1, "running", 4), peer(2, "gone", 4)]
    assert roll.call(seen(4, r0="stopped"), peers, ends({0}, {2}, running={1})) == [
        "rank 1 was still running when the command had ended",
        "rank 2 of 4 joined the process group and ran no backward",
        "rank 3 of 4 wrote nothing here: on another node, or ended before joining",
    ]


def test_a_rank_without_any_peer_that_ended_early_is_said() -> None:
    merged = seen(3, r0="stopped", r1="stopped", r2="watching")
    assert roll.call(merged, []) == ["rank 2 ended before the traced steps were over"]


def test_ranks_that_were_left_behind_are_said_and_do_not_decide() -> None:
    merged = seen(2, r1="watching")
    merged.add(RankFile(format=1, rank=0, world_size=2, status="stopped", without=[1]))
    assert merged.statuses == ["stopped"]
    assert roll.call(merged, [])[0].startswith("the other ranks stopped without waiting for rank 1")


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd_open is Linux's")
def test_ends_are_noticed_in_their_order_and_waited_for_never(tmp_path: Path) -> None:
    sleepers = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
    with Ends(tmp_path) as noticed:
        for number, process in enumerate(sleepers):
            told = json.dumps({"pid": process.pid, "rank": number, "state": "running"})
            (tmp_path / f"peer-{process.pid}").write_text(f"1 {told} 1")
        time.sleep(0.5)
        for process in (sleepers[2], sleepers[0]):
            process.kill()
            time.sleep(0.3)
    assert sorted(noticed.at, key=lambda pid: noticed.at[pid]) == [sleepers[2].pid, sleepers[0].pid]
    assert noticed.running == {sleepers[1].pid}
    assert sorted(one.rank for one in read_peers(tmp_path)) == [0, 1, 2]
    for process in sleepers:
        process.kill()
        process.communicate()
