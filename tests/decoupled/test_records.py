"""What one writes and others read: whole, or not at all."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from localsgd.decoupled import Record, Shapes

SHAPES: Shapes = [(1000, np.dtype(np.float64)), (3, np.dtype(np.float32))]


def made() -> tuple[Record, Record, Any]:
    memory = np.zeros(Record.nbytes(2, SHAPES), np.uint8)
    return Record(memory, 2, SHAPES), Record(memory, 2, SHAPES), memory


def test_what_was_written_is_read() -> None:
    writer, reader, _ = made()
    arrays: list[Any] = [np.arange(1000.0), np.ones(3, np.float32)]
    writer.write([7, -1], arrays)
    into: list[Any] = [np.zeros(1000), np.zeros(3, np.float32)]
    assert reader.read(into) == reader.words() == [7, -1]
    assert [array.tolist() for array in into] == [array.tolist() for array in arrays]
    writer.note(1, 5)
    assert reader.word(1) == 5


def test_nothing_is_read_while_it_is_written() -> None:
    writer, reader, memory = made()
    writer.write([1, 1], writer.arrays)
    # The sequence is the first word; odd while somebody writes.
    memory.view(np.int64)[0] += 1
    assert reader.words() is None
    assert reader.read([]) is None


def test_a_reader_never_sees_half_of_a_record() -> None:
    """A thread writes k everywhere, for k = 1, 2, …; whatever is read is one k."""
    writer, reader, _ = made()
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            writer.write([number, number], [np.full(1000, number), np.full(3, number)])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        found = set[int]()
        into: list[Any] = [np.zeros(1000), np.zeros(3, np.float32)]
        while len(found) < 20:
            words = reader.read(into)
            if words is not None and words[0]:
                assert {*into[0].tolist(), *into[1].tolist(), *words} == {words[0]}
                found.add(words[0])
    finally:
        stop.set()
        thread.join()
