"""Progress through a file: what is written in one process is shown in another."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.launching import Listener
from spark13b.cluster import relay
from spark13b.cluster.relay import RecordedProgress, Relay


def test_many_small_advances_between_two_writings_become_one_of_their_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_WRITE_EVERY_SECONDS", 1000)
    signs: list[int] = []
    recorded = RecordedProgress(tmp_path / "progress", lambda: signs.append(1))
    with recorded.track("reading", 1000, "rows") as meter:
        for step in range(1000):
            meter.show(step=str(step))
            meter.advance(2)
    listener = Listener()
    Relay(tmp_path / "progress", listener).follow()
    advances = [event for event in listener.heard if isinstance(event, float)]
    assert advances == [2000]
    assert len(signs) >= 3
    assert listener.heard[-3:] == [{"step": "999"}, advances[-1], "end"]


def test_a_line_half_written_waits_for_its_end(tmp_path: Path) -> None:
    listener = Listener()
    follower = Relay(tmp_path / "progress", listener)
    follower.follow()
    RecordedProgress(tmp_path / "progress", lambda: None).note("你好")
    whole = (tmp_path / "progress.0").read_bytes()
    cut = whole.index("好".encode()) + 1
    (tmp_path / "progress.0").write_bytes(whole[:cut])
    follower.follow()
    assert listener.heard == []
    (tmp_path / "progress.0").write_bytes(whole)
    follower.follow()
    assert listener.heard == ["你好"]


def test_the_bars_of_a_worker_that_died_are_closed(tmp_path: Path) -> None:
    recorded, listener = RecordedProgress(tmp_path / "progress", lambda: None), Listener()
    with Relay(tmp_path / "progress", listener) as follower:
        open_bar = recorded.track("training", 10, "steps")
        open_bar.__enter__()
        follower.follow()
        assert listener.heard == [("training", 10, "steps")]
    assert listener.heard[-1] == "end"


def test_files_that_are_full_and_shown_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_FILE_BYTES", 200)
    recorded, listener = RecordedProgress(tmp_path / "progress", lambda: None), Listener()
    follower = Relay(tmp_path / "progress", listener)
    for number in range(50):
        recorded.note(f"note {number}")
        follower.follow()
    for number in range(50, 60):
        recorded.note(f"note {number}")
    for _ in range(5):
        follower.follow()
    assert listener.heard == [f"note {number}" for number in range(60)]
    assert len(list(tmp_path.iterdir())) <= 1
