"""What a machine is made of, and how long it runs: `MachineConfig`, from keywords or a TOML file.

Every value is checked when it is made, whatever it came from; the message names the key, the file and what
would be right. Numbers that people write as text ("512M", "0x4000", "2025-01-01") are accepted as text.
"""

import difflib
import json
import os
import tomllib
from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from vmx.errors import ConfigurationError, MissingDependencyError
from vmx.isa.features import FEATURES
from vmx.virt.controls import control_bits

try:
    import msgspec
except ImportError:
    raise MissingDependencyError("msgspec", "cli", "MachineConfig") from None

MIB = 1 << 20
_SIZE_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes from "512M", "1G", "64K", "4096" or "0x1000"; suffixes are powers of 1024, "MiB" too."""
    digits = text.strip().upper().removesuffix("IB").removesuffix("B") if not _is_hex(text) else text.strip()
    suffix = digits[-1:] if digits[-1:] in ("K", "M", "G") else ""
    try:
        return int(digits.removesuffix(suffix).strip(), 0) * _SIZE_SUFFIXES[suffix]
    except ValueError:
        raise ValueError(
            f"{text!r} is not a size; write bytes, or a number with K, M or G, such as 512M"
        ) from None


def parse_number(text: str) -> int:
    """A whole number in decimal, 0x, 0o or 0b notation."""
    try:
        return int(text.strip(), 0)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number; write it in decimal or with 0x") from None


def parse_time(value: str | date | datetime) -> int:
    """Seconds since 1970 from an ISO 8601 date or time; a time without a zone is UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a time; write it as 2025-01-31T12:00:00") from None
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())


def _is_hex(text: str) -> bool:
    return text.strip().lower().startswith("0x")


class MachineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine and its run. Raises `ConfigurationError` for a value that cannot be."""

    # What boots. Exactly one of `kernel` and `guest`; with neither, the bundled guest boots.
    kernel: str | None = None  # path: bzImage, ELF with a PVH note, multiboot-1 ELF, or a flat binary
    guest: str | None = None  # name of a bundled or pulled guest, see `vmx guests list`
    initrd: str | None = None  # path
    append: str = ""  # kernel command line
    modules: tuple[str, ...] = ()  # multiboot modules, each "FILE" or "FILE=string"
    load_address: int | None = None  # guest-physical address of a flat binary; text such as "0x7C00" too
    load_mode: Literal["real", "protected32", "long64"] | None = None  # mode in which a flat binary starts

    # The machine.
    memory: int = 512 * MIB  # bytes of RAM; text such as "512M" too
    cpus: int = 1
    ns_per_instruction: int = 16  # virtual time of one retired instruction
    rtc_start: int = 1735689600  # the RTC at power-on, seconds since 1970 UTC; ISO 8601 text or TOML time too
    serial: Literal["stdio", "null"] = "stdio"
    cpu_model: Literal["v1", "v2"] = "v1"  # v2: x86-64-v2, BMI, ADX, AES, RDRAND ...: see vmx.isa.features
    features: dict[str, bool] = msgspec.field(default_factory=dict)  # of these, switched on or off by name
    seed: int = 0  # of everything that is random in the machine

    # Virtualization.
    bare: bool = False  # root operation, no hypervisor
    controls: dict[str, bool] = msgspec.field(default_factory=dict)  # VMX control bits switched on or off
    exception_bitmap: int = 0  # one bit per vector that exits; text such as "0x4000" too
    preemption_timer: int = 31_250  # VMX-preemption timer of a time slice: 32 TSC ticks each, 31250 are 1 ms

    # The run.
    max_instructions: int | None = None
    timeout_s: float | None = None  # host time
    record: bool = True  # keep one record per VM exit, not only counts

    def __post_init__(self) -> None:
        for key, value in _normalised({key: getattr(self, key) for key in self.__struct_fields__}).items():
            msgspec.structs.force_setattr(self, key, value)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str | None = None) -> "MachineConfig":
        """From plain values; `source` names where they came from in error messages."""
        for key in values:
            if key not in cls.__struct_fields__:
                raise ConfigurationError(_located(unknown_name("key", key, cls.__struct_fields__), source))
        try:
            return cls(**values)
        except ConfigurationError as error:
            raise ConfigurationError(_located(str(error), source)) from None

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> "MachineConfig":
        """From a TOML file. Relative paths in it are relative to the file's own directory."""
        return cls.from_dict(read_toml(path), str(path))

    def to_dict(self) -> dict[str, Any]:
        """Plain values of every key that is set; `from_dict` gives an equal configuration."""
        values = msgspec.to_builtins(self)
        return {key: value for key, value in values.items() if value is not None}

    def to_toml(self) -> str:
        """TOML text that `from_toml` reads back to an equal configuration."""
        values = self.to_dict()
        tables = {key: values.pop(key) for key in ("controls", "features")}
        lines = [f"{key} = {_toml_value(value)}" for key, value in values.items()]
        for key, switches in tables.items():
            if switches:
                lines += [
                    "",
                    f"[{key}]",
                    *(f"{_toml_key(name)} = {_toml_value(on)}" for name, on in switches.items()),
                ]
        return "\n".join(lines) + "\n"

    def replace(self, **changes: Any) -> "MachineConfig":
        """A copy with other values for some keys."""
        return self.from_dict({**self.to_dict(), **changes})

    @property
    def module_pairs(self) -> list[tuple[str, str]]:
        """Path and string of each multiboot module."""
        return [(path, string) for path, _, string in (module.partition("=") for module in self.modules)]


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Plain values from a TOML file, the paths in it resolved against the file's directory."""
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"cannot read configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    directory = Path(path).parent
    for key in ("kernel", "initrd"):
        if isinstance(values.get(key), str):
            values[key] = str(directory / values[key])
    if isinstance(values.get("modules"), list):
        values["modules"] = [str(directory / m) if isinstance(m, str) else m for m in values["modules"]]
    return values


def unknown_name(kind: str, name: str, valid: Any) -> str:
    """The message for a name that is not one of `valid`, with the nearest valid one."""
    lower = {candidate.lower(): candidate for candidate in valid}
    near = difflib.get_close_matches(name.lower(), lower, 1, 0.5)
    near = near or [candidate for candidate in sorted(lower, key=len) if name.lower() in candidate]
    if near:
        return f"unknown {kind} {name!r}; did you mean {lower[near[0]]!r}?"
    if len(valid) > 40:
        return f"unknown {kind} {name!r}; nothing is spelt like it"
    return f"unknown {kind} {name!r}; valid are: {', '.join(sorted(valid))}"


def _located(message: str, source: str | None) -> str:
    return f"{source}: {message}" if source else message


_TEXT_PARSERS: dict[str, Callable[[Any], int]] = {
    "memory": parse_size,
    "load_address": parse_number,
    "exception_bitmap": parse_number,
    "preemption_timer": parse_number,
    "max_instructions": parse_number,
    "seed": parse_number,
    "rtc_start": parse_time,
}

# Inclusive bounds, and why in the message's words.
_BOUNDS: dict[str, tuple[float, float, str]] = {
    "memory": (MIB, 1 << 40, "between 1M and 1024G"),
    "cpus": (1, 1, "1: one virtual CPU is modelled"),
    "ns_per_instruction": (1, 1 << 20, "between 1 and 1048576 ns"),
    "rtc_start": (0, (1 << 32) - 1, "between 1970 and 2106"),
    "load_address": (0, (1 << 40) - 1, "an address below 2^40"),
    "exception_bitmap": (0, (1 << 32) - 1, "a 32-bit mask, one bit per vector"),
    "preemption_timer": (1, (1 << 32) - 1, "between 1 and 2^32 - 1"),
    "max_instructions": (1, (1 << 63) - 1, "at least 1"),
    "timeout_s": (0.001, 1e9, "a positive number of seconds"),
    "seed": (0, (1 << 64) - 1, "a 64-bit number"),
}


def _normalised(values: dict[str, Any]) -> dict[str, Any]:
    """Checked values in the types that the fields declare."""
    checked = {key: _checked(key, value) for key, value in values.items()}
    if checked["memory"] % 4096:
        raise ConfigurationError(f"memory = {checked['memory']}: must be a whole number of 4096-byte pages")
    if checked["kernel"] is not None and checked["guest"] is not None:
        raise ConfigurationError("kernel and guest are both set; set the one that shall boot")
    known = {name.upper() for name in control_bits()}
    for name in checked["controls"]:
        if name.upper() not in known:
            raise ConfigurationError(unknown_name("VMX control", name, control_bits()))
    for name in checked["features"]:
        if name not in FEATURES:
            raise ConfigurationError(unknown_name("processor feature", name, FEATURES))
    return checked


def _checked(key: str, value: Any) -> Any:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    try:
        if key in _TEXT_PARSERS and isinstance(value, str | date):
            value = _TEXT_PARSERS[key](value)
        value = msgspec.convert(value, type=_field_types()[key])
    except (ValueError, TypeError) as error:  # msgspec.ValidationError is a ValueError
        choices = _choices(_field_types()[key])
        right = f"must be {' or '.join(map(repr, choices))}" if choices else str(error)
        raise ConfigurationError(f"{key} = {value!r}: {right}") from None
    if key in _BOUNDS and value is not None:
        low, high, right = _BOUNDS[key]
        if not low <= value <= high:
            raise ConfigurationError(f"{key} = {value}: must be {right}")
    return value


@cache
def _field_types() -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(MachineConfig)}


def _choices(field_type: Any) -> list[str]:
    """The strings of a Literal, alone or in a union; empty for any other type."""
    members = (field_type, *get_args(field_type))
    return [text for member in members for text in get_args(member) if isinstance(text, str)]


def _toml_key(name: str) -> str:
    return json.dumps(name) if "." in name else name


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)
