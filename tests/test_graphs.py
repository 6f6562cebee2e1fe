"""CUDA graphs: replayed passes train as launched ones do. On a CPU, that they are refused."""

import dataclasses

import pytest
import torch

import engines
import optim
import speedrun
from layers.config import GPTConfig
from model import GPT
from optim.entrants import parse

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_gradients_that_are_kept_are_cleared_in_place() -> None:
    gpt = GPT(GPTConfig(vocab_size=37, block_size=16, n_layer=1, n_head=2, n_embd=32))
    engine = engines.make("single", torch.device("cpu"))
    engine.keep_grads = True
    model = engine.wrap(gpt)
    gpt.init_weights(0)
    engine.build(optim.plan(engine.roles(), "adamw", {}, torch.float32))
    tokens = torch.arange(34).view(2, 17)

    def gradients() -> list[torch.Tensor]:
        engine.backward(model(tokens[:, :-1], tokens[:, 1:]), last=True)
        return [p.grad for p in gpt.parameters() if p.grad is not None]

    first = gradients()
    norm = engine.grad_norm()
    engine.load(engine.save())
    again = gradients()
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert engine.grad_norm() == norm > 0
    engine.step()
    assert engine.grad_norm() == 0
    assert all(p.grad is g for p, g in zip(gpt.parameters(), first, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="they work there")
def test_graphs_are_refused_where_there_is_no_gpu(
    micro_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert speedrun.main(["adamw", "--cuda-graphs", *micro_flags]) == 2
    assert "--cuda-graphs: is for one process on a GPU" in capsys.readouterr().err


@needs_gpu
@pytest.mark.parametrize("microbatch", [0, 2])
def test_replayed_passes_train_as_launched_ones(
    micro_track: speedrun.Track, micro_options: speedrun.Options, microbatch: int
) -> None:
    entrant = parse("muon", "tiny", speedrun.Schedule, {"steps": 12}, {"steps": 12}, None)
    curves = []
    for graphs in (False, True):
        options = dataclasses.replace(micro_options, cuda_graphs=graphs, microbatch=microbatch)
        trainer = speedrun.Trainer(micro_track, options)
        curves.append([[p.val_loss for p in trainer.run(entrant, seed).points] for seed in (0, 1)])
    for launched, replayed in zip(*curves, strict=True):
        assert replayed == pytest.approx(launched, rel=1e-4)
