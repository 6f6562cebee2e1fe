"""Classes by their dotted path, and recipes from libraries, through the trainer and the files.

    python -m pytest tests/test_library.py

Claims: `lib:PATH` has the constructor's options, is spelled in a row as it reads back, is tuned,
resumed and verified like any recipe; what cannot be raced is refused by name; a schedule-free rule
is validated on its average and trains as if it had not been.
"""

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import optim
import speedrun
from engines.single import Engine
from errors import UserError
from layers.config import GPTConfig
from leaderboard import verify
from model import GPT
from optim import Linear, Log, library
from optim.entrants import entrant_options, parse
from optim.library import numbers
from speedrun import Options, Schedule, Track, Trainer
from studies.study import Budget, Job, Shard, Study
from tests.conftest import Noisy
from tracking import store, tuned
from tracking.spelling import options_of, split

CONFIG = GPTConfig(vocab_size=37, block_size=8, n_layer=1, n_head=2, n_embd=16)
ROLES = GPT(CONFIG).roles()


class Rule(torch.optim.SGD):
    """Every kind of argument."""

    def __init__(
        self,
        params: Any,
        lr: float = 0.25,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay=0,  # type: ignore[no-untyped-def]
        often: int = 3,
        clip=1,  # type: ignore[no-untyped-def]
        nesterov: bool = False,
        mode: str = "a",
        schedule: Any = None,
        steps: int = 7,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(params, lr)
        self.given = (betas, weight_decay, often, clip, nesterov, mode, schedule, steps)
        if len(betas) != 2:
            raise KeyError("two betas")


class Needy(torch.optim.SGD):
    def __init__(self, params: Any, model: Any, horizon: int, lr: float = 0.1) -> None:
        super().__init__(params, lr)


class Rateless(torch.optim.SGD):
    def __init__(self, params: Any, momentum: float = 0.1) -> None:
        super().__init__(params)


class Unset(torch.optim.SGD):
    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)


MINE = f"lib:{__name__}.Rule"


def enter(text: str) -> Any:
    return parse(text, "tiny", Schedule, {"steps": 10}, {}, None)


def plan(text: str) -> list[optim.Group]:
    entrant = enter(text)
    return optim.plan(ROLES, entrant.recipe, entrant.recipe_settings, torch.float32)


def refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        plan(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- Options -----------------------------------------------------------------------------------


def test_the_options_are_those_of_the_constructor_and_the_adapter() -> None:
    known = entrant_options(MINE, Schedule)
    found = {key: (o.type, o.default) for key, o in known.items()}
    assert found["lr"] == (float, 0.25) and found["weight_decay"] == (float, 0.0)
    assert found["betas"] == (numbers, (0.9, 0.95)) and str(found["betas"][1]) == "0.9/0.95"
    assert found["often"] == (int, 3) and found["nesterov"] == (bool, False)
    assert found["mode"] == (str, "a") and found["scope"] == (str, "matrices")
    assert found["steps"] == (int, 0)  # the schedule's
    assert not {"args", "kwargs", "params"} & set(found)
    assert known["lr"].range == Log(0.025, 2.5) and known["weight_decay"].range == Log(0.01, 1.0)
    assert optim.options(optim.find("lib:torch.optim.AdamW"))["weight_decay"].range == Log(
        0.001, 0.1
    )


def test_an_argument_named_like_an_option_of_the_schedule_keeps_its_default() -> None:
    entrant = enter(f"{MINE}:steps=20")
    assert entrant.settings["steps"] == 20 and "steps" not in entrant.recipe_settings
    assert "steps" not in plan(f"{MINE}:steps=20")[0].options


def test_what_is_typed_reaches_the_constructor() -> None:
    text = f"{MINE}:betas=0.5/0.75,weight_decay=0.1,often=4,clip=1.5,nesterov=true,mode=b,lr=2"
    first, *rest = plan(text)
    built = first.rule([torch.nn.Parameter(torch.eye(2))], **first.options)
    assert built.given == ((0.5, 0.75), 0.1, 4, 1.5, True, "b", None, 7)  # type: ignore[attr-defined]
    assert type(built.given[0]) is tuple  # type: ignore[attr-defined]
    assert built.param_groups[0]["lr"] == 2
    assert {row.role for row in first.params} == {"matrix"}
    assert {group.rule for group in rest} == {torch.optim.AdamW}


def test_everything_may_be_its_own_with_the_rates_of_the_rest() -> None:
    groups = plan("lib:torch.optim.NAdam:scope=all,lr=1,weight_decay=0.5,embed_lr=2,vector_lr=3")
    found = {g.params[0].role: (g.options["lr"], g.options["weight_decay"]) for g in groups}
    assert {group.rule for group in groups} == {torch.optim.NAdam}
    assert found == {"matrix": (1, 0.5), "embed": (2, 0), "head": (0.01, 0), "vector": (3, 0)}


def test_a_rate_without_a_default_has_the_adapter_s() -> None:
    assert enter(f"lib:{__name__}.Unset").settings["lr"] == library.DEFAULT_LR


@pytest.mark.parametrize(
    "text",
    [
        "lib:torch.optim.NAdam:betas=0.8/0.95,lr=0.0123456789,decoupled_weight_decay=True",
        f"{MINE}:clip=2,mode=c,scope=all",
        f"{MINE}:clip=2.5",
    ],
)
def test_a_row_s_spelling_reads_back_as_itself(text: str) -> None:
    entrant = enter(text)
    again = parse(entrant.canonical, "elsewhere", Schedule, {"steps": 3}, {}, None)
    assert (again.recipe, again.settings) == (entrant.recipe, entrant.settings)
    assert again.canonical == entrant.canonical
    assert options_of(entrant.canonical)["lr"] == str(entrant.settings["lr"])


def test_the_name_of_an_entrant_may_have_a_colon() -> None:
    assert split("muon:lr=1,steps=2") == ("muon", "lr=1,steps=2")
    assert split("lib:a.B:lr=1") == ("lib:a.B", "lr=1")
    assert split("lib:a.B") == ("lib:a.B", "")


def test_recipes_are_named_with_hyphens() -> None:
    assert "schedule-free" in optim.recipes() and "schedule_free" not in optim.recipes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lib:Adam", "must be a module and a class"),
        ("lib:torch.optim.AdamV", "no torch.optim.Optimizer called AdamV; try Adam"),
        ("lib:torch.optim.lr_scheduler.LambdaLR", "no torch.optim.Optimizer called LambdaLR"),
        ("lib:.torch.Adam", "must be a module and a class"),
        ("lib:torch.optimm.Adam", "there is no module torch.optimm; name one that torch has"),
        ("lib:nowhere_at_all.Adam", r"nowhere_at_all is not installed.*pip install nowhere_at_all"),
        ("lib:torch.optim.LBFGS", "it requires closure, which"),
        (f"lib:{__name__}.Needy", "it requires model, horizon, which an entrant cannot give"),
        (f"lib:{__name__}.Rateless", "no argument lr"),
        (f"{MINE}:betas=0.9/x", "betas=0.9/x: must be numbers"),
        (f"{MINE}:clip=x", "clip=x: must be number"),
        (f"{MINE}:often=1.5", "often=1.5: must be int"),
        (f"{MINE}:scope=some", "scope=some: must be matrices or all"),
        (f"{MINE}:version=0.1", "version=0.1: [0-9a-f]{12} is installed"),
        (f"{MINE}:modes=b", "unknown option 'modes': did you mean mode"),
        (
            "lib:torch.optim.Muon:scope=all",
            r"embed.weight \(embed, 2-D\) was given to Muon.*matrices",
        ),
    ],
)
def test_what_cannot_be_raced_is_refused_by_name(text: str, message: str) -> None:
    assert re.search(message, refusal(text)), refusal(text)


def test_a_file_that_cannot_be_imported_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_rule.py").write_text("def step(:")
    (tmp_path / "early_rule.py").write_text("raise ValueError('no horizon yet')")
    (tmp_path / "leaving_rule.py").write_text("import sys; sys.exit(0)")
    assert refusal("lib:leaving_rule.Rule").endswith("fails: SystemExit: 0; mend it")
    assert "importing broken_rule fails: SyntaxError: " in refusal("lib:broken_rule.Rule")
    assert refusal("lib:early_rule.Rule").endswith("fails: ValueError: no horizon yet; mend it")


def test_a_library_that_is_missing_or_another_version_is_answered_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("pytorch_optimizer")
    pins = library._pins()
    monkeypatch.setattr(library, "_pins", lambda: pins | {"pytorch_optimizer": "0.1"})
    message = refusal("lamb")
    assert f"pytorch_optimizer {pins['pytorch_optimizer']} is installed, but races use 0.1" in (
        message.replace("pytorch-optimizer", "pytorch_optimizer")
    )
    assert message.endswith("pip install -r requirements-optimizers.txt")

    def without(name: str, *rest: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(library, "import_module", without)
    for name, top in (("lamb", "pytorch_optimizer"), ("kron", "heavyball")):
        assert refusal(name) == (
            f"lib:{library_path(name)}: {top} is not installed; "
            "run: python -m pip install -r requirements-optimizers.txt"
        )


def library_path(name: str) -> str:
    return {"lamb": "pytorch_optimizer.Lamb", "kron": "heavyball.PSGDKron"}[name]


# ---- Heavyball's SOAP, the example of the command line -----------------------------------------

SOAP = "lib:heavyball.SOAP:lr=3e-3"
RATES = {"matrix": 3e-3, "embed": 0.3, "head": 0.01, "vector": 0.01}


class Stepped:
    """A small model on gradients that follow from the number of the step."""

    def __init__(self, text: str) -> None:
        pytest.importorskip("heavyball")
        self.engine = Engine(torch.device("cpu"), 0)
        self.model = GPT(CONFIG)
        self.engine.wrap(self.model)
        self.model.init_weights(0)
        entrant = enter(text)
        self.plan = optim.plan(
            self.engine.roles(), entrant.recipe, entrant.recipe_settings, torch.float32
        )
        self.engine.build(self.plan)
        self.optimizers = self.engine.optimizers

    def step(self, number: int) -> dict[str, Tensor]:
        """Take it; by how much each parameter moved."""
        generator = torch.Generator().manual_seed(number)
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for p in self.model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        self.engine.step()
        return {name: p.detach() - before[name] for name, p in self.model.named_parameters()}


@pytest.mark.parametrize("scope", ["matrices", "all"])
def test_heavyball_s_soap_has_the_matrices_or_everything(scope: str) -> None:
    problem = Stepped(f"{SOAP},scope={scope}")
    rules = {row.role: g.rule.__module__.split(".")[0] for g in problem.plan for row in g.params}
    rest = "torch" if scope == "matrices" else "heavyball"
    assert rules == {"matrix": "heavyball", "embed": rest, "head": rest, "vector": rest}
    assert {g.params[0].role: g.options["lr"] for g in problem.plan} == RATES
    decays = {g.params[0].role: g.options["weight_decay"] for g in problem.plan}
    assert decays == {"matrix": 0.01, "embed": 0, "head": 0, "vector": 0}
    assert len(problem.optimizers) == (2 if scope == "matrices" else 1)


@pytest.mark.parametrize("scope", ["matrices", "all"])
def test_heavyball_s_soap_starts_with_adam_s_step_in_its_eigenbasis(scope: str) -> None:
    """Its root mean square is lr; the gradient before it sets the basis alone."""
    problem = Stepped(f"{SOAP},scope={scope}")
    moves = [problem.step(0), problem.step(1)]
    for row in problem.engine.roles():
        of_soap = scope == "all" or row.role == "matrix"
        if of_soap:
            assert not moves[0][row.name].any(), row.name
        move = moves[1 if of_soap else 0][row.name]
        assert move.square().mean().sqrt().item() == pytest.approx(RATES[row.role], rel=5e-3)
        if of_soap and row.param.ndim == 2:  # not of its entries, as Adam's own would be
            assert move.abs().max() > 1.5 * RATES[row.role], row.name


@pytest.mark.parametrize("scope", ["matrices", "all"])
def test_heavyball_s_soap_goes_on_from_a_file_as_if_never_stopped(scope: str) -> None:
    problem, other = (Stepped(f"{SOAP},scope={scope}") for _ in range(2))
    for number in range(3):
        problem.step(number)
    file = io.BytesIO()
    torch.save([problem.model.state_dict(), *(o.state_dict() for o in problem.optimizers)], file)
    file.seek(0)
    weights, *states = torch.load(file, weights_only=False)
    other.model.load_state_dict(weights)
    for optimizer, state in zip(other.optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    for number in range(3, 9):  # beyond the next refresh of the bases
        for name, move in problem.step(number).items():
            assert move.any(), name
        other.step(number)
    for (name, p), q in zip(
        problem.model.named_parameters(), other.model.parameters(), strict=True
    ):
        assert torch.equal(p, q), name


# ---- Through the trainer -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_race_of_any_class_is_recorded_resumed_and_verified(
    micro_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "results"
    race = ["signum", "lib:torch.optim.NAdam:lr=0.01,betas=0.8/0.9", "--steps=4", *micro_flags]
    assert speedrun.main([*race, "--seeds=1"]) == 0
    assert speedrun.main([*race, "--seeds=2", "--resume"]) == 0
    runs = store.read_runs(root)
    runs.sort(key=lambda run: (run.seed, run.label))
    assert [(run.entrant.startswith("lib:torch.optim.NAdam:"), run.seed) for run in runs] == [
        (True, 0), (False, 0), (True, 1), (False, 1)
    ]  # fmt: skip
    assert "betas=0.8/0.9" in runs[0].entrant and "lib-torch.optim.NAdam" in runs[0].run
    assert len({run.race for run in runs}) == 1
    assert verify.problems(root) == []


@pytest.mark.slow
def test_a_class_is_tuned_like_a_recipe(micro_track: Track, micro_options: Options) -> None:
    name = "lib:torch.optim.NAdam"
    trainer = Trainer(micro_track, micro_options)
    study = Study(trainer, "tiny", name, Budget(1, Shard(), "search"))
    study.search()
    (row,) = store.read_trials(Path(micro_options.results))
    assert row.recipe == name
    assert study._find(Job("search", 0, study.points[0] | {"steps": study.steps}, 1000)) == row


def test_a_tuned_class_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    rates = {"lib:torch.optim.NAdam": 0.5, "schedule-free": 0.25}
    for text, lr in rates.items():
        tuned.write(tuned.Tuned("tiny", text, {"lr": lr}, steps=7, trials=(3,)), path)
    for text, lr in rates.items():
        assert parse(text, "tiny", Schedule, {}, {}, path).settings["lr"] == lr


class Averaged(torch.optim.SGD):
    """Trains as SGD does, and evaluates weights of zero."""

    def eval(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["trained"] = p.detach().clone()
                p.data.zero_()

    def train(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.copy_(1.001 * self.state[p].pop("trained"))  # a way back that rounds


def test_validation_sees_the_weights_to_evaluate_and_leaves_no_trace(
    micro_track: Track, micro_options: Options
) -> None:
    trainer = Trainer(micro_track, micro_options)
    plain = "lib:torch.optim.SGD:scope=all,lr=0.1,embed_lr=0.1"
    averaged = plain.replace("torch.optim.SGD", f"{__name__}.Averaged")

    def run(text: str) -> tuple[list[float], list[float], list[Tensor]]:
        points = trainer.run(speedrun.enter(text, "tiny", 8), seed=0).points
        weights = [p.detach().clone() for p in trainer.gpt.parameters()]
        return [p.train_loss for p in points], [p.val_loss for p in points], weights

    (train, _, weights), (train2, zeros, weights2) = run(plain), run(averaged)
    assert train == train2
    assert all(torch.equal(a, b) for a, b in zip(weights, weights2, strict=True))
    assert zeros == pytest.approx([6.931471806] * len(zeros))  # a uniform guess of 1024


def test_schedule_free_has_no_cooldown_and_is_validated_on_its_average(
    micro_track: Track, micro_options: Options
) -> None:
    pytest.importorskip("pytorch_optimizer")
    entrant = speedrun.enter("schedule-free", "tiny", 8)
    assert speedrun.schedule_of(entrant).cooldown == 0
    assert entrant_options("schedule-free", Schedule)["cooldown"].range is None
    trainer = Trainer(micro_track, micro_options)
    out = trainer.run(entrant, seed=0)
    assert isinstance(trainer.engine, Engine)
    (optimizer,) = trainer.engine.optimizers
    assert all(group["train_mode"] for group in optimizer.param_groups)
    trainer.engine.optimizers = []
    trained = trainer.validate(out)  # as if nothing had to be switched
    optimizer.eval()
    assert trainer.validate(out) == pytest.approx(out.points[-1].val_loss, abs=1e-5)
    assert abs(trained - out.points[-1].val_loss) > 1e-3
    trainer.engine.optimizers = [optimizer]


def test_a_rule_may_draw_numbers(
    micro_track: Track, micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "rule", lambda path: Noisy)
    trainer = Trainer(micro_track, micro_options)
    losses = [
        [p.val_loss for p in trainer.run(speedrun.enter("lib:noisy.Noisy", "tiny", 4), s).points]
        for s in (0, 0, 1)
    ]
    library.recipe_of.cache_clear()
    assert losses[0] == losses[1] != losses[2]


def test_a_recipe_may_be_one_group_of_everything(
    micro_track: Track, micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(roles: optim.Roles) -> list[optim.Group]:
        return [optim.Group(torch.optim.SGD, roles, lr=0.25)]

    monkeypatch.setitem(optim.recipes(), "whole", whole)
    entrant = speedrun.enter("whole", "tiny", 4)
    out = Trainer(micro_track, micro_options).run(entrant, seed=0)
    last = speedrun.schedule_of(entrant).factor(3)
    assert out.points[-1].lr == pytest.approx(0.25 * last)


# By their definition: Moonlight has one lr for all, MuonH keeps norms in place of a weight decay.
LACKS = {"moonlight": {"embed_lr", "head_lr", "vector_lr"}, "muonh": {"weight_decay"}}


@pytest.mark.parametrize("name", sorted(optim.recipes()))
def test_every_entrant_is_tuned_over_as_many_numbers(name: str) -> None:
    known = entrant_options(name, Schedule)
    ranges = {key: option.range for key, option in known.items() if option.range}
    lacks = LACKS.get(name, set())
    shared = {"lr", "weight_decay", "embed_lr", "head_lr", "vector_lr", "warmup", "cooldown"}
    assert shared - lacks - set(ranges) <= ({"cooldown"} if name == "schedule-free" else set())
    # Besides them it has the momenta of its own rule, one or two.
    assert set(ranges) - shared <= {"momentum", "beta1", "beta2", "beta3", "beta2_decay"}
    assert 1 <= len(set(ranges) - shared) <= 2
    for key, bounds in ranges.items():
        if isinstance(bounds, Log):
            assert bounds.low < known[key].default < bounds.high
        else:
            assert isinstance(bounds, Linear) and bounds.low <= known[key].default <= bounds.high


class Unsaid(torch.optim.SGD):
    """Arguments whose default is None."""

    def __init__(
        self,
        params: Any,
        lr: float = 0.25,
        betas: tuple[float, float] | None = None,
        rank: int | None = None,
        clip: "float | None" = None,
        fast: bool | None = None,
        mode: str | None = None,
        any=None,  # type: ignore[no-untyped-def]
        eps: tuple[float | None, float] = (None, 1e-3),
        odd: "Nowhere | None" = None,  # type: ignore[name-defined]  # noqa: F821
    ) -> None:
        super().__init__(params, lr)
        self.given = (betas, rank, clip, fast, mode, any, eps, odd)


class Handed(Unsaid):
    """Hands on what it is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


UNSAID = (None, None, None, None, None, None, (None, 0.001), None)
GIVEN = ((0.5, 0.75), 4, 1.5, True, "svd", 2, (1e-8, None), "x")
TEXT = "betas=0.5/0.75,rank=4,clip=1.5,fast=true,mode=svd,any=2,eps=1e-08/none,odd=x"


@pytest.mark.parametrize("rule", ["Unsaid", "Handed"])
@pytest.mark.parametrize(
    ("text", "given"),
    [("", UNSAID), (TEXT, GIVEN), ("betas=none,rank=None,clip=none,any=none", UNSAID)],
)
def test_an_option_whose_default_is_none_can_be_given(rule: str, text: str, given: Any) -> None:
    entrant = enter(f"lib:{__name__}.{rule}:{text}")
    first = optim.plan(ROLES, entrant.recipe, entrant.recipe_settings, torch.float32)[0]
    built = first.rule([torch.nn.Parameter(torch.eye(2))], **first.options)
    assert built.given == given  # type: ignore[attr-defined]
    again = parse(entrant.canonical, "elsewhere", Schedule, {"steps": 3}, {}, None)
    assert again.settings == entrant.settings and again.canonical == entrant.canonical


@pytest.mark.parametrize(
    ("text", "kind"),
    [("rank=1.5", "int or none"), ("fast=2", "switch or none"), ("betas=a", "numbers or none")],
)
def test_an_option_whose_default_is_none_has_a_type(text: str, kind: str) -> None:
    assert f"{text}: must be {kind}" in refusal(f"lib:{__name__}.Unsaid:{text}")


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("2", 2),
        ("0.5", 0.5),
        ("1/2", (1, 2)),
        ("false", False),
        ("a/b", "a/b"),
        ("nonesuch", "nonesuch"),
    ],
)
def test_without_an_annotation_a_value_is_what_it_looks_like(text: str, given: Any) -> None:
    assert enter(f"lib:{__name__}.Unsaid:any={text}").settings["any"] == given


class Marked(torch.optim.SGD):
    """Muon and AdamW in one, told apart by a key."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        params = list(params)
        if any(group["use_muon"] is not True for group in params):
            raise KeyError("use_muon")
        super().__init__(params, lr)


def test_a_class_that_asks_for_a_key_in_its_groups_has_it() -> None:
    first = plan(f"lib:{__name__}.Marked")[0]
    params = [torch.nn.Parameter(torch.eye(2)) for _ in range(2)]
    built = first.rule(params, **first.options)
    assert first.rule.__name__ == "Marked"
    assert [p for group in built.param_groups for p in group["params"]] == params
