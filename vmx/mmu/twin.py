"""The plain-Python twin of the page walkers: slow, obvious, and written from the manual's text alone.

It shares no code with the compiled walkers, and tests hold each of them to it. It is also the readable one: a
`Result` lists every paging-structure entry that was read, guest's and EPT's, in order.

Manual: "Paging" (tables "Use of CR3", "Format of a Page-Directory Entry that Maps a 4-MByte Page" and their
neighbours; "Access Rights"; "Page-Fault Exceptions") and "The Extended Page Table Mechanism (EPT)".
"""

from collections.abc import Callable
from dataclasses import dataclass, field

READ, WRITE, FETCH = 0, 1, 2  # kinds of access
IMPLICIT = 8


@dataclass
class State:
    """What a translation depends on. `read` gives the eight bytes at a physical address, unsigned."""

    read: Callable[[int], int]
    cr0: int = 0
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    cpl: int = 0
    ac: bool = False  # EFLAGS.AC
    pdptes: tuple[int, ...] = (0, 0, 0, 0)
    eptp: int = 0  # 0: EPT is off
    physical_address_bits: int = 40


@dataclass(frozen=True)
class Step:
    """One paging-structure entry that was read: its name, where it was read, its value."""

    name: str
    address: int
    entry: int


@dataclass
class Result:
    """Outcome of a walk.

    kind: "ok", "page fault", "general protection", "EPT violation", "EPT misconfiguration".
    writes: accessed and dirty flags, as (physical address, bytes, new value of the entry), in order.
    """

    kind: str = "ok"
    gpa: int = 0
    hpa: int = 0
    error_code: int = 0
    qualification: int = 0
    page_size: int = 4096
    global_page: bool = False
    steps: list[Step] = field(default_factory=list)
    writes: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def references(self) -> int:
        """How many paging-structure entries were read."""
        return len(self.steps)


class _Ended(Exception):
    """The walk cannot go on; the result says why."""


def bits(value: int, high: int, low: int) -> int:
    """Bits high:low of a value."""
    return value >> low & (1 << (high - low + 1)) - 1


def bit(value: int, position: int) -> int:
    """One bit of a value."""
    return value >> position & 1


# A level of a walk: name, the bits of the address that select its entry, and whether the entry may map a page
# (of 1 << low bytes) when its bit 7 is set.
_TWO_LEVELS = (("PDE", 31, 22, True), ("PTE", 21, 12, False))
_PAE_LEVELS = (("PDE", 29, 21, True), ("PTE", 20, 12, False))
_FOUR_LEVELS = (
    ("PML4E", 47, 39, False),
    ("PDPTE", 38, 30, True),
    ("PDE", 29, 21, True),
    ("PTE", 20, 12, False),
)


class _Walk:
    def __init__(self, state: State, linear: int, access: int):
        self.state, self.linear, self.kind = state, linear, access & 3
        self.implicit = bool(access & IMPLICIT)
        self.user_mode = state.cpl == 3 and not self.implicit
        self.result = Result()
        self.changed: dict[int, int] = {}  # bytes written so far, which later reads of this walk see

    # --- memory ---

    def read(self, name, address, size):
        value = self.state.read(address)
        for i in range(size):
            if address + i in self.changed:
                value = value & ~(0xFF << 8 * i) | self.changed[address + i] << 8 * i
        value &= (1 << 8 * size) - 1
        self.result.steps.append(Step(name, address, value))
        return value

    def write(self, address, size, value):
        self.result.writes.append((address, size, value))
        for i in range(size):
            self.changed[address + i] = value >> 8 * i & 0xFF

    # --- ways to end ---

    def page_fault(self, present, reserved=0):
        state = self.state
        code = present | (self.kind == WRITE) << 1 | self.user_mode << 2 | reserved << 3
        no_execute_exists = bit(state.cr4, 5) and bit(state.efer, 11)
        if self.kind == FETCH and (bit(state.cr4, 20) or no_execute_exists):
            code |= 1 << 4
        self.result.kind, self.result.error_code = "page fault", code
        raise _Ended

    def violation(self, gpa, qualification):
        self.result.kind, self.result.gpa = "EPT violation", gpa
        self.result.qualification = qualification
        raise _Ended

    # --- EPT ---

    def through_ept(self, gpa, qualification):
        """Physical address of a guest-physical address; `qualification`: the bits that the access decides."""
        state = self.state
        flags_enabled = bit(state.eptp, 6)
        paging_structure = bit(qualification, 7) and not bit(qualification, 8)
        if flags_enabled and paging_structure:
            qualification |= 1 << 1
        table = bits(state.eptp, 51, 12) << 12
        allowed = 0b111
        for name, high, low, may_map in _FOUR_LEVELS:
            address = table + 8 * bits(gpa, high, low)
            entry = self.read("EPT " + name, address, 8)
            if bits(entry, 2, 0) == 0:
                self.violation(gpa, qualification)  # 5:3 are clear when an entry is not present
            maps = name == "PTE" or (may_map and bit(entry, 7))
            if self.misconfigured(name, entry, maps, low):
                self.result.kind, self.result.gpa = "EPT misconfiguration", gpa
                raise _Ended
            allowed &= bits(entry, 2, 0)
            if maps:
                break
            if flags_enabled and not bit(entry, 8):
                self.write(address, 8, entry | 1 << 8)
            table = bits(entry, 51, 12) << 12
        if bits(qualification, 2, 0) & ~allowed:
            self.violation(gpa, qualification | allowed << 3)
        if flags_enabled:
            new = entry | 1 << 8 | bit(qualification, 1) << 9
            if new != entry:
                self.write(address, 8, new)
        return (bits(entry, 51, low) << low) + bits(gpa, low - 1, 0), allowed

    def misconfigured(self, name, entry, maps, low):
        readable, writable = bit(entry, 0), bit(entry, 1)
        if writable and not readable:
            return True
        if bits(entry, 51, self.state.physical_address_bits):
            return True
        if maps:
            return bits(entry, 5, 3) in (2, 3, 7) or (low > 12 and bits(entry, low - 1, 12) != 0)
        return bits(entry, 6, 3) != 0 or bit(entry, 7) != 0

    # --- guest paging ---

    def guest_entry(self, name, address, size):
        """Read a guest's entry. Returns it, where it is, and whether EPT lets the processor write there."""
        physical, writable = address, True
        if self.state.eptp:
            physical, allowed = self.through_ept(address, 1 << 0 | 1 << 7)
            writable = bool(bit(allowed, 1))
            self.write_denied = 1 << 1 | 1 << 7 | allowed << 3
        return self.read(name, physical, size), physical, writable

    def set_flags(self, gpa, physical, size, entry, flags, writable):
        if entry & flags == flags:
            return
        if not writable:
            self.violation(gpa, self.write_denied)
        self.write(physical, size, entry | flags)

    def check_canonical(self):
        if self.linear >> 47 not in (0, (1 << 17) - 1):
            self.result.kind = "general protection"
            raise _Ended

    def guest(self):
        """The guest-physical address of the linear address."""
        state, linear = self.state, self.linear
        if bit(state.efer, 10):
            self.check_canonical()
        if not bit(state.cr0, 31):
            return linear
        if not bit(state.cr4, 5):
            return self.levels(_TWO_LEVELS, 4, bits(state.cr3, 31, 12) << 12)
        if not bit(state.efer, 10):
            pdpte = state.pdptes[bits(linear, 31, 30)]
            if not bit(pdpte, 0):
                self.page_fault(0)
            return self.levels(_PAE_LEVELS, 8, bits(pdpte, state.physical_address_bits - 1, 12) << 12)
        return self.levels(_FOUR_LEVELS, 8, bits(state.cr3, state.physical_address_bits - 1, 12) << 12)

    def reserved_bits_set(self, levels, name, entry, maps, low):
        state = self.state
        if levels is _TWO_LEVELS:
            # 4-MByte pages: bits 20:13 are address bits 39:32 (PSE-36), bit 21 must be 0
            return maps and low == 22 and bit(entry, 21)
        top = 62 if levels is _PAE_LEVELS else 51
        if bits(entry, top, state.physical_address_bits):
            return True
        if not bit(state.efer, 11) and bit(entry, 63):
            return True
        if name == "PML4E":
            return bit(entry, 7)
        return maps and low > 12 and bits(entry, low - 1, 13) != 0

    def levels(self, levels, size, table):
        state, linear = self.state, self.linear
        user_page = writable_page = True
        execute_disable = False
        for name, high, low, may_map in levels:
            gpa = table + size * bits(linear, high, low)
            entry, physical, writable = self.guest_entry(name, gpa, size)
            if not bit(entry, 0):
                self.page_fault(0)
            large = may_map and bit(entry, 7) and (levels is not _TWO_LEVELS or bit(state.cr4, 4))
            maps = name == "PTE" or large
            if self.reserved_bits_set(levels, name, entry, maps, low):
                self.page_fault(1, 1)
            writable_page &= bool(bit(entry, 1))
            user_page &= bool(bit(entry, 2))
            execute_disable |= size == 8 and bool(bit(entry, 63))
            if maps:
                break
            self.set_flags(gpa, physical, size, entry, 1 << 5, writable)
            table = bits(entry, min(8 * size, state.physical_address_bits) - 1, 12) << 12
        if not self.access_allowed(user_page, writable_page, execute_disable):
            self.page_fault(1)
        flags = 1 << 5 | 1 << 6 if self.kind == WRITE else 1 << 5
        self.set_flags(gpa, physical, size, entry, flags, writable)
        self.result.page_size = 1 << low
        self.result.global_page = bool(bit(entry, 8))
        if low == 22:
            base = bits(entry, 31, 22) << 22 | bits(entry, 20, 13) << 32
        else:
            base = (
                bits(entry, state.physical_address_bits - 1, low) << low
                if size == 8
                else bits(entry, 31, 12) << 12
            )
        return base + bits(linear, low - 1, 0)

    def access_allowed(self, user_page, writable_page, execute_disable):
        """ "Determination of Access Rights", paragraph by paragraph."""
        state = self.state
        write_protect, smep, smap = bit(state.cr0, 16), bit(state.cr4, 20), bit(state.cr4, 21)
        if self.user_mode:
            if not user_page:
                return False
            if self.kind == WRITE:
                return writable_page
            return not execute_disable if self.kind == FETCH else True
        if self.kind == FETCH:
            if user_page and smep:
                return False
            return not execute_disable
        if user_page and smap and (self.implicit or not state.ac):
            return False
        if self.kind == WRITE and write_protect:
            return writable_page
        return True

    def run(self):
        try:
            gpa = self.guest()
            hpa = gpa
            if self.state.eptp:
                hpa, _ = self.through_ept(gpa, 1 << self.kind | 1 << 7 | 1 << 8)
            self.result.gpa, self.result.hpa = gpa, hpa
        except _Ended:
            pass
        return self.result


def walk(state: State, linear: int, access: int) -> Result:
    """Translate a linear address (unsigned) for an access: READ, WRITE or FETCH, | IMPLICIT."""
    return _Walk(state, linear, access).run()
