"""The verdict: gains by size, break-even, hours and money, and what each assumption moves."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from errors import UserError
from host import entry
from leaderboard import pages as leaderboard_pages
from planner import assumptions, gains, models, pages, plans, verdict, words
from planner.__main__ import main
from planner.models import Model, Weight
from planner.verdict import Span, judge


def small(**changes: object) -> plans.Plan:
    """A plan of GPT-2 on eight GPUs that is fast to simulate."""
    return plans.make(models.find("gpt2-124m"), {"draws": 2, **changes})


@pytest.fixture(scope="module")
def found() -> verdict.Verdict:
    return judge(small())


def of_size(params: int) -> Model:
    """A model with so many parameters."""
    model = models.find("gpt2-124m")
    return replace(model, weights=(Weight("mlp.up", "mlp", params // 1000, 1000),))


# ---- Gains -------------------------------------------------------------------------------------


def test_the_gains_of_a_small_model_are_those_measured_near_its_size() -> None:
    near = gains.for_model(of_size(150_000_000), gains.known())
    assert not near.extrapolated
    assert (near.low, near.high) == (1.1, 1.52)  # Wen et al. at 1.2B; track 3, both tuned


def test_beyond_all_published_sizes_a_plan_says_that_it_extrapolates() -> None:
    far = gains.for_model(of_size(400_000_000_000), gains.known())
    assert far.extrapolated
    assert (far.low, far.high) == (1.1, 1.4)
    assert all(gain.params_high >= 1_000_000_000 for gain in far.gains)


def test_gains_in_seconds_and_gains_of_an_untuned_pair_do_not_count() -> None:
    known = gains.known()
    counted = [gain.source for gain in known if gain.counts]
    assert not any(name.startswith(("Jordan", "Moonshot")) for name in counted)
    assert all(not gain.counts for gain in known if gain.basis == "seconds")


def test_our_own_gains_count_for_our_own_models() -> None:
    near = gains.for_model(of_size(1_000_000), gains.known())
    assert {gain.source.partition(",")[0] for gain in near.gains} == {"this project"}


# ---- The verdict -------------------------------------------------------------------------------


def test_at_the_break_even_gain_both_trainings_take_as_long(found: verdict.Verdict) -> None:
    assert found.price > 1  # Newton-Schulz is not free
    assert found.hours(found.price) == pytest.approx(found.adamw_hours)
    assert found.hours(2 * found.price) < found.adamw_hours < found.hours(found.price / 2)
    assert found.speedup(found.price) == pytest.approx(1)


def test_hours_are_steps_times_seconds_and_failures(found: verdict.Verdict) -> None:
    cluster = replace(found.plan.cluster, gpu_hours_per_failure=1e15)
    calm = replace(found, plan=replace(found.plan, cluster=cluster))
    useful = found.plan.train_tokens / found.plan.tokens * found.adamw.seconds / 3600
    assert calm.adamw_hours == pytest.approx(useful)
    assert found.adamw_hours > useful


def test_money_is_gpu_hours_times_the_price(found: verdict.Verdict) -> None:
    saved, cluster = found.saved_hours, found.plan.cluster
    assert saved.low < saved.high
    paid = saved.high * cluster.ranks * cluster.price_per_gpu_hour
    assert found.saved_dollars.high == pytest.approx(paid)


def test_the_state_of_a_hybrid_is_what_the_notes_have() -> None:
    plan = small(ranks=1, dtype="float32")
    verdict_of_one = judge(plan)
    state = [verdict_of_one.memory(rule).state_bytes / 2**20 for rule in ("adamw", "muon")]
    assert [round(size) for size in state] == [949, 625]


def test_more_steps_of_newton_schulz_cost_more(found: verdict.Verdict) -> None:
    assert judge(small(ns_steps=12)).price > found.price
    llama = models.find("llama-405b")
    plain, half = (judge(plans.make(llama, {"draws": 1, "symmetric": s})) for s in (False, True))
    assert half.price < plain.price
    assert half.largest_matrix_seconds < plain.largest_matrix_seconds < plain.muon.seconds


@pytest.mark.parametrize("name", ["gpt2-124m", "deepseek-v4"])
def test_each_changed_assumption_is_one_option_away(name: str) -> None:
    parser = entry.parser("planner verdict", "")
    models.add(parser)
    plans.add(parser)
    plan = plans.make(models.find(name), {"draws": 2})
    seen = set()
    for change in assumptions.changes(plan):
        words = [name, "--draws", "2", *change.option.split()]
        arguments = parser.parse_args(words)
        assert plans.chosen(arguments, models.chosen(arguments)) == change.plan, change.option
        seen.add(change.option.split()[0])
    link = "--node-bytes-per-s" if plan.cluster.ranks == 8 else "--net-bytes-per-s"
    assert {"--mfu", "--batch-tokens", link, "--straggler-sd", "--strategy", "--curve"} <= seen


def test_a_sensitivity_names_what_it_moves(found: verdict.Verdict) -> None:
    change = next(iter(assumptions.changes(found.plan)))
    moved = assumptions.Moved(change, 1.5, Span(-1.0, 2.0), -5e6)
    rows = words.sensitivity_rows(found, [moved])
    assert rows[2][3] == "1.500x" and rows[2][4] == f"{1.5 - found.price:+.3f}"
    assert rows[2][5:] == ["-1.00 to 2.00", "-5 MB"]


# ---- The command -------------------------------------------------------------------------------


def test_the_command_prints_ranges_and_writes_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "verdict.csv"
    assert main(["verdict", "gpt2-124m", "--draws=2", f"--csv={path}"]) == 0
    printed = capsys.readouterr().out
    assert "fewer steps, a gain of" in printed and "counts" in printed
    with path.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["model"] == "gpt2-124m" and float(row["break_even_gain"]) > 1
    assert float(row["gain_low"]) < float(row["gain_high"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpt5"], "gpt5"),
        (["gpt2-124m", "--strategy=fastest"], "--strategy fastest: must be one of ddp"),
        (["gpt2-124m", "--optimizer=muom"], "--optimizer muom: .* did you mean muon"),
        (["gpt2-124m", "--train-tokens=-1"], "--train-tokens -1.0: must be 0 or more"),
        (["gpt2-124m", "--train-tokens=nan"], "--train-tokens nan: must be 0 or more"),
        (["gpt2-124m", "--optimizer=adamw"], "gains in steps are known of Muon alone"),
        (["gpt2-124m", "--straggler-sd=5"], "--straggler-sd 5.0: must be at most 1"),
        (["gpt2-124m", "--draws=0"], "--draws 0: must be 1 or more"),
        (["gpt2-124m", "--ranks=0"], "--ranks 0: must be 1 or more"),
        (["gpt2-124m", "--ranks=12"], "--ranks 12: must fill nodes of 8; run with --ranks 16"),
        (["gpt2-124m", "--ranks=8", "--pipeline=3"], "--ranks 8: must be a multiple of"),
        (["gpt2-124m", "--ranks=1024"], "1024 replicas of the model share 512 sequences"),
        (["gpt2-124m", "--cluster=h1000"], "--cluster h1000: must be one of a100"),
        (["gpt2-124m", "--cluster=none.toml"], "none.toml"),
        (["gpt2-124m", "--mfu=1.5"], "--mfu 1.5: must be 0.001 to 1"),
        (["gpt2-124m", "--straggler-sd=inf"], "--straggler-sd inf: must be 0 or more and finite"),
        (["gpt2-124m", "--dtype=float8"], "--dtype float8: must be bfloat16 or float32"),
        (["gpt2-124m", "--ns-coefficients=x"], "--ns-coefficients x: must be one of jordan"),
        (["gpt2-124m", "--ns-steps=-3"], "--ns-steps -3: must be"),
        (["gpt2-124m", "--expert-parallel=2"], "--expert-parallel 2: .* has no experts"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verdict", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1

    assert re.search(message, printed.err), printed.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[mine]\ngpu = 'h100'\n", "ranks_per_node is missing"),
        ("[mine]\nspeed = 1\n", r"\[mine\] speed: must be one of gpu"),
        ("mine = 1\n", "mine must stand in a table"),
        ("[mine]\ngpu = 1\n", "gpu=1: must be"),
        ("[mine\n", "cannot be read"),
    ],
)
def test_a_cluster_of_ones_own_is_read_strictly(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        small(cluster=str(path))


# ---- The pages ---------------------------------------------------------------------------------


def test_the_pages_show_what_the_planner_gives() -> None:
    assert main(["docs", "--check", "gpt2-124m"]) == 0
    home = pages.HOME.read_text(encoding="utf-8")
    shown = home.partition("<!-- begin:plan answer/deepseek-v4 -->\n")[2].partition("\n<!-- end")[0]
    assert shown == pages.answer("deepseek-v4")


def test_every_named_model_has_its_page_and_its_charts() -> None:
    assert {path.stem for path in pages.FOLDER.glob("*.md")} == set(plans.named())
    assert {path.name for path in pages.CHARTS.iterdir()} == {
        f"{name}-{chart}.svg" for name in plans.named() for chart in pages.figures(name)
    }


def test_the_other_command_for_pages_leaves_the_planners_parts() -> None:
    page = "<!-- begin:plan models -->\nold\n<!-- end:plan -->\n"
    assert leaderboard_pages.rewrite(page) == page
    made = leaderboard_pages.rewrite(page, markers={"plan": lambda what, _: f"new {what}"})
    assert "new models" in made and "old" not in made


def test_every_named_plan_is_of_a_preset() -> None:
    assert set(plans.named()) == set(models.presets())
    for name in plans.named():
        plan = pages.plan_of(name)
        assert plan.source and plan.draws > 1
        assert judge(plan).memory(plan.rule).fits(plan.cluster.kind.memory_bytes), name
