"""Integers survive the entropy coding, whatever their size; a frame that is damaged is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import WeightError
from services.weights.delta.streams import GAP_PRECISION, FrameReader, FrameWriter, bits_needed


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_gaps_of_any_size_survive(gaps: list[int]) -> None:
    writer = FrameWriter()
    writer.write_integers(np.array(gaps, np.uint64), GAP_PRECISION)
    read, _ = FrameReader(writer.finish()).read_integers(len(gaps), GAP_PRECISION)
    assert read.tolist() == gaps


@given(st.lists(st.tuples(st.integers(0, 2**15 - 1), st.integers(0, 1)), max_size=50))
def test_flags_travel_with_their_integers(pairs: list[tuple[int, int]]) -> None:
    integers = np.array([integer for integer, _ in pairs], np.uint64)
    flags = np.array([flag for _, flag in pairs], np.uint8)
    writer = FrameWriter()
    writer.write_integers(integers, 4, flags)
    read, read_flags = FrameReader(writer.finish()).read_integers(len(pairs), 4, flagged=True)
    assert read.tolist() == integers.tolist()
    assert read_flags.tolist() == flags.tolist()


def test_segments_are_read_as_they_were_written_in_pieces_of_any_size() -> None:
    writer = FrameWriter()
    writer.write(b"abc")
    writer.write(b"")
    writer.write(b"defgh")
    reader = FrameReader(writer.finish())
    assert [reader.read(1), reader.read(0), reader.read(5), reader.read(2)] == [b"a", b"", b"bcdef", b"gh"]
    with pytest.raises(WeightError, match="4 bytes too early"):
        reader.read(4)


def test_bytes_that_are_no_frame_and_symbols_that_stand_for_nothing_are_refused() -> None:
    with pytest.raises(WeightError, match="does not decompress"):
        FrameReader(b"no frame at all").read(1)
    writer = FrameWriter()
    writer.write(bytes([255]))
    with pytest.raises(WeightError, match="unknown symbol 255"):
        FrameReader(writer.finish()).read_integers(1, precision=1)


def test_equal_integers_need_no_bits_and_equally_frequent_ones_their_logarithm() -> None:
    assert bits_needed(np.full(100, 3, np.uint64), GAP_PRECISION) == 0
    assert bits_needed(np.arange(8, dtype=np.uint64), GAP_PRECISION) == pytest.approx(8 * 3)
    # one octave above the precision: one raw bit each beside the symbol's two
    assert bits_needed(np.arange(8, 16, dtype=np.uint64), GAP_PRECISION) == pytest.approx(8 * 3)
