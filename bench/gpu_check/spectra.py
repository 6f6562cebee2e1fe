"""The spectra of a few steps of AdamW and Muon on random tokens, as `--log-spectra` writes them.

Checked: measuring changes no loss, and the verifier finds nothing wrong with the rows. Measured:
the time that it takes, and how steep the singular values of the hidden matrices are. The rows of
the last step are in spectra-adamw.csv and spectra-muon.csv of the report's folder.
"""

import statistics
import time
from dataclasses import replace

from bench.gpu_check.config import ENTRANTS, Config
from bench.gpu_check.runner import Recorder
from bench.gpu_check.training import apart, curve_of, deterministic, let_cublas_repeat
from leaderboard import spectra
from speedrun import Outcome, Trainer
from tracking.schema import Spectrum
from tracking.store import write_rows

FIGURES = {"over_median": "largest over median", "stable_rank": "stable rank"}


def run(config: Config, recorder: Recorder, seconds: float) -> None:
    """The part `spectra`: each run with and without, measured once, after its last step."""
    let_cublas_repeat()
    trainer = Trainer(config.track(config.sizes.check_seqs), config.options())
    plain = trainer.options
    for name in ENTRANTS:
        with recorder.attempt(f"{name}: spectra"), deterministic():
            outs, took = [], []
            for options in (plain, replace(plain, log_spectra=True)):
                trainer.options = options
                begun = time.perf_counter()
                entrant = config.entrant(name, config.sizes.check_steps)
                out = trainer.run(entrant, seed=0, only_last=True)
                outs.append(out)
                counted = out.compile_seconds + out.clock.seconds + out.val_seconds
                took.append(time.perf_counter() - begun - counted)
            off = max(apart(*map(curve_of, outs)))
            recorder.check(f"{name}: losses off the losses without spectra", off, most=0)
            found = list(spectra.problems(trainer.run_row(out, ""), out.points, out.spectra))
            note = "; ".join(found[:3])
            recorder.check(f"{name}: faults that the verifier finds", len(found), 0, note=note)
            recorder.check(f"{name}: rows", len(out.spectra), least=1)
            recorder.measure(name, "more seconds of a measured step", took[1] - took[0], "s")
            write_rows(config.out / f"spectra-{name}.csv", Spectrum, out.spectra)
            steepness(recorder, name, out)


def steepness(recorder: Recorder, name: str, out: Outcome) -> None:
    """Record a figure's median over the hidden matrices, for each tensor."""
    for tensor in dict.fromkeys(row.tensor for row in out.spectra):
        rows = [row for row in out.spectra if row.tensor == tensor and row.role == "matrix"]
        for column, what in FIGURES.items():
            values = [value for row in rows if (value := getattr(row, column)) is not None]
            if values:
                recorder.measure(f"{name}, {tensor}", what, statistics.median(values), "")
