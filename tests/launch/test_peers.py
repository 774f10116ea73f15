"""The protocol by which ranks stop together, with forked processes whose collectives are barriers: none ever breaks."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from precaudit.runtime.process import peers
from precaudit.runtime.process.peers import Peers

FORK = multiprocessing.get_context("fork")
BROKEN, ENDED, STOPPED = 3, 4, 0
"""How a rank ended: in a collective that another one left, by its own end, or by the protocol."""


class Rank:
    """A rank of a made-up training: what it does between boundaries is written by the test."""

    def __init__(self, folder: Path, number: int, barrier: threading.Barrier, needs: int) -> None:
        self.number = number
        self.peers = Peers(str(folder), lambda: {"world": self.begun})
        self.begun = 0
        self.steps = 0
        self._barrier = barrier
        self._needs = needs
        self.peers.join()
        self._barrier.wait(10)
        self.peers.join(number, self._barrier.parties, "here")

    def collective(self) -> None:
        self.begun += 1
        try:
            self._barrier.wait(20)
        except threading.BrokenBarrierError:
            os._exit(BROKEN)

    def backward(self, *, synchronised: bool = True) -> None:
        if self.peers.before_backward():
            self._stop()
        if synchronised:
            self.collective()

    def step(self) -> None:
        self.steps += 1
        if self.steps == self._needs and self.peers.window_over(True):
            self._stop()
        if self.steps < self._needs:
            self.peers.after_step()

    def _stop(self) -> None:
        self.peers.last_words()
        os._exit(STOPPED)


def run(folder: Path, world: int, needs: Callable[[int], int], train: Callable[[Rank], None]) -> list[int | None]:
    """How each rank ended. `needs` are the steps of each rank's window."""
    barrier = FORK.Barrier(world)

    def work(number: int) -> None:
        train(Rank(folder, number, barrier, needs(number)))
        os._exit(ENDED)

    ranks = [FORK.Process(target=work, args=(number,)) for number in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(90)
    return [rank.exitcode for rank in ranks]


@pytest.mark.parametrize("seed", range(6))
def test_ranks_that_differ_in_everything_stop_together(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own numbers of micro-batches at each step, own windows, own speed; steps are synchronised as DDP's are."""
    world = 2 + seed % 3
    monkeypatch.setattr(peers, "NUDGE", 0.5)

    def train(rank: Rank) -> None:
        dice = random.Random(f"{seed} {rank.number}")
        for _ in range(200):
            for _ in range(dice.randrange(3)):
                rank.backward(synchronised=False)
                time.sleep(dice.random() / 500)
            rank.backward()
            if dice.random() < 0.7:
                rank.step()
            if seed % 2:
                rank.collective()

    assert run(tmp_path, world, lambda number: 1 + (number * seed) % 7, train) == [STOPPED] * world


def test_a_rank_that_never_steps_closes_with_the_others(tmp_path: Path) -> None:
    def train(rank: Rank) -> None:
        for step in range(60):
            rank.backward()
            if rank.number:
                rank.step()
            elif step > 30 and rank.peers.everybody_else_is_done() and rank.peers.window_over(True):
                rank._stop()

    assert run(tmp_path, 2, lambda number: 2, train) == [STOPPED] * 2


def test_a_dead_peer_is_not_waited_for(tmp_path: Path) -> None:
    def train(rank: Rank) -> None:
        rank.backward()
        if rank.number == 1:
            os._exit(9)
        time.sleep(0.3)
        rank.step()

    assert run(tmp_path, 2, lambda number: 1, train) == [STOPPED, 9]


def test_a_peer_in_a_collective_that_the_parked_rank_has_not_begun_is_helped_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "NUDGE", 0.3)

    def train(rank: Rank) -> None:
        for _ in range(60):
            rank.backward()
            if rank.number == 0:
                rank.step()
            rank.collective()
            if rank.number == 1 and rank.begun > 8:
                rank.steps = 0
                rank.step()

    assert run(tmp_path, 2, lambda number: 1, train) == [STOPPED] * 2


def test_a_peer_without_a_sign_is_given_up_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "NUDGE", 0.1)
    monkeypatch.setattr(peers, "PATIENCE", 0.6)
    left = FORK.Array("i", [-1] * 3)

    def train(rank: Rank) -> None:
        if rank.number == 2:
            time.sleep(4)
            return
        for _ in range(10**6):
            if rank.peers.before_backward():
                left[rank.number] = min(rank.peers.without)
                rank._stop()
            time.sleep(0.01)
            rank.step()

    assert run(tmp_path, 3, lambda number: 1, train) == [STOPPED, STOPPED, ENDED]
    assert list(left) == [2, 2, -1]


def test_two_worlds_in_one_folder_do_not_know_each_other(tmp_path: Path) -> None:
    one, other = Peers(str(tmp_path)), Peers(str(tmp_path))
    other.me.pid += 1
    for number, peer in enumerate((one, other)):
        peer._file = os.open(tmp_path / f"peer-{peer.me.pid}", os.O_CREAT | os.O_WRONLY)
        peer.me.rank, peer.me.rendezvous = number, f"port {number}"
        peer._say(peers.STOPPED)
    assert one.others() == other.others() == []


def test_a_file_that_is_being_written_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "peer-1"
    path.write_text('7 {"pid": 1, "rank": 0} 6')
    assert peers.read(str(path)) is None
    path.write_text('7 {"pid": 1, "rank": 0} 7   \n')
    found = peers.read(str(path))
    assert found is not None
    assert (found.turn, found.pid, found.rank) == (7, 1, 0)
