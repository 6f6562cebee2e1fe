"""A small GPT trained by DeepSpeed's Muon: from config.json, or with an optimizer of your own.

    run="torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=2"
    $run examples/deepspeed/train.py            # config.json
    $run examples/deepspeed/train.py --client   # the better way

From the config, the name of a parameter decides: Muon takes all with two dimensions but those with
`embed` or `lm_head` in their name. With --client you say which, and it works at every ZeRO stage.
Keep gradient_clipping at 0: it would clip what Muon has orthogonalised. Set each group's lr
yourself: DeepSpeed's schedulers give all groups one lr. The audit tells whether Muon has its own.
On a machine without a GPU, set DS_ACCELERATOR=cpu and TORCHDYNAMO_DISABLE=1: nothing is compiled.
"""

import json
import sys
from pathlib import Path

import deepspeed
import torch
import torch.nn.functional as F
from deepspeed.accelerator import get_accelerator
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from studies.audit import audit, notes, show, verdict

VOCAB, WIDTH, LENGTH, STEPS = 64, 64, 32, 30


class SmallGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.embed_position = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens, targets):  # (B T) each
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, device=tokens.device)
        x = self.embed(tokens) + self.embed_position.weight
        logits = self.lm_head(self.blocks(x, mask=mask, is_causal=True))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def client_optimizer(model):
    """Muon for the matrices of the blocks, Adam for all else; a group and an lr each."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    for p in model.parameters():
        p.use_muon = any(p is matrix for matrix in matrices)  # where ZeRO looks for it
    others = [p for p in model.parameters() if not p.use_muon]
    muon = {"params": matrices, "use_muon": True, "lr": 0.02, "momentum": 0.95}
    adam = {"params": others, "use_muon": False, "lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-10}
    return MuonWithAuxAdam([muon, adam])


def main(arguments, say=print):
    """Train, and return the losses of the first and of the last step, on this process's data."""
    config = json.loads((Path(__file__).parent / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model, optimizer = SmallGPT(), None
    if "--client" in arguments:
        del config["optimizer"]
        optimizer = client_optimizer(model)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    rows = audit(model, engine)
    say(show(rows), *notes(engine), verdict(rows) or "Muon has its matrices", sep="\n")
    first_lrs = [group["lr"] for group in engine.optimizer.param_groups]
    device, losses = get_accelerator().current_device_name(), []
    torch.manual_seed(torch.distributed.get_rank())
    for step in range(STEPS):
        for group, lr in zip(engine.optimizer.param_groups, first_lrs, strict=True):
            group["lr"] = lr * (1 - step / STEPS)
        start, stride = torch.randint(VOCAB, (8, 1)), torch.randint(1, 4, (8, 1))
        tokens = ((start + stride * torch.arange(LENGTH + 1)) % VOCAB).to(device)
        loss = engine(tokens[:, :-1], tokens[:, 1:])
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    say(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {STEPS} steps")
    engine.destroy()
    return losses[0], losses[-1]


if __name__ == "__main__":
    # Messages through shared memory, which it would compile for a minute; for CPUs alone.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()
    first = torch.distributed.get_rank() == 0
    main(sys.argv[1:], say=print if first else lambda *_, **__: None)
    torch.distributed.destroy_process_group()
