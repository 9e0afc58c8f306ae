"""What holds for every device: snapshots, and no guest-controlled value may raise or leave its width."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import DEVICES, Time

ACCESS = st.tuples(
    st.booleans(),
    st.integers(0, 0xFFF),
    st.integers(0, 3),
    st.one_of(st.integers(0, 0xFF), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 100), st.integers(0, 3_000_000_000)),
)
quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def run(device, length, time, accesses):
    for is_write, offset, size, value, wait in accesses:
        sizes = device.access_sizes
        size = sizes[size % len(sizes)]
        offset = offset * 16 if length == 0x1000 and offset < 0x40 else offset
        offset = offset % max(1, length - size + 1)
        if is_write:
            device.write(offset, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= device.read(offset, size) < 1 << 8 * size
        event = device.next_event()
        assert event is None or isinstance(event, int)
        # Coarse steps: a timer with a period of a few ns must not make the test long.
        time.ns += wait
        time.clock.run_due()


@pytest.mark.parametrize("name", DEVICES)
@given(accesses=st.lists(ACCESS, max_size=40))
@quick
def test_random_accesses(name, accesses):
    time = Time()
    make, length = DEVICES[name]
    run(make(time), length, time, accesses)


@pytest.mark.parametrize("name", DEVICES)
@given(accesses=st.lists(ACCESS, max_size=30), more=st.lists(ACCESS, max_size=10))
@quick
def test_state_round_trip(name, accesses, more):
    make, length = DEVICES[name]
    time, copy_time = Time(), Time()
    device, copy = make(time), make(copy_time)
    run(device, length, time, accesses)
    copy_time.ns = time.ns
    state = device.state()
    copy.load(state)
    assert copy.state() == state
    assert copy.next_event() == device.next_event()
    # A device that owns its whole state also behaves the same from here on.
    if name not in ("port61", "lapic_page", "pci"):
        run(device, length, time, more)
        run(copy, length, copy_time, more)
        assert copy.state() == device.state()


@pytest.mark.parametrize("name", DEVICES)
def test_load_names_foreign_fields(name, time):
    with pytest.raises(ValueError, match="no_such_field"):
        DEVICES[name][0](time).load({"no_such_field": 1})
