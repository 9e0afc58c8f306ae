"""What every device shares: access sizes, usual windows, snapshot by field names."""

from __future__ import annotations

ALL_ONES = {
    size: (1 << 8 * size) - 1 for size in range(1, 9)
}  # an access that crosses a page comes in two parts of any size
NS_PER_SECOND = 1_000_000_000


def plain(value):
    """A copy of `value` that shares no list or dict with the device."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, bytearray):
        return bytes(value)
    return value


def check_names(who: str, state: dict, names) -> None:
    """ValueError when a snapshot's names differ: it is of another version."""
    if set(state) != set(names):
        wrong = ", ".join(sorted(set(state) ^ set(names)))
        raise ValueError(f"{who}: state has missing or unknown fields: {wrong}")


class Device:
    """Base of all devices.

    `access_sizes`: the widths in bytes that `read` and `write` take; the bus splits any other access into
    bytes.
    `WINDOWS`: where a PC puts the device, as (base, length, offset of the base within the device).
    `FIELDS`: the attributes that make up the state; each holds plain values.
    """

    access_sizes: tuple[int, ...] = (1,)
    WINDOWS: tuple[tuple[int, int, int], ...] = ()
    FIELDS: tuple[str, ...] = ()

    def reset(self) -> None:
        """Power-on state, as the data sheet gives it."""

    def read(self, offset: int, size: int) -> int:
        return ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        """Without registers, a write has no effect."""

    def next_event(self) -> int | None:
        """Virtual time in ns of the next change that the device makes by itself, or None."""
        return None

    def run_events(self, now: int) -> None:
        """Carries out everything due at `now` (ns)."""

    def state(self) -> dict:
        return {name: plain(getattr(self, name)) for name in self.FIELDS}

    def load(self, state: dict) -> None:
        """Takes over a `state()`. ValueError when the names differ: the snapshot is of another version."""
        check_names(type(self).__name__, state, self.FIELDS)
        for name in self.FIELDS:
            old = getattr(self, name)
            value = plain(state[name])
            setattr(self, name, bytearray(value) if isinstance(old, bytearray) else value)
        self.after_load()

    def after_load(self) -> None:
        """Drives lines and timers from the loaded fields."""
