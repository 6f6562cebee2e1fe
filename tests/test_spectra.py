"""Spectra: the figures of matrices whose singular values are known, and what a run writes down.

    python -m pytest tests/test_spectra.py

That engines of several processes have the same rows is tested in test_engines.
"""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import engines
import leaderboard.spectra
import optim
import speedrun
from engines import single
from engines.deepspeed import Engine as Deepspeed
from errors import UserError
from layers.config import preset
from leaderboard import verify
from model import GPT
from runtime import spectra
from runtime.spectra import FIGURES, NONE, Spectra
from tests.rows import make_points, make_run
from tracking import store
from tracking.schema import Spectrum
from tracking.spectra import TENSORS, spread

CPU = torch.device("cpu")


def with_values(s: Tensor, rows: int, columns: int) -> Tensor:
    """U diag(s) V^T (rows columns), in float64, of random orthogonal U and V."""
    generator = torch.Generator().manual_seed(0)
    U, V = (
        torch.linalg.qr(torch.randn(n, len(s), dtype=torch.float64, generator=generator))[0]
        for n in (rows, columns)
    )
    return U * s @ V.mT


def measured(X: Tensor) -> dict[str, float | None]:
    """The figures of a matrix by name; None for an empty cell."""
    (values,) = spectra.figures(spectra.singular_values(spectra.gram(X)[None])).tolist()
    cells = [spectra.root_mean_square(X), *values]
    return {n: None if v == NONE else v for n, v in zip(FIGURES, cells, strict=True)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(12, 12), (12, 40), (40, 12)])
def test_the_figures_of_a_known_spectrum_are_right(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    s = [300.0, 40.0, 20.0, 9.0, 5.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.05, 0.01]
    found = measured(with_values(torch.tensor(s, dtype=torch.float64), *shape).to(dtype))
    squares, p = sum(x * x for x in s), [x / sum(s) for x in s]
    quantiles = np.quantile(sorted(s), [1, 0.9, 0.75, 0.5, 0.25, 0.1, 0])
    expected = {
        "rms": math.sqrt(squares / math.prod(shape)),
        **dict(zip(FIGURES[1:8], quantiles, strict=True)),
        "over_median": 300 / 3,
        "over_smallest": 300 / 0.01,
        "stable_rank": squares / 300**2,
        "effective_rank": math.exp(-sum(x * math.log(x) for x in p)),
        "top_tenth": (300**2 + 40**2) / squares,  # two of twelve
    }
    rel = {torch.float64: 1e-7, torch.float32: 1e-3}[dtype]  # of 0.01 / 300, in float32
    assert found == pytest.approx(expected, rel=rel)


def test_the_values_are_those_of_torch() -> None:
    X = torch.randn(70, 30, generator=torch.Generator().manual_seed(0))
    found = spectra.singular_values(torch.stack([spectra.gram(X), spectra.gram(X.mT)]))
    for values in found:
        np.testing.assert_allclose(values, torch.linalg.svdvals(X.double()), rtol=1e-9)


def test_a_matrix_of_rank_one() -> None:
    u, v = (torch.linspace(-1, 2, n) for n in (20, 30))
    found = measured(torch.outer(u, v))
    assert found["largest"] == pytest.approx(float(u.norm() * v.norm()), rel=1e-6)
    assert {found[name] for name in ("q90", "median", "smallest")} == {0.0}
    assert found["over_median"] is found["over_smallest"] is None
    for name in ("stable_rank", "effective_rank", "top_tenth"):
        assert found[name] == pytest.approx(1.0, abs=1e-6)


def test_an_orthogonal_matrix() -> None:
    found = measured(with_values(torch.ones(20, dtype=torch.float64), 20, 50).float())
    for name in (*FIGURES[1:8], "over_median", "over_smallest"):
        assert found[name] == pytest.approx(1.0, abs=1e-6)
    assert found["stable_rank"] == pytest.approx(20) == found["effective_rank"]
    assert found["top_tenth"] == pytest.approx(2 / 20)
    assert found["rms"] == pytest.approx(math.sqrt(1 / 50))


def test_a_matrix_of_zeros_has_no_ratios() -> None:
    found = measured(torch.zeros(4, 6))
    assert {found[name] for name in FIGURES[:8]} == {0.0}
    assert {found[name] for name in FIGURES[8:]} == {None}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [10]),
        (8, [10, 20, 30, 40, 50, 60, 70, 80]),
        (9, [10, 20, 30, 40, 60, 70, 80, 90]),
        (15, [10, 30, 50, 70, 90, 110, 130, 150]),
    ],
)
def test_at_most_eight_validations_are_measured(count: int, expected: list[int]) -> None:
    assert spread([*range(10, 10 * count + 1, 10)]) == expected


def test_two_are_the_first_and_the_last() -> None:
    assert spread([3, 5, 7, 11], most=2) == [3, 11]


# ---- Parts ---------------------------------------------------------------------------------------


def parts(model: str, recipe: str, **settings: Any) -> list[spectra.Part]:
    roles = GPT(preset(model, 64, 16, None)).roles()
    return spectra.parts_of(roles, optim.plan(roles, recipe, settings, torch.float32))


def heights(found: list[spectra.Part], name: str) -> list[tuple[str, int, int]]:
    return [(part.kind, part.start, part.rows) for part in found if part.parameter == name]


def test_all_optimizers_have_the_same_parts_but_those_that_split_otherwise() -> None:
    name = "blocks.0.attn.qkv.weight"
    adamw = parts("tiny", "adamw")
    assert heights(adamw, name) == [("query", 0, 128), ("key", 128, 128), ("value", 256, 128)]
    assert parts("tiny", "muon") == parts("tiny", "soap") == parts("tiny", "sgd") == adamw
    split = heights(parts("tiny", "muon-split"), name)
    assert [kind for kind, *_ in split] == ["query"] * 4 + ["key"] * 4 + ["value"] * 4
    assert [(start, rows) for _, start, rows in split] == [(32 * n, 32) for n in range(12)]
    assert heights(parts("tiny", "muon", blocks="fused"), name) == [("attn.qkv", 0, 384)]


@pytest.mark.parametrize("model", ["tiny", "tiny-gqa", "tiny-mla", "tiny-classic", "gpt2-2024"])
def test_every_entry_of_a_model_is_in_one_part(model: str) -> None:
    with torch.device("meta"):
        roles = GPT(preset(model, 64, 16, None)).roles()
    found = spectra.parts_of(roles, optim.plan(roles, "adamw", {}, torch.float32))
    assert sum(p.rows * p.columns for p in found) == sum(row.param.numel() for row in roles)
    kinds = {(part.kind, part.role, part.rows, part.columns) for part in found}
    assert len({kind for kind, *_ in kinds}) == len(kinds), "the same in all layers"
    assert not any("blocks" in kind or "weight" in kind for kind, *_ in kinds)


def test_the_kinds_of_other_attentions() -> None:
    gqa = heights(parts("tiny-gqa", "adamw"), "blocks.1.attn.qkv.weight")
    assert [(kind, rows) for kind, _, rows in gqa] == [("query", 128), ("key", 64), ("value", 64)]
    mla = {part.kind for part in parts("tiny-mla", "muon") if part.role == "matrix"}
    assert mla == {
        "attn.q_down", "attn.q_up", "attn.q_rope", "attn.kv_down", "attn.k_up", "attn.k_rope",
        "attn.v_up", "attn.proj", "mlp.fc", "mlp.proj",
    }  # fmt: skip


# ---- What is measured ----------------------------------------------------------------------------

Tensors = dict[tuple[str, str], Tensor]  # by tensor and parameter


def one_step(recipe: str, steps: int = 1, **settings: Any) -> tuple[list[Spectrum], Tensors]:
    """The rows of the last of some steps of a small model, and the tensors that they are of."""
    gpt, engine = GPT(preset("tiny", 64, 16, 32)), engines.make("single", CPU)
    engine.wrap(gpt)
    gpt.init_weights(0)
    plan = optim.plan(engine.roles(), recipe, settings, torch.float32)
    engine.build(plan)
    measuring, held = Spectra(engine, gpt, plan, [steps]), Tensors()
    generator = torch.Generator().manual_seed(0)
    rows: list[Spectrum] = []
    for step in range(1, steps + 1):
        tokens = torch.randint(64, (4, 17), generator=generator)
        engine.backward(gpt(tokens[:, :-1], tokens[:, 1:]) / 64, last=True)
        for name, p in gpt.named_parameters():
            assert p.grad is not None
            held["gradient", name], held["weight", name] = p.grad.clone(), p.detach().clone()
        assert measuring.before(step) is None
        engine.step()
        rows += measuring.after(step)
    for name, p in gpt.named_parameters():
        held["update", name] = p.detach() - held["weight", name]
    for part in engine.owned:
        state: Any = engine.optimizers[part.optimizer].state[part.param]  # type: ignore[attr-defined]
        momentum = state.get("exp_avg", state.get("momentum_buffer"))
        if momentum is not None:
            held["momentum", part.name] = momentum
    return rows, held


@pytest.mark.parametrize("recipe", ["adamw", "muon", "soap", "shampoo", "lion", "dion"])
def test_a_row_is_of_the_tensor_that_it_names(recipe: str) -> None:
    rows, held = one_step(recipe, steps=3)
    assert {row.step for row in rows} == {3}
    assert {(row.tensor, row.parameter) for row in rows} == held.keys()
    assert {row.role for row in rows} == {"embed", "head", "matrix", "vector"}
    assert {tensor for tensor, _ in held} == {*TENSORS}
    start: dict[tuple[str, str], int] = {}
    for row in rows:
        key = row.tensor, row.parameter
        begin = start.get(key, 0)
        start[key] = begin + row.rows
        X = held[key].view(-1, row.columns)[begin : begin + row.rows]
        assert row.rms == pytest.approx(float(X.square().mean().sqrt()), rel=1e-5)
        if row.columns > 1:
            values = torch.linalg.svdvals(X.double())
            assert row.largest == pytest.approx(float(values[0]), rel=1e-5)
            assert row.median == pytest.approx(float(values.quantile(0.5)), rel=1e-4)
        else:
            assert row.largest is row.top_tenth is None


def test_the_update_of_sgd_is_the_gradient_times_lr() -> None:
    rows, _ = one_step("sgd", lr=0.25, momentum=0.0, nesterov=False, weight_decay=0.0)
    found = {(row.tensor, row.parameter, row.part): row for row in rows if row.role == "matrix"}
    assert {tensor for tensor, *_ in found} == {"gradient", "update", "weight"}  # no momentum
    pairs = [(row, found["update", name, part]) for (kind, name, part), row in found.items()
             if kind == "gradient" and row.rms]  # fmt: skip
    assert len(pairs) > 4
    for gradient, update in pairs:
        # Near 0 a small update is lost in the rounding of the weight.
        assert update.rms == pytest.approx(0.25 * gradient.rms, rel=1e-3)
        assert update.largest == pytest.approx(0.25 * (gradient.largest or 0), rel=1e-3)


def test_muon_has_orthogonalised_its_momentum() -> None:
    rows, _ = one_step("muon", steps=2, weight_decay=0.0)
    found = {(row.tensor, row.parameter, row.part): row for row in rows if row.kind == "query"}
    for (tensor, *place), row in found.items():
        if tensor == "momentum":
            update = found["update", *place]  # type: ignore[index]
            assert (update.over_median or 0) < 2 < (row.over_median or 0)


def test_rules_that_keep_no_momentum_have_no_rows_of_it() -> None:
    rows, _ = one_step("adafactor")
    tensors = {row.role: {r.tensor for r in rows if r.role == row.role} for row in rows}
    assert tensors["matrix"] == {"gradient", "update", "weight"} == tensors["embed"] - {"momentum"}
    assert "momentum" in tensors["embed"]  # AdamW's


def test_a_step_that_diverged_has_no_rows() -> None:
    gpt, engine = GPT(preset("tiny", 64, 16, 32)), engines.make("single", CPU)
    engine.wrap(gpt)
    gpt.init_weights(0)
    plan = optim.plan(engine.roles(), "adamw", {}, torch.float32)
    engine.build(plan)
    measuring = Spectra(engine, gpt, plan, [1])
    tokens = torch.zeros(1, 17, dtype=torch.int64)
    engine.backward(gpt(tokens[:, :-1], tokens[:, 1:]) / 16, last=True)
    assert gpt.blocks[0].mlp.fc.weight.grad is not None  # type: ignore[union-attr]
    gpt.blocks[0].mlp.fc.weight.grad[0, 0] = math.nan  # type: ignore[union-attr,index]
    measuring.before(1)
    engine.step()
    assert measuring.after(1) == []


# ---- Runs ----------------------------------------------------------------------------------------


def outcome(
    track: speedrun.Track, options: speedrun.Options, entrant: str, **more: Any
) -> speedrun.Outcome:
    trainer = speedrun.Trainer(track, options, **more)
    return trainer.run(speedrun.enter(entrant, "tiny", 10), seed=0)


@pytest.mark.parametrize("entrant", ["muon", "adamw"])
def test_measuring_is_off_the_clock_and_changes_no_loss(
    entrant: str,
    micro_track: speedrun.Track,
    micro_options: speedrun.Options,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = outcome(micro_track, micro_options, entrant)
    seconds = [0.0]
    decompose = spectra.singular_values

    def slow(grams: Tensor) -> np.ndarray:
        seconds[0] += 1000.0
        return decompose(grams)

    monkeypatch.setattr(spectra, "singular_values", slow)
    logging = replace(micro_options, log_spectra=True)
    out = outcome(micro_track, logging, entrant, now=lambda: seconds[0])
    assert out.clock.seconds == 0 < seconds[0]
    for a, b in zip(out.points, plain.points, strict=True):
        assert (a.val_loss, a.train_loss, a.grad_norm) == (b.val_loss, b.train_loss, b.grad_norm)
    assert sorted({row.step for row in out.spectra}) == [point.step for point in out.points]
    assert plain.spectra == []


@pytest.mark.slow
def test_a_race_writes_its_spectra_and_the_verifier_reads_them(
    micro_flags: list[str], tmp_path: Path
) -> None:
    race = ["adamw", "muonclip:tau=0.05", "--track=tiny-mla", "--seeds=1", "--steps=6"]
    assert speedrun.main([*race, "--log-spectra", *micro_flags]) == 0
    root = tmp_path / "results"
    assert verify.problems(root) == []
    for run in store.read_runs(root):
        steps = [point.step for point in store.read_curve(root, run.run)]
        rows = store.read_spectra(root, run.run)
        assert list(dict.fromkeys(row.step for row in rows)) == steps
    path = store.spectra_path(root, run.run)
    path.rename(path.with_stem("stranger"))
    assert any("stranger.csv: no row in runs.csv" in line for line in verify.problems(root))


def test_a_run_that_diverges_keeps_what_was_measured_before(
    micro_track: speedrun.Track,
    micro_options: speedrun.Options,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    validate = speedrun.Trainer.validate

    def diverge(self: speedrun.Trainer, out: speedrun.Outcome) -> float:
        return math.nan if out.steps == 8 else validate(self, out)

    monkeypatch.setattr(speedrun.Trainer, "validate", diverge)
    out = outcome(micro_track, replace(micro_options, log_spectra=True), "muon")
    assert out.status == "diverged" and [point.step for point in out.points] == [4]
    assert {row.step for row in out.spectra} == {4, 8}
    run = make_run(make_points(20), status="diverged", steps=8)
    assert list(leaderboard.spectra.problems(run, out.points, out.spectra)) == []


def test_an_engine_without_gradients_to_show_is_refused(
    micro_flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(single.Engine, "shows", False)
    assert speedrun.main(["adamw", "--steps=2", "--log-spectra", *micro_flags]) == 2
    assert "--log-spectra: the engine single shows no whole gradients" in capsys.readouterr().err


def test_deepspeed_is_refused_and_the_other_engines_are_named() -> None:
    deepspeed: Any = SimpleNamespace(shows=Deepspeed.shows, name="deepspeed-zero2")
    with pytest.raises(UserError, match="deepspeed-zero2.*ddp or fsdp2 or sharded or single$"):
        spectra.require_shown(deepspeed)
