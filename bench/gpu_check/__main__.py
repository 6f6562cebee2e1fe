"""The command: python -m bench.gpu_check. See the package's docstring."""

import argparse
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import torch

import bench.gpu_check
from analysis.table import commit_words
from bench.gpu_check import graphs_and_engines, models, optimizers, race, report, spectra, training
from bench.gpu_check.config import Config
from bench.gpu_check.runner import FAILED, SKIPPED, Check, Part, Result, run
from data import corpus, open_dataset
from data.manifest import MANIFEST
from errors import UserError
from host import entry, paths
from runtime import machine, provenance
from tracking import store

# The number is a fraction of the whole time: the most that a part may take. Most take less. The
# last part, the race, has all the time that is left. No part before it may take from its fraction.
PARTS = (
    Part("machine", "its device and the peak of matrix products", training.peak, 0.05),
    Part("optimizers", "Newton-Schulz, its kernels, Muon, AdamW", optimizers.run, 0.12),
    Part("model", "against float64, causality, chunks", models.run, 0.06),
    Part("training", "compiled against eager, one seed twice", training.same_training, 0.4),
    Part("step", "speed, parts and memory", training.step, 0.35),
    Part("optimizer_step", "Muon and AdamW against torch's", training.optimizers, 0.05),
    Part("newton_schulz", "the time of each backend", training.backends, 0.05),
    Part(
        "graphs and engines",
        "CUDA graphs and engines against plain training",
        graphs_and_engines.run,
        0.2,
    ),
    Part("spectra", "singular values at a step of AdamW and Muon", spectra.run, 0.12),
    Part("race", "AdamW against Muon on real text", race.run, 0.2),
)
RESERVE = 15.0  # seconds for the chart and the page
LEAST = 2.0  # seconds that a part needs to begin
LOOK = 120.0  # seconds until a device that does not answer is given up


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = entry.parser("bench.gpu_check", bench.gpu_check.__doc__)
    parser.add_argument("--cpu", action="store_true", help="each part at toy size, on the CPU")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="most of the whole command (default: 9)"
    )
    parser.add_argument(
        "--out",
        type=paths.typed,
        default=paths.RESULTS / "gpu",
        help="folder of the results (default: results/gpu)",
    )
    names = ", ".join(part.name for part in PARTS)
    note = f"a part of the check; may be given again: {names}"
    parser.add_argument("--only", action="append", metavar="PART", help=note)
    parser.add_argument("--data", help="data set of the race, such as text:FOLDER (default: sotu)")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compile the model (default: with a GPU; on a CPU it takes minutes)",
    )
    return parser


def accept(arguments: argparse.Namespace) -> None:
    """Fill in the data set of the race. Raises UserError for what cannot be."""
    if not 0.5 <= arguments.minutes < 1000:
        raise UserError(
            f"--minutes {arguments.minutes}: must be from 0.5 to 1000; leave it out for 9"
        )
    names = [part.name for part in PARTS]
    for name in arguments.only or ():
        if name not in names:
            raise UserError(
                f"--only {name}: must be one of {', '.join(names)}; leave it out for all"
            )
    if arguments.data is None and (corpus.ROOT / MANIFEST).exists():
        arguments.data = corpus.PACKAGE
    if arguments.data is not None:
        open_dataset(arguments.data)


def look() -> tuple[str, str]:
    """The device and its name, found by a child: after CUDA has begun, a process cannot fork."""
    context = get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def ask() -> None:
        device = machine.local_device()
        send.send((str(device), machine.device_name(device)))

    child = context.Process(target=ask)
    child.start()
    send.close()  # only the child holds it now, so `receive` notices when the child ends
    try:
        found: tuple[str, str] | None = receive.recv() if receive.poll(LOOK) else None
    except EOFError:
        found = None
    child.kill()
    if found is None:
        raise UserError("the device gave no answer; look at nvidia-smi")
    return found


def facts_of(name: str, config: Config, arguments: argparse.Namespace) -> dict[str, str]:
    """What the report says about the machine and the program."""
    return {
        "device": name,
        "size": config.size,
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "Python": platform.python_version(),
        "commit": commit_words(*provenance.commit()),
        "program": store.source_hash(provenance.program_text()),
        "began": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "text": arguments.data or "none",
    }


def run_parts(
    config: Config, facts: dict[str, str], seconds: float, only: Sequence[str] | None = None
) -> list[Result]:
    """Run the parts, one after another, in these seconds; write the CSVs after each."""
    parts = [part for part in PARTS if only is None or part.name in only]
    begun, results, last = time.monotonic(), [], parts[-1]
    for part in parts:
        left = begun + seconds - RESERVE - time.monotonic()
        limit = (
            left
            if part is last
            else min(part.time_fraction * seconds, left - last.time_fraction * seconds)
        )
        if limit < LEAST:
            result = Result(part)
            result.checks = [Check(part.name, "begins", SKIPPED, note="no time was left")]
        else:
            print(f"{part.name:20}{part.what} ...", end="", flush=True)
            result = run(part, config, limit)
            print(f" {result.status}, {len(result.checks)} checks, {result.seconds:.1f} s")
            for check in result.checks:
                if check.status == FAILED:
                    value = "" if check.value is None else f"{check.value} "
                    print(f"    {check.check}: {value}{check.note}")
        results.append(result)
        report.write(config.out, results, facts, done=False)
    return results


def check(arguments: argparse.Namespace) -> int:
    """The whole check. Returns the exit code."""
    accept(arguments)
    begun = time.monotonic()
    if arguments.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    kind, name = look()
    if kind == "cpu" and not arguments.cpu:
        print("no GPU is here: each part at toy size on the CPU, as with --cpu")
    if kind == "cpu":
        # Optimizers import it at their first step: import it once here, and not in each part. Where
        # there is a GPU the import could begin CUDA, after which this process could not fork.
        import_module("torch._dynamo")
    short = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") if kind != "cpu" else "cpu-toy"
    out = arguments.out / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{short}"
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write to {arguments.out}: {error.strerror}; use --out") from error
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as scratch:
        compiles = kind != "cpu" if arguments.compile is None else arguments.compile
        config = Config(out, Path(scratch), torch.device(kind), arguments.data, compiles)
        facts = facts_of(name, config, arguments)
        left = 60 * arguments.minutes - (time.monotonic() - begun)
        results = run_parts(config, facts, left, arguments.only)
    report.write(out, results, facts, done=True)
    print(report.verdict(results), paths.from_here(str(out / "report.md")))
    return 1 if any(result.status == FAILED for result in results) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 1 if a check failed, 2 after a user's mistake."""
    return entry.run(make_parser(), argv, check, "the CSVs hold what was found so far")


if __name__ == "__main__":
    sys.exit(main())
