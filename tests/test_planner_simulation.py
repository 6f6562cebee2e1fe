"""The simulation of a step: its events, its collectives, its strategies, and its command."""

import csv
import heapq
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.charts._style import drawing
from errors import UserError
from host import entry, paths
from planner import models, plans
from planner.__main__ import main
from planner.charts import step_by_ranks, timeline
from planner.cluster import clusters
from planner.cluster.setting import Setting
from planner.memory import update_rules as rules
from planner.step import collectives, dealing, failures, jobs, steps, strategies
from planner.step.collectives import Group, Links
from planner.step.jobs import Job, Stack, Unit
from planner.step.streams import COMMUNICATE, COMPUTE, KINDS, Operation, resolve
from planner.time.newton_schulz import Iteration

INSTANT = Links(8, math.inf, math.inf)
SLOW = Links(8, 1e9, 1e8, 1e-5, 1e-4)
RUNS = paths.RESULTS / "records" / "engines" / "runs.csv"
NAMES = list(strategies.STRATEGIES)


# ---- Events ------------------------------------------------------------------------------------


def event_queue(
    program: Sequence[Operation], ranks: int, slow: Any
) -> dict[tuple[int, int], tuple[float, float]]:
    """When each operation begins and ends on each rank, one event at a time."""
    spans: dict[tuple[int, int], tuple[float, float]] = {}
    waiting = {
        (rank, stream): [i for i, each in enumerate(program) if each.stream == stream][::-1]
        for rank in range(ranks)
        for stream in (COMPUTE, COMMUNICATE)
    }
    busy: set[tuple[int, int]] = set()
    arrived: dict[tuple[int, int], set[int]] = defaultdict(set)
    done: set[tuple[int, int]] = set()
    events: list[tuple[float, int, int]] = []

    def begin(rank: int, i: int, now: float) -> None:
        each = program[i]
        lasts = float(np.broadcast_to(each.seconds, ranks)[rank])
        end = now + (lasts if each.groups else lasts * slow[rank])
        spans[rank, i] = now, end
        waiting[rank, each.stream].pop()
        busy.add((rank, each.stream))
        heapq.heappush(events, (end, rank, i))

    def look(rank: int, now: float) -> None:
        for stream in (COMPUTE, COMMUNICATE):
            if (rank, stream) in busy or not waiting[rank, stream]:
                continue
            i = waiting[rank, stream][-1]
            each = program[i]
            if not all((rank, before) in done for before in each.after):
                continue
            if not each.groups:
                begin(rank, i, now)
                continue
            here = arrived[i, rank % each.groups]
            here.add(rank)
            if len(here) == ranks // each.groups:
                for member in sorted(here):
                    begin(member, i, now)
                here.clear()

    for rank in range(ranks):
        look(rank, 0.0)
    while events:
        now, rank, i = heapq.heappop(events)
        busy.discard((rank, program[i].stream))
        done.add((rank, i))
        look(rank, now)
    return spans


def measure(spans: list[tuple[float, float]], beside: list[tuple[float, float]]) -> float:
    """Length of the union of spans, without what lies in others beside them."""
    edges = sorted({edge for span in [*spans, *beside] for edge in span})
    total = 0.0
    for start, stop in pairwise(edges):
        middle = (start + stop) / 2
        inside = any(a < middle < b for a, b in spans)
        total += (stop - start) * (inside and not any(a < middle < b for a, b in beside))
    return total


def random_program(rng: random.Random, ranks: int) -> list[Operation]:
    numbers = np.random.default_rng(rng.randrange(10**9))
    program = []
    for i in range(rng.randrange(1, 14)):
        after = tuple(rng.sample(range(i), rng.randrange(0, min(i, 3) + 1)))
        if rng.random() < 0.5:
            groups = rng.choice([n for n in range(1, ranks + 1) if ranks % n == 0])
            program.append(
                Operation(COMMUNICATE, "gradients", rng.choice([0.0, rng.random()]), after, groups)
            )
        else:
            seconds = numbers.random(ranks) * (numbers.random(ranks) < 0.8)
            program.append(Operation(COMPUTE, rng.choice(KINDS), seconds, after))
    return program


@pytest.mark.parametrize("seed", range(60))
def test_all_ranks_at_once_give_the_times_of_an_event_queue(seed: int) -> None:
    rng = random.Random(seed)
    ranks = rng.choice([1, 2, 3, 4, 6])
    program = random_program(rng, ranks)
    slow = np.array([rng.uniform(0.5, 2) for _ in range(ranks)])
    expected = event_queue(program, ranks, slow)
    assert len(expected) == ranks * len(program), "the program does not end"
    found = resolve(program, ranks, slow, range(ranks))
    assert found.seconds == pytest.approx(max(stop for _, stop in expected.values()))
    spans = iter(found.spans)
    for i, each in enumerate(program):
        for rank in range(ranks):
            span = next(spans)
            assert (span.rank, span.kind) == (rank, each.kind)
            assert (span.start_s, span.stop_s) == pytest.approx(expected[rank, i])
    for rank in range(ranks):
        computed, sent = (
            [expected[rank, i] for i, each in enumerate(program) if each.stream == stream]
            for stream in (COMPUTE, COMMUNICATE)
        )
        exposed = measure(sent, computed)
        assert found.exposed[rank] == pytest.approx(exposed)
        used = measure([*computed, *sent], [])
        assert found.idle[rank] == pytest.approx(found.seconds - used)


# ---- Collectives -------------------------------------------------------------------------------


def test_in_one_node_collectives_take_what_a_ring_does() -> None:
    group = SLOW.group(8)
    scatter = collectives.reduce_scatter(SLOW, group, 8e6)
    assert scatter.seconds == pytest.approx(7 / 8 * 8e6 / 1e9 + 7 * 1e-5)
    assert scatter.sent_bytes == pytest.approx(7e6)
    both = collectives.all_reduce(SLOW, group, 8e6)
    assert both == pytest.approx(tuple(2 * each for each in scatter))


def test_with_one_rank_in_each_node_only_the_network_counts() -> None:
    alone = Links(1, 1.0, 1e8)
    assert collectives.all_gather(alone, alone.group(16), 1e6).seconds == pytest.approx(
        15 / 16 * 1e6 / 1e8
    )
    exchange = collectives.all_to_all(alone, alone.group(16), 1e6, 2e6)
    assert exchange.seconds == pytest.approx(15 / 16 * 2e6 / 1e8)  # the busiest one rules
    assert exchange.sent_bytes == pytest.approx(15 / 16 * 1e6)


def test_large_collectives_use_all_links_of_a_node_and_small_ones_few_messages() -> None:
    group = SLOW.group(1024)
    large = collectives.all_gather(SLOW, group, 1e12).seconds
    assert large == pytest.approx(1e12 / (8 * 1e8), rel=0.01)
    small = collectives.all_gather(SLOW, group, 1.0).seconds
    assert small == pytest.approx(7 * 1e-5 + 7 * 1e-4, rel=0.01)  # 2^7 nodes


def test_a_rank_alone_and_nothing_to_send_are_free() -> None:
    for size, total in ((1, 1e9), (64, 0.0)):
        group = SLOW.group(size)
        assert collectives.all_reduce(SLOW, group, total) == (0, 0)
        assert collectives.all_to_all(SLOW, group, total, total) == (0, 0)
        assert collectives.rooted(SLOW, group, total) == (0, 0)


def test_experts_of_a_group_are_in_different_nodes_once_there_are_as_many_groups_as_ranks() -> None:
    assert SLOW.group(64) == Group(64, 8)
    assert SLOW.group(64, stride=4) == Group(64, 2)
    assert SLOW.group(64, stride=64) == Group(64, 1)


# ---- Who owns what -----------------------------------------------------------------------------


def stack(numbers: float, count: int, cost: float = 1.0, experts: bool = False) -> Stack:
    """Matrices that take `cost` seconds each."""
    return Stack(f"{numbers:g}", numbers, count, cost, lambda batch: cost * batch, experts)


def test_layers_are_dealt_back_and_forth() -> None:
    stacks = [stack(100 - i, 1) for i in range(10)]
    counts = np.array(dealing.back_and_forth(stacks, 4))
    owned = [set(np.flatnonzero(counts[:, rank])) for rank in range(4)]
    assert owned == [{0, 7, 8}, {1, 6, 9}, {2, 5}, {3, 4}]


ROW = [(12, 1)] * 4 + [(5, 0)] * 3 + [(2, 2)] * 9  # numbers and stack, the largest first


@pytest.mark.parametrize(
    ("row", "size"), [(ROW, 1), (ROW, 3), (ROW, 7), (ROW, 64), ([(1, 0)] * 18, 66)]
)
def test_zero_computes_a_matrix_wherever_a_part_of_it_lies(
    row: list[tuple[int, int]], size: int
) -> None:
    sizes = {kind: numbers for numbers, kind in row}
    stacks = [stack(sizes[kind], row.count((sizes[kind], kind))) for kind in sorted(sizes)]
    expected = np.zeros((len(stacks), size), int)
    total, begin = sum(numbers for numbers, _ in row), 0
    for numbers, kind in row:
        for rank in range(size):
            low, high = rank * total, (rank + 1) * total
            expected[kind, rank] += begin * size < high and (begin + numbers) * size > low
        begin += numbers
    assert np.array_equal(dealing.overlapping(stacks, size), expected)


def test_matrices_by_cost_go_to_the_least_busy_rank() -> None:
    counts = dealing.by_cost([stack(1, 3, 1.0), stack(1, 2, 5.0)], 3)
    assert [each.tolist() for each in counts] == [[0, 0, 3], [1, 1, 0]]
    assert [each.sum() for each in dealing.balanced([stack(1, 11), stack(2, 2)], 4)] == [11, 2]


# ---- Strategies in their limits ----------------------------------------------------------------


def job(ranks: int, muon: bool = True, **changes: Any) -> Job:
    """Two layers of four matrices between two ends; eight matrices in all."""
    units = (
        Unit("embedding", 0.0, 0.0, 1000, root=True),
        Unit("layer 0", 0.1, 0.2, 4 * 500),
        Unit("layer 1", 0.1, 0.2, 4 * 500),
        Unit("head", 0.05, 0.1, 1000, root=True),
    )
    given = Job(
        ranks, units, (stack(500, 8, 0.01),) if muon else (), 1e-6, 2e-6,
        grad_number_bytes=4, param_number_bytes=4, bucket_bytes=1.0,
    )  # fmt: skip
    return replace(given, **changes)


PASSES, UPDATE = 0.75, 8 * 0.01 + 4000 * 2e-6 + 2000 * 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_all_strategies_are_alike_on_one_rank(name: str) -> None:
    done = strategies.simulate(job(1), name, SLOW)
    assert done.seconds == pytest.approx(PASSES + UPDATE)
    assert (done.sent_bytes, done.exposed.sum()) == (0, 0)
    assert done.idle.sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_with_instant_links_a_step_is_its_computation(name: str) -> None:
    done = strategies.simulate(job(4), name, INSTANT)
    everyone = name in ("ddp", "moonlight")
    work = 0.08 if everyone else 0.02  # eight matrices on four ranks
    matrices = 4000 * 2e-6 * (1 if name == "ddp" else 0.25)
    rest = 2000 * 1e-6 * (1 if name in ("ddp", "round-robin") else 0.25)
    assert done.seconds == pytest.approx(PASSES + work + matrices + rest)
    assert done.exposed.sum() == pytest.approx(0, abs=1e-9)
    assert done.idle.sum() == pytest.approx(0, abs=1e-9)  # equal matrices that divide


@pytest.mark.parametrize("muon", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_without_computation_a_step_is_its_communication(name: str, muon: bool) -> None:
    still = tuple(replace(u, forward_seconds=0.0, backward_seconds=0.0) for u in job(4).units)
    idle = replace(job(4, muon), units=still, update_seconds=0.0, matrix_update_seconds=0.0)
    idle = replace(idle, stacks=tuple(replace(s, seconds=lambda batch: 0.0) for s in idle.stacks))
    program = strategies.program(idle, name, SLOW)
    done = resolve(program, 4)
    sent = sum(float(each.seconds) for each in program if each.stream == COMMUNICATE)
    assert done.seconds == pytest.approx(sent) and sent > 0
    assert done.exposed == pytest.approx(np.full(4, sent))


@pytest.mark.parametrize("name", NAMES)
def test_communication_that_hides_nothing_adds_up(name: str) -> None:
    program = strategies.program(job(4, hides=False), name, SLOW)
    total = sum(np.max(each.seconds) for each in program)
    assert resolve(program, 4).seconds == pytest.approx(total)
    assert strategies.simulate(job(4), name, SLOW).seconds <= total + 1e-9


@pytest.mark.parametrize("left", [0.0, 0.1, 10.0])
def test_ddp_exposes_what_the_rest_of_the_backward_pass_does_not_hide(left: float) -> None:
    """One bucket, which is full when the only layer has passed; then `left` seconds remain."""
    units = (Unit("first", 0.0, left, 0.0), Unit("layer", 1.0, 1.0, 1e8))
    one = Job(8, units, update_seconds=1e-9, grad_number_bytes=4)
    average = collectives.all_reduce(SLOW, SLOW.group(8), 4e8).seconds
    done = strategies.simulate(one, "ddp", SLOW)
    assert done.exposed == pytest.approx(np.full(8, max(0.0, average - left)))
    assert done.seconds == pytest.approx(2 + max(left, average) + 0.1)


def test_sharded_hides_nothing_behind_the_backward_pass() -> None:
    done = strategies.simulate(job(4), "sharded", SLOW, watched=(0,))
    backward = max(span.stop_s for span in done.spans if span.kind == "backward")
    assert min(span.start_s for span in done.spans if span.stream == COMMUNICATE) >= backward


def test_reducing_early_sends_the_same_and_hides_it_behind_the_backward_pass() -> None:
    layers = job(4, units=job(4).units[1:3])
    late, early = (strategies.simulate(layers, n, SLOW) for n in ("sharded", "sharded-early"))
    assert early.sent_bytes == pytest.approx(late.sent_bytes)
    assert early.exposed.sum() < late.exposed.sum()


def test_owners_are_idle_where_matrices_do_not_divide() -> None:
    uneven = replace(job(4), stacks=(stack(500, 5, 0.1),))
    done = strategies.simulate(uneven, "fsdp2", INSTANT)
    busiest = done.busy["orthogonalise"].max()
    assert busiest == pytest.approx(0.2)
    assert sorted(done.busy["orthogonalise"]) == pytest.approx([0.1, 0.1, 0.1, 0.2])
    waiting = 0.1 + 500 * 2e-6  # three ranks, for one matrix more and its update
    assert sorted(done.idle) == pytest.approx([0.0, waiting, waiting, waiting], abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_experts_is_a_smaller_world(name: str) -> None:
    """Twelve ranks with three groups of experts are like four ranks with dense layers."""
    alone, links = job(4, stacks=(stack(500, 6, 0.01),)), Links(1, 1.0, 1e6, 0.0, 1e-4)
    moved = tuple(replace(u, dense=0.0, experts=u.dense) for u in alone.units)
    grouped = replace(
        job(12), units=moved, stacks=(stack(500, 6, 0.01, experts=True),), expert_groups=3
    )
    one, many = (strategies.simulate(each, name, links) for each in (alone, grouped))
    assert many.seconds == pytest.approx(one.seconds)
    assert many.sent_bytes == pytest.approx(one.sent_bytes)
    assert many.busy["orthogonalise"] == pytest.approx(np.repeat(one.busy["orthogonalise"], 3))


def test_microbatches_gather_and_scatter_again_where_parameters_are_sharded() -> None:
    def sent(name: str, passes: int) -> float:
        return strategies.simulate(job(4, microbatches=passes), name, SLOW).sent_bytes

    p, b, ring = 6000 * 4, 4000 * 4, 3 / 4
    assert sent("fsdp2", 3) - sent("fsdp2", 1) == pytest.approx(2 * (2 * p + b) * ring)
    assert sent("zero2", 3) - sent("zero2", 1) == pytest.approx(2 * 2 * p * ring)
    for name in (
        "ddp",
        "sharded",
        "sharded-early",
        "zero1",
        "moonlight",
        "layer-wise",
        "round-robin",
    ):
        assert sent(name, 3) == sent(name, 1)


# ---- Bytes that engines have counted -----------------------------------------------------------


def measured() -> list[Any]:
    """(strategy, optimizer, processes, bytes that one process sent in a step) of each run."""
    with RUNS.open(newline="", encoding="utf-8") as file:
        return [
            pytest.param(
                row["engine"].removeprefix("deepspeed-"), row["label"], int(row["world_size"]),
                int(row["communication_bytes"]) / int(row["steps"]),
                id=f"{row['engine']}-{row['label']}-{row['world_size']}",
            )
            for row in csv.DictReader(file)
            if row["engine"] != "single"
        ]  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> models.Model:
    from planner.models import own_models  # imports torch

    return own_models.from_track("tiny")


@pytest.mark.parametrize(("strategy", "optimizer", "processes", "sent"), measured())
def test_bytes_are_those_that_the_engines_counted(
    tiny: models.Model, strategy: str, optimizer: str, processes: int, sent: float
) -> None:
    setting = Setting(dtype="float32", master=False)
    cluster = clusters.make("h100", ranks=processes)
    planned = jobs.job(tiny, rules.find(optimizer), Iteration(), setting, cluster)
    found = strategies.simulate(planned, strategy, SLOW).sent_bytes
    assert found == pytest.approx(sent, rel=0.02)


# ---- A step on a cluster -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def v4() -> plans.Plan:
    return plans.make(models.find("deepseek-v4"), {"ranks": 16_384})


def cost(plan: plans.Plan, rule: str, name: str, **changes: Any) -> steps.StepCost:
    cluster = replace(plan.cluster, **changes)
    return steps.step_cost(plan.model, rule, name, cluster, plan.setting, plan.iteration, draws=2)


def test_passes_take_their_flops_at_the_share_of_the_peak(v4: plans.Plan) -> None:
    expected = v4.model.flops_per_token * v4.tokens / 16_384 / (0.4 * 989e12)
    found = cost(v4, "adamw", "ddp", straggler_sd=0.0)
    assert found.compute_seconds == pytest.approx(expected)  # also with 61 layers in 16 stages
    late = cost(v4, "adamw", "ddp", straggler_sd=0.1)
    assert late.seconds == pytest.approx(found.seconds, rel=0.02)  # which the share contains
    assert found.draw_seconds[0] == found.draw_seconds[1]


def test_owners_together_do_the_newton_schulz_of_the_whole_model(v4: plans.Plan) -> None:
    """2.3e17 FLOPs (notes on DeepSeek-V4) at no more than the peak, by all ranks together."""
    found, at_peak = cost(v4, "muon", "sharded", straggler_sd=0.0), 2.3e17 / 16_384 / 989e12
    assert 1.3 * at_peak < found.orthogonalise_mean_seconds < 4 * at_peak
    assert found.orthogonalise_seconds > found.orthogonalise_mean_seconds


def test_both_optimizers_meet_the_same_stragglers(v4: plans.Plan) -> None:
    late, even = (steps.slowness(v4.cluster, 16, 7, draw) for draw in (0, 1))
    assert not np.array_equal(late, even)
    assert np.array_equal(late, steps.slowness(v4.cluster, 16, 7, 0))
    whole = steps.slowness(v4.cluster, 1, 7, 0)
    assert whole.mean() == pytest.approx(1, abs=0.001)
    assert np.log(whole).std() == pytest.approx(0.02, rel=0.03)
    muon, adamw = (cost(v4, rule, "sharded", straggler_sd=0.2) for rule in ("muon", "adamw"))
    price = steps.price(muon, adamw)
    assert price.high - price.low < 0.2 * (adamw.high_seconds / adamw.low_seconds - 1)


def test_a_step_of_the_largest_model_on_the_largest_cluster_takes_seconds(v4: plans.Plan) -> None:
    found = [
        steps.step_cost(v4.model, "muon", name, v4.cluster, v4.setting, draws=1) for name in NAMES
    ]
    assert {each.ranks for each in found} == {16_384}
    assert all(each.seconds > each.compute_seconds for each in found)


def test_the_bubble_is_all_microbatches_of_the_other_stages(v4: plans.Plan) -> None:
    with_bubble = v4.with_setting(bubble=True, microbatches=5)
    found = cost(with_bubble, "adamw", "sharded", straggler_sd=0.0)
    assert found.bubble_seconds == pytest.approx(15 / 5 * found.compute_seconds)
    assert not cost(v4, "adamw", "sharded").bubble_seconds


def test_a_stage_has_its_share_of_the_model() -> None:
    model = models.find("deepseek-v4")
    cluster = clusters.make("h800", ranks=1024)
    setting = Setting(expert_parallel=64)
    for rule in ("adamw", "muon"):
        planned = jobs.job(model, rules.find(rule), Iteration(), setting, cluster)
        held = planned.numbers(False) + 64 * planned.numbers(True)
        assert held == pytest.approx(model.params)


# ---- Failures ----------------------------------------------------------------------------------


def test_runs_with_failures_take_as_long_as_one_failure_at_a_time() -> None:
    cluster = clusters.make("h100", ranks=16_384, restart_minutes=60)
    rate, rng, runs = 16_384 / 50_700, random.Random(3), []
    for _ in range(1500):
        hours, useful = 0.0, 24.0
        while (lasts := rng.expovariate(rate)) < useful:
            hours, useful = hours + lasts, useful - lasts
            while (broken := rng.expovariate(rate)) < 1.0:
                hours += broken
            hours += 1.0
        runs.append(hours + useful)
    found = failures.run_hours(24.0, cluster, seed=1, draws=4000)
    assert found.expected == pytest.approx(float(np.mean(runs)), rel=0.02)
    for mine, share in ((found.low, 0.05), (found.median, 0.5), (found.high, 0.95)):
        assert mine == pytest.approx(float(np.quantile(runs, share)), rel=0.04)


def test_without_failures_a_run_takes_its_useful_hours() -> None:
    for changes in ({"restart_minutes": 0.0}, {"gpu_hours_per_failure": 1e18}):
        found = failures.run_hours(100.0, clusters.make("h100", **changes))
        assert (found.low, found.high) == (100, 100)
        assert found.expected == pytest.approx(100)


def test_a_run_that_fails_faster_than_it_restarts_is_refused() -> None:
    with pytest.raises(UserError, match="--restart-minutes 20000: 1,024 GPUs fail every"):
        failures.expected_hours(1.0, clusters.make("h100", restart_minutes=20000.0))


# ---- The command -------------------------------------------------------------------------------


def run(*words: str) -> int:
    return main(["step", *words])


def test_the_command_prints_a_row_for_each_and_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, picture = tmp_path / "step.csv", tmp_path / "step.png"
    words = ["gpt2-124m", "--strategy", "sharded", "fsdp2", "--draws", "2", "--csv", str(path)]
    assert run(*words, "--timeline", str(picture)) == 0
    assert picture.stat().st_size > 10_000 and picture.with_suffix(".svg").exists()
    printed = capsys.readouterr().out
    assert "8 H100" in printed and "1 stages" not in printed
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["strategy"], r["optimizer"]) for r in rows] == [
        (name, rule) for name in ("sharded", "fsdp2") for rule in ("adamw", "muon")
    ]
    muon, adamw = float(rows[1]["seconds"]), float(rows[0]["seconds"])
    assert float(rows[1]["price"]) == pytest.approx(muon / adamw - 1)
    assert f"{muon / adamw - 1:+.2%}" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "shraded"], "did you mean sharded?"),
        (["--optimizer", "moun"], "did you mean muon?"),
        (["--optimizer", "soap"], "decompositions is not planned"),
        (["--draws", "0"], "--draws 0: must be 1 or more"),
        (["--seed", "-1"], "--seed -1: must be 0 or more"),
        (["--ranks", "12"], "must fill nodes of 8; run with --ranks 16"),
        (["--ranks", "24", "--pipeline", "5"], "run with --ranks 25"),
        (["--ranks", "8192"], "share 512 sequences"),
        (["--expert-parallel", "4"], "has no experts"),
        (["--straggler-sd", "nan"], "--straggler-sd nan: must be 0 or more"),
        (["--bucket-numbers", "-4"], "--bucket-numbers -4: must be 0 or more"),
    ],
)
def test_a_mistake_gets_one_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("gpt2-124m", *words) == entry.MISTAKE
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


# ---- Charts ------------------------------------------------------------------------------------


def test_the_charts_show_what_was_simulated() -> None:
    plan = plans.make(models.find("gpt2-124m"), {})
    lines = step_by_ranks.compute(plan, ["ddp", "sharded"])
    assert lines.ranks == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]  # a sequence for each
    assert lines.prices["ddp"][-1] > lines.prices["ddp"][0]
    figure = step_by_ranks.draw_lines(lines)
    drawn = figure.axes[0].lines[0].get_ydata()
    assert np.allclose(np.asarray(drawn, dtype=float), lines.prices["ddp"])
    with drawing():
        shown = timeline.draw(plan, ["sharded", "zero3"])
    assert [axes.get_title(loc="left").split(":")[0] for axes in shown.axes[1:]] == [
        "sharded", "zero3",
    ]  # fmt: skip
