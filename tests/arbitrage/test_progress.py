"""Bars on a terminal only, and streams that are the same behind one."""

from __future__ import annotations

import io
import sys

import numpy as np

from arbitrage import Rows, calibrate, calibrate_stream
from arbitrage.progress import ShownStream, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Sized(list):
    def __len__(self) -> int:
        return sum(len(rows.primary) for rows in self)


def test_a_bar_is_for_terminals(monkeypatch):
    for screen, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", screen)
        with progress_bar(3, "split", delay=0) as tell:
            tell(3)
        assert bool(screen.getvalue()) is shown
    with progress_bar(3, "split", wanted=False) as tell:
        tell(1)


def test_a_shown_stream_gives_the_same_rows_each_time():
    p, g = np.random.default_rng(0).random((2, 90, 3), dtype=np.float32)
    stream = ShownStream(Sized([Rows(p[:50], g[:50]), Rows(p[50:], g[50:])]))
    assert len(stream) == 90
    for _ in range(2):
        assert [len(rows.primary) for rows in stream] == [50, 40]
    found = calibrate_stream(stream, alpha="0.2", bound=1)
    assert found.threshold == calibrate(p, g, alpha="0.2", bound=1).threshold
