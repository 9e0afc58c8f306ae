"""The table of VM exits by reason, as `perf kvm stat report` lays it out, with the manual's number beside."""

from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np

from vmx.ledger.ledger import Ledger
from vmx.virt.reasons import linux_name

HEADINGS = ("VM-EXIT", "No.", "Samples", "Samples%", "Time%", "Min Time", "Max Time", "Avg time")
EXTREMES = ("Min Time", "Max Time")


def _rows(ledger: Ledger) -> list[tuple[str, ...]]:
    statistics = ledger.statistics()
    samples = sum(row.samples for row in statistics)
    total_ns = sum(row.total_ns for row in statistics)
    return [
        (
            linux_name(row.reason),
            str(row.reason),
            str(row.samples),
            f"{100 * row.samples / samples:.2f}%",
            f"{100 * row.total_ns / total_ns if total_ns else 0:.2f}%",
            f"{row.min_ns / 1000:.2f}us",
            f"{row.max_ns / 1000:.2f}us",
            f"{row.mean_ns / 1000:.2f}us ( +- {row.relative_error_percent:6.2f}% )",
        )
        for row in statistics
    ]


def totals_line(ledger: Ledger) -> str:
    """The last line of the table."""
    total_ns = sum(row.total_ns for row in ledger.statistics())
    return f"Total Samples:{len(ledger)}, Total events handled time:{total_ns / 1000:.2f}us."


def exit_table_text(ledger: Ledger) -> str:
    """The table as plain text."""
    if not len(ledger):
        return "No VM exits."
    rows = _rows(ledger)
    widths = [max(len(row[column]) for row in [HEADINGS, *rows]) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in [HEADINGS, *rows]
    ]
    return "\n".join([lines[0], "", *lines[1:], "", totals_line(ledger)])


def exit_table_json(ledger: Ledger) -> list[dict[str, Any]]:
    """One object per reason: the manual's number, Linux's spelling, samples and host times in ns."""
    return [
        {
            "reason": row.reason,
            "name": linux_name(row.reason),
            "samples": row.samples,
            "total_ns": row.total_ns,
            "min_ns": row.min_ns,
            "max_ns": row.max_ns,
            "mean_ns": round(row.mean_ns, 1),
            "relative_error_percent": round(row.relative_error_percent, 2),
        }
        for row in ledger.statistics()
    ]


def print_exit_table(ledger: Ledger, file: TextIO) -> None:
    """Print the table: with bold headings where `file` is a terminal and rich is installed, else plain."""
    if len(ledger) and file.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            console = Console(file=file)
            rows = _rows(ledger)
            # A narrow terminal shows no extremes: cut-off numbers would be worse. Pipes and JSON have them.
            wide = max(map(len, exit_table_text(ledger).splitlines())) + len(HEADINGS) <= console.width
            shown = [column for column in range(len(HEADINGS)) if wide or HEADINGS[column] not in EXTREMES]
            table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0), header_style="bold")
            for column in shown:
                table.add_column(HEADINGS[column], justify="right" if column else "left", no_wrap=True)
            for row in rows:
                table.add_row(*(row[column] for column in shown))
            console.print(table)
            console.print(totals_line(ledger), highlight=False)
            return
    print(exit_table_text(ledger), file=file)


def exit_lines(records: np.ndarray) -> Iterator[str]:
    """One line per exit record, fields in the words of Linux's `kvm_exit` tracepoint."""
    for record in records:
        yield (
            f"{record['sequence']:>8} {record['virtual_ns'] / 1000:>14.3f}us kvm_exit: vcpu {record['cpu']} "
            f"reason {linux_name(int(record['reason']))} rip 0x{record['guest_rip']:x} "
            f"info1 0x{record['qualification']:016x} gpa 0x{record['guest_physical']:x} "
            f"intr_info 0x{record['interruption_info']:08x}"
        )
