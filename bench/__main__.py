"""`python -m bench [loops] [startup] [linux]`: measure, print the table, keep the values."""

import argparse
import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from bench import linux, loops, startup
from bench.figures import Figure, host

GROUPS = {"loops": loops.measure, "startup": startup.measure, "linux": linux.measure}
RESULTS = Path(__file__).parent / "results"


def _line(figure: Figure) -> str:
    value = "-" if figure.value is None else f"{figure.value:,.{0 if figure.value >= 100 else 2}f}"
    goal = "" if figure.goal is None else f"{'>=' if figure.at_least else '<='} {figure.goal:g}"
    return f"{figure.name:<42} {value:>10} {figure.unit:<6} {goal:>7} {figure.verdict:<8} {figure.note}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="group", help=f"of {', '.join(GROUPS)}; default: all")
    chosen = parser.parse_args().groups or list(GROUPS)
    for name in chosen:
        if name not in GROUPS:
            parser.error(f"no group {name!r}; there are: {', '.join(GROUPS)}")

    from vmx.cli.warmup import ensure_compiled

    ensure_compiled()
    kept: dict = {"time": datetime.now().isoformat(timespec="seconds"), "host": host()}
    print(f"{'figure':<42} {'measured':>10} {'':<6} {'goal':>7}")
    for name in chosen:
        figures, details = GROUPS[name]()
        for figure in figures:
            print(_line(figure), flush=True)
        kept[name] = {"figures": [asdict(figure) for figure in figures], "details": details}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kept['time'].replace(':', '')}.json"
    path.write_text(json.dumps(kept, indent=2) + "\n")
    print(f"\n{host()['processor']}, load average {kept['host']['load_average'][0]}; kept in {path}")


if __name__ == "__main__":
    main()
