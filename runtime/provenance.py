"""What a run leaves behind: the rows of results/ from a trainer and what it did.

Facts only: names, versions, hashes, and arithmetic on what `speedrun.py` measured.
"""

import hashlib
import math
import os
import platform
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from errors import UserError
from optim.entrants import Entrant
from runtime import machine
from tracking import spelling, store
from tracking.crossing import crossing
from tracking.schema import COMMON, DIVERGED, FINISHED, REACHED, Logit, Run, Trial, Validation

ROOT = Path(__file__).parents[1]
# The files that decide a number. Their text is stored once per hash, and the hash is in every row.
PROGRAM = (
    "*.py", "runtime/*.py", "optim/**/*.py", "engines/*.py", "data/*.py", "results/s*.py",
    "requirements-optimizers.txt",
)  # fmt: skip
# What running the program writes into its own tree.
OUTPUTS = (
    "results/*.csv", "results/curves", "results/logits", "results/sources", "results/scale",
    "results/gpu", "plots/*.png", "plots/*.svg", "bench/*.csv",
)  # fmt: skip


def program() -> str:
    """The source text of the program."""
    paths = sorted(path for pattern in PROGRAM for path in ROOT.glob(pattern))
    return store.source_text({str(path.relative_to(ROOT)): path.read_text() for path in paths})


def provenance(trainer: Any, entrant: Entrant, seed: int, source: str) -> dict[str, Any]:
    """The columns of tracking.schema.Provenance for a run of `speedrun.Trainer` that begins now."""
    commit = machine.git(ROOT, "rev-parse", "HEAD")
    changes = machine.git(
        ROOT, "status", "--porcelain", "--", ".", *(f":!{path}" for path in OUTPUTS)
    )
    return dict(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        track=trainer.track.name,
        track_hash=trainer.track.hash(),
        label=entrant.label,
        entrant=entrant.canonical,
        seed=seed,
        engine=trainer.engine.name,
        world_size=trainer.engine.world_size,
        device=machine.device_name(trainer.device),
        threads=torch.get_num_threads(),
        dtype=str(trainer.dtype).removeprefix("torch."),
        compiled=not trainer.eager,
        compile_note=trainer.eager,
        torch=torch.__version__,
        python=platform.python_version(),
        commit=commit,
        clean=bool(commit) and not changes,
        source_hash=store.source_hash(source),
        data_hash=trainer.data.hash,
    )


def run_row(trainer: Any, facts: dict[str, Any], race: str, steps_planned: int, out: Any) -> Run:
    """The row of runs.csv for a `speedrun.Outcome`."""
    track, clock, memory = trainer.track, out.clock, out.memory
    hit = crossing(out.points, track.target) if out.status == REACHED else None
    loss = out.points[-1].val_loss if out.points else None
    bits = None if loss is None else loss / math.log(2) / trainer.data.bytes_per_token
    flops = trainer.gpt.flops_per_token(track.seq_len) * track.batch_tokens
    peak = machine.peak_memory(trainer.device)
    recipe, options = spelling.split(facts["entrant"])
    digest = hashlib.sha256(options.encode()).hexdigest()[:6]
    return Run(
        **facts,
        race=race,
        run=f"{race}-{recipe.replace(':', '-')}-{digest}-s{facts['seed']}",
        status=out.status,
        target=track.target,
        steps_planned=steps_planned,
        steps=out.steps,
        tokens=out.steps * track.batch_tokens,
        final_loss=loss,
        final_bits_per_byte=bits,
        steps_to_target=hit.step if hit else None,
        tokens_to_target=hit.tokens if hit else None,
        seconds_to_target=hit.seconds if hit else None,
        train_seconds=clock.seconds,
        data_seconds=clock.parts["data"],
        forward_backward_seconds=clock.parts["forward_backward"],
        optimizer_seconds=clock.parts["optimizer"],
        communication_seconds=clock.parts["communication"],
        compile_seconds=out.compile_seconds,
        val_seconds=out.val_seconds,
        param_count=sum(p.numel() for p in trainer.gpt.parameters()),
        param_bytes=memory.get("params", 0),
        grad_bytes=memory.get("grads", 0),
        state_bytes=memory.get("state", 0),
        peak_memory_bytes=int(trainer.engine.max(torch.tensor(peak, dtype=torch.float64))),
        flops_per_step=flops,
        matmul_peak_flops=trainer.matmul_peak,
        mfu=flops * out.steps / clock.seconds / trainer.matmul_peak / trainer.engine.world_size,
    )


def point_row(trainer: Any, out: Any, train_loss: float, val_loss: float, lr: float) -> Validation:
    """The row of a curve for the validation that a `speedrun.Trainer` has just made."""
    since = out.steps - (out.points[-1].step if out.points else 0)
    lap = out.clock.lap()
    return Validation(
        step=out.steps,
        tokens=out.steps * trainer.track.batch_tokens,
        train_seconds=out.clock.seconds,
        train_loss=train_loss,
        val_loss=val_loss,
        lr=lr,
        grad_norm=out.grad_norm,
        step_ms=1e3 * lap["all"] / since,
        optimizer_ms=1e3 * lap["optimizer"] / since,
        peak_memory_bytes=machine.peak_memory(trainer.device),
    )


def logit_rows(out: Any) -> list[Logit]:
    """The rows of logits/<run>.csv for a `speedrun.Outcome`, to six digits.

    A step that diverged, with logits that are no numbers, has none.
    """
    return [
        Logit(step, layer, head, float(f"{value:.6g}"))
        for step, largest in out.logits
        if largest.isfinite().all()
        for layer, heads in enumerate(largest.tolist())
        for head, value in enumerate(heads)
    ]


def trial_row(
    trainer: Any, facts: dict[str, Any], stage: str, trial: int, steps: int, out: Any
) -> Trial:
    """The row of tuning.csv for a `speedrun.Outcome`; only the horizon stage knows a target."""
    aims = stage == "horizon"
    return Trial(
        **facts,
        recipe=spelling.recipe_of(facts["entrant"]),
        stage=stage,
        trial=trial,
        steps=steps,
        status=out.status if aims or out.status == DIVERGED else FINISHED,
        target=trainer.track.target if aims else None,
        final_loss=out.points[-1].val_loss if out.points and out.status != DIVERGED else None,
        train_seconds=out.clock.seconds,
    )


def open_race(
    trainer: Any, entrants: Sequence[Entrant], resume: str | None
) -> tuple[str, list[Run]]:
    """The race's id, and its finished runs where it is one to go on with."""
    root, token = Path(trainer.options.results), secrets.token_hex(2)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # The same in every attempt of one torchrun, whose restarts go on with the race.
        launch = f"{os.environ['TORCHELASTIC_RUN_ID']} {os.getppid()}"
        token = hashlib.sha256(launch.encode()).hexdigest()[:8]
        if resume is None and int(os.environ["TORCHELASTIC_RESTART_COUNT"]):
            races = (run.race for run in store.read_runs(root) if run.race.endswith(token))
            resume = next(races, None)
    if resume is None:
        return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{trainer.track.name}-{token}", []
    facts = provenance(trainer, entrants[0], 0, program())
    done = find_race(root, resume, facts, trainer.track.target, entrants)
    return done[0].race, done


def find_race(
    root: Path, race: str, facts: dict[str, Any], target: float, entrants: Sequence[Entrant]
) -> list[Run]:
    """The finished runs of the race to go on with: the one called `race`, or the newest.

    facts: the provenance that further runs would have. Raises UserError if there is no such race,
    or if with further runs it would not be one experiment.
    """
    rows = store.read_runs(root)
    wanted = race or max(rows, key=lambda run: run.started).race if rows else race
    done = [run for run in rows if run.race == wanted]
    if not done:
        raise UserError(f"--resume {race}: no finished run of such a race; run: make speedrun")
    expected = facts | {"target": target}
    for key in COMMON:
        now = expected[key]
        if getattr(done[0], key) != now:
            raise UserError(
                f"--resume: race {wanted} has {key} {getattr(done[0], key)}, now it is {now}; "
                "a race is one experiment: start a new one without --resume"
            )
    strangers = {run.entrant for run in done} - {entrant.canonical for entrant in entrants}
    if strangers:
        raise UserError(
            f"--resume: race {wanted} also has {', '.join(sorted(strangers))}; "
            "name all its entrants, with the settings they had"
        )
    return done
