"""The command line of the suite. It uses argparse, as a plain CUDA image has no other parser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks import show
from benchmarks.case import DTYPES, PASSES, Case, parse_shape, select
from benchmarks.cases import FAMILIES, families
from benchmarks.contenders import COMPILE_MODES, KINDS
from benchmarks.machine import Machine, find_machine
from benchmarks.measure import Budget, Settings
from benchmarks.results import Result, save
from benchmarks.suite import OnCase, run_suite
from fastgrow import _files
from fastgrow.errors import ConfigError, FastgrowError

QUICK_SECONDS = 60.0
NO_BUDGET = 24 * 3600.0
Number = TypeVar("Number", int, float)


def main(arguments: Sequence[str], program: str = "python -m benchmarks") -> int:
    """Run one command and return its exit status; an error is one line on standard error."""
    try:
        if not arguments or arguments[0].startswith("-"):
            return _measure(arguments, program)
        command = COMMANDS.get(arguments[0])
        if command is None:
            raise ConfigError(
                f"{arguments[0]!r} is not a command; expected one of {', '.join(COMMANDS)}, or "
                "options only to measure operations"
            )
        return command(arguments[1:], program)
    except FastgrowError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{program}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 130


def _measure(arguments: Sequence[str], program: str) -> int:
    options = _parser(program).parse_args(arguments)
    machine = find_machine(options.device)
    cases = choose_cases(
        machine.device.type,
        op=options.op,
        dtype=options.dtype,
        grid=options.grid,
        passes=options.passes,
        shapes=options.shape,
        first_only=options.quick and not options.shape,
    )
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    settings = Settings(
        against=kinds(options.against, quick=options.quick),
        seconds=options.seconds,
        min_rounds=options.rounds,
    )
    if any(kind in COMPILE_MODES for kind in settings.against) and options.quick:
        print("most of the time is spent compiling; --against eager,library skips it", flush=True)
    budget = Budget(options.budget or (QUICK_SECONDS if options.quick else NO_BUDGET))
    command = " ".join([program, *_without_out(arguments)])
    result = run_suite(cases, settings, machine, budget, command, on_case=_printing(machine))
    print(show.overview_table(result.rows))
    print(f"ceilings: {show.ceilings_text(result.ceilings)}")
    print("\n".join([show.environment_text(result), *result.notes]))
    if options.out is not None:
        write(result, options.out)
    return 1 if _is_wrong(result) else 0


def choose_cases(
    device: str,
    *,
    op: str = "",
    dtype: str = "",
    grid: str = "",
    passes: str = "",
    shapes: Sequence[str] = (),
    first_only: bool = False,
) -> list[Case]:
    """Return the cases selected by comma-separated names; an empty string selects the default.

    Raises:
        ConfigError: a name is unknown.
    """
    on_cpu = device == "cpu"
    (chosen,) = _names(grid or ("cpu" if on_cpu else "gpu"), ("tiny", "cpu", "gpu"), "--grid")
    return select(
        families(_names(op, [f.name for f in FAMILIES], "--op")),
        device=device,
        grid=chosen,
        dtypes=_names(dtype or ("fp32" if on_cpu else "bf16"), list(DTYPES), "--dtype"),
        passes=_names(passes or ",".join(PASSES), PASSES, "--pass"),
        shapes=[parse_shape(text) for text in shapes],
        first_only=first_only,
    )


def kinds(against: str, *, quick: bool) -> list[str]:
    """Return the kinds of contenders; a quick run excludes max-autotune unless requested."""
    default = ",".join(kind for kind in KINDS if not (quick and kind == "compile-max"))
    return _names(against or default, KINDS, "--against")


def write(result: Result, folder: Path) -> None:
    """Write the result as JSON and CSV and, if matplotlib is installed, a PNG."""
    save(result, folder)
    drawn = show.draw(result, folder / "results.png")
    names = "results.json, results.csv, results.png" if drawn else "results.json, results.csv"
    print(f"{folder}: {names}" + ("" if drawn else " (no PNG: matplotlib is not installed)"))


def _printing(machine: Machine) -> OnCase:
    on_gpu = machine.device.type == "cuda"
    return lambda rows, ceilings: print(show.case_table(rows, ceilings, on_gpu=on_gpu), flush=True)


def _gpu(arguments: Sequence[str], program: str) -> int:
    from benchmarks import gpu, rehearsal
    from benchmarks.ship import TABLE
    from benchmarks.stages import STAGES, WHOLE

    parser = argparse.ArgumentParser(
        f"{program} gpu",
        description=gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="With --stage, --op or --only, the selected items are measured again. Without them, "
        "a call with the same folder measures only what is missing.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the results")
    add("--minutes", type=_positive, default=WHOLE, help="time limit of this call, in minutes")
    add("--stage", default="", help=f"comma-separated stages: {', '.join(STAGES)} (default: all)")
    add("--op", default="", help="comma-separated operations to time (default: all)")
    add("--only", default="", help="substring of the names of the cases and tests to run")
    add(
        "--against",
        default=",".join(gpu.AGAINST),
        help=f"comma-separated kinds of contenders: {', '.join(KINDS)}",
    )
    add("--tests", type=Path, default=gpu.TESTS, help="folder of the tests")
    add(
        "--substrate",
        type=Path,
        help="folder of a saved substrate for the growth run (default: one is built)",
    )
    add(
        "--rehearse",
        action="store_true",
        help="run everything on a CPU with tiny shapes, to test the suite and not to measure",
    )
    chosen = parser.parse_args(arguments)
    options = gpu.Options(
        minutes=chosen.minutes,
        stages=_names(chosen.stage or ",".join(STAGES), list(STAGES), "--stage"),
        families=families(_names(chosen.op, [f.name for f in FAMILIES], "--op")),
        only=chosen.only,
        again=bool(chosen.stage or chosen.op or chosen.only),
        rehearse=chosen.rehearse,
        against=kinds(chosen.against, quick=False),
        tests=chosen.tests,
        substrate=chosen.substrate,
        growth=str(rehearsal.GROWTH) if chosen.rehearse else gpu.Options.growth,
    )
    try:
        result = gpu.run_gpu(chosen.out, options)
    except KeyboardInterrupt:
        print(f"{program}: stopped; the results so far are in {chosen.out}", file=sys.stderr)
        return 130
    print(show.overview_table(result.rows))
    print(f"ceilings: {show.ceilings_text(result.ceilings)}")
    print("\n".join([show.environment_text(result), *result.notes]))
    write(result, chosen.out)
    if (chosen.out / TABLE).exists() and not chosen.rehearse:
        print(f"{chosen.out / TABLE}: install it by `{program} ship {chosen.out}`")
    return 1 if _is_wrong(result) else 0


def _experts(arguments: Sequence[str], program: str) -> int:
    from benchmarks import scaling
    from benchmarks.experts import AGAINST, TOTAL_SECONDS, run_experts, scaled

    parser = argparse.ArgumentParser(f"{program} experts", description=run_experts.__doc__)
    add = parser.add_argument
    add("--out", type=Path, help="folder for the result files and scaling.png")
    add("--seconds", type=_positive, default=TOTAL_SECONDS, help="time limit of the whole run")
    add("--device", choices=("cpu", "cuda"), help="device (default: the GPU if there is one)")
    add("--grid", choices=("tiny", "cpu", "gpu"), help="grid of shapes (default: the device's)")
    add(
        "--against",
        default=",".join(AGAINST),
        help=f"comma-separated kinds of contenders: {', '.join(KINDS)}",
    )
    options = parser.parse_args(arguments)
    machine = find_machine(options.device)
    grid = options.grid or ("cpu" if machine.device.type == "cpu" else "gpu")
    command = " ".join([program, "experts", *_without_out(arguments)])
    result = run_experts(
        machine,
        command,
        grid=grid,
        against=kinds(options.against, quick=False),
        seconds=options.seconds,
        on_case=_printing(machine),
    )
    print(scaling.table(scaled(result)))
    print(f"ceilings: {show.ceilings_text(result.ceilings)}")
    print("\n".join([show.environment_text(result), *result.notes]))
    if options.out is not None:
        write(result, options.out)
        if scaling.draw(scaled(result), options.out / "scaling.png"):
            print(f"{options.out}: scaling.png")
    return 1 if _is_wrong(result) else 0


def _overhead(arguments: Sequence[str], program: str) -> int:
    # Imported here, because it imports Triton, which not every machine has.
    from benchmarks.overhead import SWEEPS, as_json, markdown, overhead

    parser = argparse.ArgumentParser(
        f"{program} overhead",
        description="Host time of every operation's call, split into its parts, without a GPU.",
    )
    parser.add_argument("--out", type=Path, help="folder for results.json and results.md")
    parser.add_argument(
        "--sweeps", type=_count, default=SWEEPS, help="number of sweeps over all calls, 4 s each"
    )
    options = parser.parse_args(arguments)
    command = " ".join([program, "overhead", *_without_out(arguments)])
    machine = find_machine("cpu")
    result = as_json(overhead(sweeps=options.sweeps, say=_say), machine, command)
    print(markdown(result))
    if options.out is not None:
        _files.write_json(options.out / "results.json", result)
        _files.write_text(options.out / "results.md", markdown(result))
        print(f"{options.out}: results.json, results.md")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _is_wrong(result: Result) -> bool:
    return any(row.role == "ours" and row.correct is False for row in result.rows)


def _ship(arguments: Sequence[str], program: str) -> int:
    from benchmarks.ship import ship

    parser = argparse.ArgumentParser(
        f"{program} ship", description=str(ship.__doc__).partition("\n")[0]
    )
    parser.add_argument(
        "results", type=Path, metavar="RESULTS", help="folder with results.json and tuning.json"
    )
    print(
        f"{ship(parser.parse_args(arguments).results)}: launches on such a GPU now use this table"
    )
    return 0


def _report(arguments: Sequence[str], program: str) -> int:
    from benchmarks.report import report

    parser = argparse.ArgumentParser(f"{program} report", description=report.__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="RESULTS.json")
    print(report(parser.parse_args(arguments).files), end="")
    return 0


def _plans(arguments: Sequence[str], program: str) -> int:
    from benchmarks import plans

    argparse.ArgumentParser(f"{program} plans", description=plans.__doc__).parse_args(arguments)
    print(plans.markdown())
    return 0


def _growth(arguments: Sequence[str], program: str) -> int:
    # Imported here, because growing needs the packages for training, which a plain CUDA image may
    # not have.
    from benchmarks.growth.command import growth

    return growth(arguments, program)


COMMANDS = {
    "gpu": _gpu,
    "ship": _ship,
    "experts": _experts,
    "overhead": _overhead,
    "growth": _growth,
    "report": _report,
    "plans": _plans,
}


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
        description="Compare time and memory of fastgrow's operations with eager PyTorch, "
        "torch.compile and libraries, on this machine.",
        epilog=f"Other commands: `{program} gpu` (all measurements on a GPU machine), "
        f"`{program} experts` (cost of combining experts), "
        f"`{program} growth` (training steps and runs on a frozen trunk), "
        f"`{program} overhead` (host time of a call), "
        f"`{program} report RESULTS.json` (Markdown tables), "
        f"`{program} plans` (counted work of a GPU on experts' logits), "
        f"`{program} ship RESULTS` (install a GPU's tuning table).",
    )
    add = parser.add_argument
    names = ", ".join(f.name for f in FAMILIES)
    add("--op", default="", help=f"comma-separated operations: {names} (default: all)")
    add(
        "--dtype",
        default="",
        help=f"comma-separated dtypes: {', '.join(DTYPES)} (default: fp32 on a CPU, bf16 on a GPU)",
    )
    add("--shape", action="append", default=[], help="shape such as B=2,T=1024; can be repeated")
    add(
        "--pass",
        dest="passes",
        default="",
        help=f"comma-separated passes: {', '.join(PASSES)} (default: all)",
    )
    add(
        "--against",
        default="",
        help=f"comma-separated kinds of contenders: {', '.join(KINDS)} (default: all)",
    )
    add(
        "--grid",
        default="",
        choices=("tiny", "cpu", "gpu"),
        help="grid of shapes (default: the device's)",
    )
    add("--device", choices=("cpu", "cuda"), help="device (default: the GPU if there is one)")
    add(
        "--quick",
        action="store_true",
        help=f"measure one shape of each operation, within {QUICK_SECONDS:.0f} seconds",
    )
    add("--seconds", type=_positive, default=2.0, help="seconds of timing for each case")
    add("--rounds", type=_count, default=5, help="minimum number of timed rounds of each case")
    add("--budget", type=_positive, help="time limit of the whole run, in seconds")
    add("--out", type=Path, help="folder for results.json, results.csv and results.png")
    add("--list", action="store_true", help="print the cases and stop")
    return parser


def _positive(text: str) -> float:
    return _above_0(text, float, "a number")


def _count(text: str) -> int:
    return _above_0(text, int, "a whole number")


def _above_0(text: str, kind: Callable[[str], Number], expected: str) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = kind("0")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected {expected} above 0, got {text}")
    return value


def _names(text: str, known: Sequence[str], option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ConfigError(f"{option}: {name!r} is unknown; expected {', '.join(known)}")
    return names


def _without_out(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without --out, so that a published file has no local path."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument == "--out":
            skip = argument == "--out"
            continue
        if not argument.startswith("--out="):
            kept.append(argument)
    return kept
