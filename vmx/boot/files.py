"""Reading kernels, initrds and modules, with errors that name the file and what is wrong with it."""

from __future__ import annotations

import os

from vmx.boot.image import BootError


def read(path: str | os.PathLike[str], what: str) -> bytes:
    """The bytes of a file that must not be empty."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = file.read()
    except IsADirectoryError:
        raise BootError(f"{what} {name!r} is a directory; name a file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BootError(f"{what} {name!r} cannot be read: {reason}") from None
    if not data:
        raise BootError(f"{what} {name!r} is empty")
    return data


def encode_command_line(text: str, limit: int) -> bytes:
    """The command line with its closing zero byte; `limit` counts the characters without it."""
    data = os.fsencode(text)
    if b"\0" in data:
        raise BootError(f"the command line contains a zero byte at position {data.index(0)}; remove it")
    if len(data) > limit:
        raise BootError(f"the command line has {len(data)} bytes; this kernel takes at most {limit}")
    return data + b"\0"
