"""MachineConfig: values from keywords and TOML; messages that name the key, the file and what is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmx.errors import ConfigurationError, ExitStatus
from vmx.isa.features import FEATURES
from vmx.machine.config import MachineConfig, control_bits, parse_size

NAMES = sorted(control_bits())
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CONFIGS = st.builds(
    MachineConfig,
    append=TEXT,
    initrd=st.none() | TEXT.map(lambda name: "/" + name.replace("\0", "")),
    modules=st.lists(TEXT.map(lambda name: "/" + name), max_size=3).map(tuple),
    memory=st.integers(1 << 8, 1 << 28).map(lambda pages: pages * 4096),
    bare=st.booleans(),
    cpu_model=st.sampled_from(["v1", "v2"]),
    features=st.dictionaries(st.sampled_from(FEATURES), st.booleans(), max_size=4),
    controls=st.dictionaries(st.sampled_from(NAMES), st.booleans(), max_size=4),
    exception_bitmap=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**64 - 1),
    timeout_s=st.none() | st.floats(0.001, 1e9),
    load_mode=st.sampled_from([None, "real", "protected32", "long64"]),
)


@given(CONFIGS)
def test_toml_round_trip(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("config") / "vmx.toml"
    path.write_text(config.to_toml())
    assert MachineConfig.from_toml(path) == config
    assert MachineConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "text, size",
    [
        ("512M", 512 << 20),
        ("1G", 1 << 30),
        ("64KiB", 65536),
        ("2mb", 2 << 20),
        ("4096", 4096),
        ("0x1000", 4096),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


def test_text_is_accepted_where_people_write_text():
    config = MachineConfig(
        memory="64M", load_address="0x7C00", exception_bitmap="0x4000", rtc_start="2024-02-03"
    )
    assert (config.memory, config.load_address, config.exception_bitmap) == (64 << 20, 0x7C00, 0x4000)
    assert config.rtc_start == 1706918400


def test_toml_dates_and_relative_paths(tmp_path):
    path = tmp_path / "vmx.toml"
    path.write_text(
        'rtc_start = 2024-02-03\nkernel = "vmlinuz"\nmodules = ["a=b"]\n[controls]\nHLT_VMEXIT = true\n'
    )
    config = MachineConfig.from_toml(path)
    assert config.rtc_start == 1706918400
    assert config.kernel == str(tmp_path / "vmlinuz")
    assert config.module_pairs == [(str(tmp_path / "a"), "b")]
    assert config.controls == {"HLT_VMEXIT": True}


@pytest.mark.parametrize(
    "values, words",
    [
        ({"memory": "12Q"}, "such as 512M"),
        ({"memory": True}, "memory = True"),
        ({"memory": "4K"}, "must be between 1M and 1024G"),
        ({"memory": (1 << 20) + 1}, "4096-byte pages"),
        ({"cpus": 2}, "one virtual CPU"),
        ({"kernel": 3}, "kernel = 3"),
        ({"kernel": "a", "guest": "b"}, "both set"),
        ({"load_mode": "unreal"}, "'real' or 'protected32' or 'long64'"),
        ({"serial": "tcp"}, "'stdio' or 'null'"),
        ({"timeout_s": 0}, "a positive number"),
        ({"exception_bitmap": 1 << 32}, "32-bit mask"),
        ({"rtc_start": "yesterday"}, "2025-01-31"),
        ({"controls": {"HLT_EXIT": True}}, "did you mean 'HLT_VMEXIT'"),
        ({"controls": {"LOAD_EFER_MSR": True}}, "LOAD_EFER_MSR'"),  # of entry or of exit?
        ({"controls": {"HLT_VMEXIT": "on"}}, "bool"),
        ({"memmory": 1}, "did you mean 'memory'"),
    ],
)
def test_a_wrong_value_is_named(values, words):
    with pytest.raises(ConfigurationError) as caught:
        MachineConfig.from_dict(values, "machine.toml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("machine.toml: ")
    assert caught.value.exit_status == ExitStatus.BAD_CONFIGURATION


@pytest.mark.parametrize("text", ["memory = [", "memory = 1\nmemory = 2", "\xff"])
def test_a_file_that_is_not_toml_is_named(tmp_path, text):
    path = tmp_path / "broken.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError, match="broken.toml is not valid TOML"):
        MachineConfig.from_toml(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none.toml: No such file"):
        MachineConfig.from_toml(tmp_path / "none.toml")
