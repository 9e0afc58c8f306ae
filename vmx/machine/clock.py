"""Virtual time: nanoseconds that advance with retired instructions, and the events that devices wait for.

Nothing here reads the host's clock. The machine injects `read_ns`; a device says when it next acts with
`set_event`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable


class Clock:
    """`now` in ns, and one pending event per key.

    Events that are due run in order of (time, first registration of their key), so that a run repeats
    exactly.
    """

    def __init__(self, read_ns: Callable[[], int]):
        self.read_ns = read_ns
        # key -> [order, at or None, callback]; a key keeps its order for ever
        self._events: dict[Hashable, list] = {}
        self._next: int | None = None

    @property
    def now(self) -> int:
        return self.read_ns()

    def set_event(self, key: Hashable, at_ns: int | None, callback: Callable[[int], None]) -> None:
        """`callback(now)` runs once `now` has reached `at_ns`; None means no event. Replaces the key's
        earlier one.
        """
        event = self._events.get(key)
        if event is None:
            self._events[key] = [len(self._events), at_ns, callback]
            old = None
        else:
            old = event[1]
            event[1] = at_ns
            event[2] = callback
        earliest = self._next
        if at_ns is not None and (earliest is None or at_ns <= earliest):
            self._next = at_ns
        elif old is not None and old == earliest:
            self._next = self._earliest()

    def schedule(self, key: Hashable, at_ns: int, callback: Callable[[int], None]) -> None:
        self.set_event(key, at_ns, callback)

    def cancel(self, key: Hashable) -> None:
        event = self._events.get(key)
        if event is not None:
            self.set_event(key, None, event[2])

    def next_event(self) -> int | None:
        """Time in ns of the earliest event, or None."""
        return self._next

    def run_due(self) -> int:
        """Runs every event due at `now`; returns how many ran. An event may set events, also due ones."""
        ran = 0
        while self._next is not None:
            now = self.read_ns()
            if self._next > now:
                break
            due = [event for event in self._events.values() if event[1] is not None and event[1] <= now]
            event = min(due, key=lambda each: (each[1], each[0]))
            event[1] = None
            self._next = self._earliest()
            event[2](now)
            ran += 1
        return ran

    def _earliest(self) -> int | None:
        return min((event[1] for event in self._events.values() if event[1] is not None), default=None)
