"""The ledger: one entry per VM exit, opened before the handler runs and closed after it.

A Linux boot takes hundreds of thousands of exits, so an entry costs about a microsecond: `struct` packs it
into a byte buffer that doubles when it is full, several times cheaper than assigning to a numpy record.
Counts and handler times per reason are kept even when the records are not (`record=False`).
"""

import math
import struct
from dataclasses import dataclass

import numpy as np

from vmx.ledger.record import EXIT_RECORD, struct_format

REASONS = 1 << 8  # the manual defines fewer than a hundred; one slot each makes counting an index

_PACK = struct.Struct(struct_format(EXIT_RECORD)).pack_into
_STORE_NS = struct.Struct("<Q").pack_into
_RECORD_BYTES = EXIT_RECORD.itemsize
_HANDLER_NS = EXIT_RECORD.fields["handler_ns"][1]  # type: ignore[index]


@dataclass(frozen=True)
class ReasonStatistics:
    """Exits of one reason: how many, and the host time of their handlers in ns."""

    reason: int
    samples: int
    total_ns: int
    min_ns: int
    max_ns: int
    square_ns: float  # sum of squares

    @property
    def mean_ns(self) -> float:
        return self.total_ns / self.samples if self.samples else 0.0

    @property
    def relative_error_percent(self) -> float:
        """Standard error of the mean in percent of the mean, the `+-` of `perf kvm stat report`."""
        if self.samples < 2 or not self.total_ns:
            return 0.0
        variance = max(0.0, self.square_ns - self.total_ns * self.mean_ns) / (self.samples - 1)
        return 100.0 * math.sqrt(variance / self.samples) / self.mean_ns


class Ledger:
    """VM exits of one run, in order.

    `record=False` keeps only counts and times per reason. `len(ledger)` is the number of exits either way.
    """

    def __init__(self, record: bool = True, capacity: int = 4096):
        self.record = record
        self._buffer = bytearray(max(1, capacity) * _RECORD_BYTES if record else 0)
        self._exits = 0
        self._open: dict[int, int] = {}  # sequence -> reason of entries not closed yet
        self._counts = [0] * REASONS
        self._total_ns = [0] * REASONS
        self._square_ns = [0.0] * REASONS
        self._min_ns = [0] * REASONS
        self._max_ns = [0] * REASONS
        self._closed = [0] * REASONS

    def __len__(self) -> int:
        return self._exits

    def open(
        self,
        reason: int,
        qualification: int = 0,
        *,
        retired: int = 0,
        virtual_ns: int = 0,
        cpu: int = 0,
        guest_rip: int = 0,
        instruction_length: int = 0,
        guest_physical: int = 0,
        guest_linear: int = 0,
        interruption_info: int = 0,
        idt_vectoring: int = 0,
    ) -> int:
        """Enter an exit of basic reason `reason` (bits 15:0); returns its sequence number, for `close`."""
        sequence = self._exits
        self._exits = sequence + 1
        self._counts[reason] += 1
        self._open[sequence] = reason
        if self.record:
            offset = sequence * _RECORD_BYTES
            buffer = self._buffer
            if offset == len(buffer):
                buffer.extend(bytes(len(buffer)))
            _PACK(
                buffer,
                offset,
                sequence,
                retired,
                virtual_ns,
                cpu,
                reason,
                instruction_length,
                qualification,
                guest_rip,
                guest_physical,
                guest_linear,
                interruption_info,
                idt_vectoring,
                0,
            )
        return sequence

    def close(self, sequence: int, handler_ns: int) -> None:
        """The exit's handler has returned after `handler_ns` of host time."""
        reason = self._open.pop(sequence)
        if self.record:
            _STORE_NS(self._buffer, sequence * _RECORD_BYTES + _HANDLER_NS, handler_ns)
        self._add_time(reason, handler_ns)

    def _add_time(self, reason: int, handler_ns: int) -> None:
        if not self._closed[reason] or handler_ns < self._min_ns[reason]:
            self._min_ns[reason] = handler_ns
        if handler_ns > self._max_ns[reason]:
            self._max_ns[reason] = handler_ns
        self._closed[reason] += 1
        self._total_ns[reason] += handler_ns
        self._square_ns[reason] += handler_ns * handler_ns

    def extend(self, records: np.ndarray) -> None:
        """Enter closed exits in one go, as compiled handlers hand them over; `sequence` is given here."""
        entries = np.zeros(len(records), EXIT_RECORD)
        for name in EXIT_RECORD.names or ():
            entries[name] = records[name]
        entries["sequence"] = np.arange(self._exits, self._exits + len(entries), dtype=np.uint64)
        for reason, handler_ns in zip(
            entries["reason"].tolist(), entries["handler_ns"].tolist(), strict=True
        ):
            self._counts[reason] += 1
            self._add_time(reason, handler_ns)
        if self.record:
            start = self._exits * _RECORD_BYTES
            end = start + len(entries) * _RECORD_BYTES
            if end > len(self._buffer):
                self._buffer.extend(bytes(max(end, 2 * len(self._buffer)) - len(self._buffer)))
            self._buffer[start:end] = entries.tobytes()
        self._exits += len(entries)

    @property
    def records(self) -> np.ndarray:
        """A copy of the records, shape (exits,), dtype `EXIT_RECORD`; empty when `record=False`."""
        if not self.record:
            return np.empty(0, EXIT_RECORD)
        return np.frombuffer(
            bytes(memoryview(self._buffer)[: self._exits * _RECORD_BYTES]), EXIT_RECORD
        ).copy()

    @property
    def counts(self) -> dict[int, int]:
        """Exits by basic reason, reasons that occurred only, in the manual's order."""
        return {reason: count for reason, count in enumerate(self._counts) if count}

    def statistics(self) -> list[ReasonStatistics]:
        """One entry per reason that occurred, most frequent first, equal counts in the manual's order."""
        rows = [
            ReasonStatistics(
                reason,
                count,
                self._total_ns[reason],
                self._min_ns[reason],
                self._max_ns[reason],
                self._square_ns[reason],
            )
            for reason, count in self.counts.items()
        ]
        return sorted(rows, key=lambda row: (-row.samples, row.reason))

    @classmethod
    def from_records(cls, records: np.ndarray) -> "Ledger":
        """The ledger of a recorded run."""
        ledger = cls(capacity=max(1, len(records)))
        ledger.extend(records)
        return ledger
