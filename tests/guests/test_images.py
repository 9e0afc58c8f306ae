"""The bundled guests: their images are well formed, are what the sources build, and boot in QEMU.

Multiboot 0.6.96, "The layout of Multiboot header": within the first 8192 bytes, 4-byte aligned, sum zero.
"""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from vmx.guests import bundled

GUESTS = Path(__file__).parents[2] / "guests"
MULTIBOOT_MAGIC = 0x1BADB002
BUILT_WITH = {"gcc": "12.2.0", "ld": "2.40"}
PT_LOAD = 1

# QEMU without KVM does not check segment limits or null segments.
NOT_IN_QEMU = {"segment limit", "expand-down segment", "null segment"}

# QEMU powers off some time after it was told to; on a busy host the guest leaves by isa-debug-exit before that.
POWERED_OFF = (0, 1)
needs_qemu = pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="no qemu-system-x86_64 here")


def image(name: str) -> Path:
    return bundled()[name][0]


def multiboot_header(data: bytes) -> tuple[int, int]:
    """Offset and flags of the first valid header."""
    for offset in range(0, min(len(data), 8192) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, offset)
        if magic == MULTIBOOT_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return offset, flags
    raise AssertionError("no multiboot header in the first 8192 bytes")


def load_segments(data: bytes) -> list[tuple[int, int, int, int]]:
    """(offset, physical address, bytes in the file, bytes in memory) of an ELF32's PT_LOAD segments."""
    start, size, count = (*struct.unpack_from("<I", data, 28), *struct.unpack_from("<HH", data, 42))
    headers = (struct.unpack_from("<8I", data, start + i * size) for i in range(count))
    return [(h[1], h[3], h[4], h[5]) for h in headers if h[0] == PT_LOAD]


def tool_version(tool: str) -> str:
    path = shutil.which(tool)
    if not path:
        return "absent"
    first_line = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    return first_line.split()[-1]


def boot(name: str, *options: str, keys: bytes = b"", timeout: float = 60) -> tuple[int, str]:
    """Boots a guest in QEMU; its exit status and what came out of the serial port."""
    command = ["qemu-system-x86_64", "-kernel", str(image(name)), "-serial", "stdio", "-display", "none"]
    command += ["-no-reboot", "-accel", "tcg", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", *options]
    done = subprocess.run(command, input=keys, capture_output=True, timeout=timeout)
    return done.returncode, done.stdout.decode().replace("\r", "")


def test_bundled_lists_every_image():
    files = {path.name for path in image("teach").parent.iterdir()}
    assert files == {path.name for path, _ in bundled().values()}
    assert all(description for _, description in bundled().values())


@pytest.mark.parametrize("name", ["teach", "prot32"])
def test_elf_guest_is_elf32_loaded_from_1_mib(name):
    data = image(name).read_bytes()
    assert data[:6] == b"\x7fELF\x01\x01"
    assert struct.unpack_from("<HH", data, 16) == (2, 3)  # ET_EXEC, EM_386
    offset, _ = multiboot_header(data)
    segments = load_segments(data)
    entry = struct.unpack_from("<I", data, 24)[0]
    assert offset == segments[0][0], "the header opens the first segment"
    assert segments[0][1] <= entry < segments[0][1] + segments[0][2]
    end = 0x100000
    for _, physical, in_file, in_memory in segments:
        assert end <= physical and in_file <= in_memory
        end = physical + in_memory
    assert end < 0x400000


def test_hello_is_flat_and_describes_itself():
    data = image("hello").read_bytes()
    offset, flags = multiboot_header(data)
    assert flags == 1 << 16
    header, load, load_end, bss_end, entry = struct.unpack_from("<5I", data, offset + 12)
    assert header == 0x100000 + offset
    assert load == entry == 0x100000
    assert load_end == bss_end == 0x100000 + len(data)


def test_committed_images_are_what_the_sources_build(tmp_path):
    if not shutil.which("make"):
        pytest.skip("no make here")
    for tool, wanted in BUILT_WITH.items():
        if (found := tool_version(tool)) != wanted:
            pytest.skip(f"the images were built with {tool} {wanted}; here it is {found}")
    variables = [f"BUILD={tmp_path / 'build'}", f"IMAGES={tmp_path / 'images'}"]
    subprocess.run(["make", "-s", "-C", GUESTS, *variables], check=True, capture_output=True)
    for path, _ in bundled().values():
        assert (tmp_path / "images" / path.name).read_bytes() == path.read_bytes(), path.name


@needs_qemu
def test_hello_in_qemu():
    assert boot("hello") == (1, "hello from ring 0\n")


@needs_qemu
def test_prot32_in_qemu():
    status, output = boot("prot32")
    results = dict(line.split(None, 1)[::-1] for line in output.splitlines() if line[:4] in ("ok  ", "FAIL"))
    assert status in POWERED_OFF
    assert len(results) == 33
    assert {name for name, result in results.items() if result == "FAIL"} <= NOT_IN_QEMU


@needs_qemu
def test_teach_runs_a_script_and_powers_off():
    script = "run=hello,primes,counter,pagetest,exits,fault,fault:kernel,fault:exec,nonsense"
    status, output = boot("teach", "-append", script)
    assert status in POWERED_OFF
    for expected in (
        "hello from ring 3, pid 2\n",
        "primes: 9592 primes up to 100000, the last is 99991\n",
        "counter: both done\n",
        "pagetest: heap, 256 pages, 256 faults, 0 wrong\n",
        "pagetest: stack, 64 pages, 64 faults, right\n",
        "page fault: write of 0xdeadbeef000 in ring 3, nothing mapped there",
        "page fault: read of 0xffffffff80101000 in ring 3, not allowed there",
        "page fault: fetch of 0x402000 in ring 3, not allowed there",
        "sh: no command or program `nonsense`",
    ):
        assert expected in output


@needs_qemu
def test_teach_preempts_processes_that_never_yield():
    # A virtual clock of 16 ns per instruction, as in vmx: otherwise a busy host decides who runs when.
    _, output = boot("teach", "-icount", "shift=4", "-append", "run=counter")
    reports = [line for line in output.splitlines() if "report" in line]
    assert sorted(reports) == [f"counter {who}: report {n}" for who in "AB" for n in range(1, 5)]
    assert reports != sorted(reports), "B got the processor only after A had ended"
    assert output.count("preempted by the timer") == 2


@needs_qemu
def test_teach_shell_answers_on_the_console():
    status, output = boot("teach", keys=b"xyz\x7f\x7f\x7fprimes 1000 &\rhello\rmem\rpoweroff\r")
    assert status in POWERED_OFF
    assert output.count("teach> ") == 4
    assert "hello from ring 3" in output
    assert "primes: 168 primes up to 1000, the last is 997\n" in output
    assert "pages free" in output


@needs_qemu
def test_teach_gives_back_all_memory():
    _, output = boot("teach", "-append", "run=mem,pagetest,fault:stack,primes,counter,mem")
    free = [line.split()[0] for line in output.splitlines() if "pages free" in line]
    assert len(free) == 2 and free[0] == free[1]
