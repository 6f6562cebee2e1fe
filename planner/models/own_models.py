"""The models of this project's tracks as lists of weights, counted on the real model.

    python -m planner model --from-model tiny

The model is built on the meta device, where tensors have no storage. The names of weights are those
of its parameters, without the number of the layer.
"""

import difflib
import re
from collections import Counter

import torch

from errors import UserError
from model import GPT, RoleRow
from planner.models.weights import Model, Weight
from planner.race import corpora
from speedrun import TRACKS, Track

_LAYER = re.compile(r"^blocks\.\d+\.")


def from_track(name: str) -> Model:
    """The model of a track. Raises UserError for an unknown one."""
    if name not in TRACKS:
        near = difflib.get_close_matches(name, TRACKS, 1)
        hint = f"did you mean {near[0]}?" if near else "run with --from-model tiny"
        raise UserError(f"--from-model {name}: must be one of {', '.join(TRACKS)}; {hint}")
    return of_gpt(TRACKS[name], on_meta(TRACKS[name]))


def on_meta(track: Track) -> GPT:
    """The model of a track, on tensors without storage."""
    with torch.device("meta"):
        return GPT(track.config(corpora.corpus(track.dataset).vocab_size))


def of_gpt(track: Track, gpt: GPT) -> Model:
    """The model of a track, counted on `gpt`."""
    config = gpt.config
    return Model(
        name=track.name,
        title=f"the model of track {track.name}",
        weights=_weights(gpt),
        n_layer=config.n_layer,
        n_embd=config.n_embd,
        seq_len=track.seq_len,
        n_head=config.n_head,
        qk_size=config.head_size,
        v_size=config.head_size,
        attended=track.seq_len / 2,
        batch_tokens=track.batch_tokens,
        train_tokens=track.search_steps * track.batch_tokens,
        source="layers/config.py, and the track in speedrun.py",
        assumed=("The training is as long as a trial of the tuner on this track.",),
    )


def _weights(gpt: GPT) -> tuple[Weight, ...]:
    rows = {_LAYER.sub("", row.name): row for row in gpt.roles()}
    counts = Counter(_LAYER.sub("", row.name) for row in gpt.roles())
    return tuple(_weight(name, row, counts[name]) for name, row in rows.items())


def _weight(name: str, row: RoleRow, count: int) -> Weight:
    height, *rest = row.param.shape
    role: str = row.role
    if role == "matrix":
        role = "mlp" if name.startswith("mlp.") else "attention"
    return Weight(
        name=name,
        role=role,
        rows=height,
        cols=rest[0] if rest else 1,
        count=count,
        parts=height // row.head_rows if row.head_rows else 1,
        splits=row.splits if len(row.splits) > 1 else (),
        token_share=1 / height if role == "embed" else 1.0,
        low=row.param.dtype == torch.bfloat16,
        source="GPT.roles()",
    )
