"""The guests that the package ships: small kernels written for this project, as built by `make -C guests`.

Their sources and what each of them does are in `guests/README.md` of the source tree.
"""

from pathlib import Path

IMAGES = Path(__file__).parent / "images"

_DESCRIPTIONS = {
    "teach": ("teach.elf", "teaching kernel in long mode: processes, system calls, demand paging, a shell"),
    "prot32": (
        "prot32.elf",
        "32-bit protected-mode kernel with paging: runs its self-tests, then powers off",
    ),
    "hello": ("hello.bin", "flat 32-bit binary for load address 0x100000: prints one line from ring 0"),
}


def bundled() -> dict[str, tuple[Path, str]]:
    """The bundled guests: name -> (path of the image, one-line description)."""
    return {name: (IMAGES / file, text) for name, (file, text) in _DESCRIPTIONS.items()}
