"""What the parts share: the device, the precision, the sizes, and random tokens as a data set.

On a GPU the sizes are the track's (`gpt2`). On a CPU they are toy sizes that take seconds, so
that this program can be tested anywhere.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import speedrun
from bench import newton_schulz
from data import bpe, manifest, shards
from host.paths import RESULTS
from model import GPT
from optim.entrants import Entrant
from planner.memory.activations import microbatch
from planner.race import dry_run
from runtime import machine

ENTRANTS = ("adamw", "muon")
TRACK = "gpt2"  # its model, settings and step are measured


@dataclass(frozen=True)
class Sizes:
    """How large each part is."""

    name: str  # full or toy
    model: str
    width: int | None  # of that model; None: its own
    seq_len: int  # tokens
    vocab_size: int  # of the random tokens
    step_seqs: int  # sequences of a timed step
    check_seqs: int  # of a step of runs that are compared
    microbatch: int  # sequences, at most
    loss_chunk: int  # tokens
    timed_steps: int  # of a compiled run
    eager_steps: int  # of an eager run
    small_seqs: int  # sequences of a step of the model `tiny`
    small_len: int  # tokens of such a sequence
    small_steps: int  # of a timed run of it
    check_steps: int  # of runs that are compared
    race_seqs: int  # sequences of a step of the race
    race_val_tokens: int  # at most
    probe_steps: int  # of the short run that predicts the time of the race
    least_steps: int  # of the race; with time for less it is skipped
    most_steps: int  # of the race
    matmul_n: int  # side of the matrices of the peak
    rounds: int  # of timing alternatives in turn
    matrices: tuple[tuple[int, int, int], ...]  # (K m n), batches for Newton-Schulz


FULL = Sizes(
    name="full",
    model="gpt2",
    width=None,
    seq_len=1024,
    vocab_size=50257,
    step_seqs=512,
    check_seqs=64,
    microbatch=64,
    loss_chunk=8192,
    timed_steps=6,
    eager_steps=2,
    small_seqs=16,
    small_len=128,
    small_steps=50,
    check_steps=6,
    race_seqs=128,
    race_val_tokens=1 << 20,
    probe_steps=8,
    least_steps=20,
    most_steps=3000,
    matmul_n=8192,
    rounds=15,
    matrices=newton_schulz.BATCHES["gpt2"],
)
TOY = Sizes(
    name="toy",
    model="tiny",
    width=32,
    seq_len=32,
    vocab_size=500,
    step_seqs=8,
    check_seqs=4,
    microbatch=4,
    loss_chunk=64,
    timed_steps=3,
    eager_steps=2,
    small_seqs=4,
    small_len=16,
    small_steps=3,
    check_steps=3,
    race_seqs=4,
    race_val_tokens=512,
    probe_steps=2,
    least_steps=2,
    most_steps=6,
    matmul_n=256,
    rounds=2,
    matrices=((2, 32, 32), (2, 32, 64)),
)


@dataclass(frozen=True)
class Config:
    """Where and on what the parts run."""

    out: Path  # folder of the results
    scratch: Path  # folder of files that are deleted at the end
    device: torch.device
    data: str | None  # data set of the race, for data.open_dataset; None: no race
    compile: bool

    @property
    def sizes(self) -> Sizes:
        return FULL if self.device.type == "cuda" else TOY

    @property
    def size(self) -> str:
        return self.sizes.name

    @property
    def dtype(self) -> torch.dtype:
        """The precision of training and of what is timed: bfloat16 on a GPU that has its units."""
        has_units = self.device.type == "cuda" and machine.bfloat16_units(self.device)
        return torch.bfloat16 if has_units else torch.float32

    @cached_property
    def random_tokens(self) -> Path:
        """The folder of a data set of random tokens, made once: eight training steps, and one
        step of validation. Token k has a probability of about 1 / k, as words have."""
        folder, sizes = self.scratch / "random_tokens", self.sizes
        if (folder / manifest.MANIFEST).exists():
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        rng, files = np.random.default_rng(0), []
        step = sizes.step_seqs * sizes.seq_len
        for name, count in (("random_train_000000.bin", 8 * step), ("random_val_000000.bin", step)):
            ranks = np.exp(rng.random(count + 1) * np.log(sizes.vocab_size))
            tokens = np.minimum(ranks.astype(np.uint16), sizes.vocab_size - 1)
            shards.write_shard(folder / name, tokens)
            files.append(manifest.File(name, len(tokens), manifest.sha256(folder / name)))
        words = [bytes([n]) for n in range(256)]
        words += [n.to_bytes(3, "big") for n in range(256, sizes.vocab_size - 1)]
        text = bpe.dump(words)
        (folder / "random.tiktoken").write_bytes(text)
        files.append(
            manifest.File("random.tiktoken", len(words) + 1, hashlib.sha256(text).hexdigest())
        )
        manifest.write(folder, manifest.Manifest(sizes.vocab_size, tuple(files)))
        return folder

    def track(self, seqs: int) -> speedrun.Track:
        """The track with random tokens, `seqs` sequences a step, and a validation after each."""
        sizes = self.sizes
        return replace(
            speedrun.TRACKS[TRACK],
            name="custom",
            dataset=f"text:{self.random_tokens}",
            model=sizes.model,
            width=sizes.width,
            seq_len=sizes.seq_len,
            batch_tokens=seqs * sizes.seq_len,
            val_tokens=self.microbatch * sizes.seq_len,
            val_every=1,
            val_every_late=1,
            shuffle=True,
        )

    def small_track(self) -> speedrun.Track:
        """A track with the model `tiny`, which is launch-bound: a kernel runs for less time than
        its launch takes."""
        sizes = self.sizes
        tokens = sizes.small_seqs * sizes.small_len
        return replace(
            self.track(sizes.check_seqs), model="tiny", width=None,
            seq_len=sizes.small_len, batch_tokens=tokens, val_tokens=tokens,
        )  # fmt: skip

    def entrant(self, name: str, steps: int) -> Entrant:
        """An entrant with the settings published for the track, but with this horizon."""
        return speedrun.enter(name, TRACK, steps)

    def meta_model(self) -> GPT:
        """The model on the meta device, without storage."""
        config = replace(speedrun.TRACKS[TRACK], model=self.sizes.model, width=self.sizes.width,
                         seq_len=self.sizes.seq_len).config(self.sizes.vocab_size)  # fmt: skip
        with torch.device("meta"):
            return GPT(config, self.sizes.loss_chunk)

    @cached_property
    def microbatch(self) -> int:
        """Sequences of a pass: as many as fit the memory by the planner's estimate, up to the
        sizes' own."""
        sizes = self.sizes
        if self.device.type != "cuda":
            return sizes.microbatch
        gpt = self.meta_model()
        plan = dry_run.measure(gpt, self.entrant("adamw", 1), validations=0)
        held = plan.param_bytes + plan.grad_bytes + plan.state_bytes
        memory = torch.cuda.get_device_properties(self.device).total_memory
        shape = dry_run.shape_of(gpt, sizes.seq_len, sizes.loss_chunk)
        return min(sizes.microbatch, microbatch(shape, sizes.microbatch, held, memory))

    def options(self, compiled: bool = False, results: Path = RESULTS) -> speedrun.Options:
        """How the trainer runs. Eager execution keeps twice the activations, so it gets half the
        microbatch."""
        return speedrun.Options(
            compile=compiled,
            results=results,
            microbatch=self.microbatch if compiled else max(1, self.microbatch // 2),
            loss_chunk=self.sizes.loss_chunk,
            threads=1 if self.device.type == "cpu" else 0,
            dtype=str(self.dtype).removeprefix("torch."),
        )
