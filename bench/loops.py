"""Interpreter speed: compiled integer loops in a guest, bare, hypervised, and in Unicorn; and exits per second."""

from pathlib import Path
from time import perf_counter

from bench.figures import Figure, geometric_mean

GUESTS = Path(__file__).parent / "guests"
LOOPS = ("sieve", "crc32", "sort", "hash", "matrix", "collatz")
ADDRESS, MEMORY = 0x20_0000, 16 << 20
GOAL_MIPS = 80
RAX = 0


def _run(name: str, *, bare: bool, record: bool = True):
    """(instructions, seconds, RAX at the end, VM exits) of a guest."""
    from vmx import Machine, MachineConfig

    config = MachineConfig(
        kernel=str(GUESTS / f"{name}.bin"),
        load_address=ADDRESS,
        load_mode="long64",
        memory=MEMORY,
        bare=bare,
        record=record,
    )
    machine = Machine(config)
    result = machine.run(timeout_s=300)
    if result.stop != "DEBUG_EXIT":
        raise RuntimeError(f"benchmark guest {name} did not finish: {result.message}")
    return result.retired, result.host_s, machine.inspect().registers["rax"], len(machine.ledger)


def _unicorn(name: str) -> tuple[float, int]:
    """(seconds, RAX at the end) of the same bytes in Unicorn."""
    import unicorn
    from unicorn import x86_const

    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    engine.mem_map(0, MEMORY)
    engine.mem_write(ADDRESS, (GUESTS / f"{name}.bin").read_bytes())
    engine.hook_add(unicorn.UC_HOOK_INSN, lambda uc, *_: uc.emu_stop(), None, 1, 0, x86_const.UC_X86_INS_OUT)
    start = perf_counter()
    engine.emu_start(ADDRESS, MEMORY)
    return perf_counter() - start, engine.reg_read(x86_const.UC_X86_REG_RAX)


def _unicorn_is_here() -> bool:
    try:
        import unicorn  # noqa: F401
    except ImportError:
        return False
    return True


def measure() -> tuple[list[Figure], dict]:
    """The speed figures, and the details of every loop."""
    details: dict = {}
    has_unicorn = _unicorn_is_here()
    _run("ports", bare=True)  # code and caches are in place before the first measured run
    for name in LOOPS:
        retired, seconds, result, _ = _run(name, bare=True)
        retired_guest, seconds_guest, result_guest, exits = _run(name, bare=False)
        # The last OUT has retired when its exit is handled; on bare metal it ends the machine half-way.
        if (retired + 1, result) != (retired_guest, result_guest):
            raise RuntimeError(f"{name}: bare and hypervised runs differ: that is a bug, please report it")
        row = {
            "instructions": retired,
            "bare_mips": retired / seconds / 1e6,
            "hypervised_mips": retired / seconds_guest / 1e6,
            "exits": exits,
        }
        if has_unicorn:
            seconds, result_unicorn = _unicorn(name)
            if result_unicorn != result:
                raise RuntimeError(f"{name}: Unicorn computes {result_unicorn:#x}, vmx {result:#x}")
            row["unicorn_mips"] = retired / seconds / 1e6
        details[name] = row

    def mean(key: str) -> float:
        return geometric_mean([row[key] for row in details.values()])

    bare, guest = mean("bare_mips"), mean("hypervised_mips")
    over = f"geometric mean of {len(LOOPS)} loops"
    figures = [
        Figure("interpreter, bare", bare, "MIPS", GOAL_MIPS, True, over),
        Figure("interpreter, in non-root operation", guest, "MIPS", GOAL_MIPS, True, over),
    ]
    if has_unicorn:
        unicorn = mean("unicorn_mips")
        note = f"Unicorn runs {unicorn:.0f} MIPS here"
        figures.append(Figure("Unicorn's speed to ours (bare)", unicorn / bare, "x", note=note))
    else:
        figures.append(
            Figure("Unicorn's speed to ours (bare)", None, "x", note="skipped: pip install unicorn")
        )
    for record in (True, False):
        _, seconds, _, exits = _run("ports", bare=False, record=record)
        how = "one record each" if record else "counted only"
        figures.append(Figure(f"VM exits handled, {how}", exits / seconds, "per s", note="port writes"))
    return figures, details
