"""The data sets that a race can be planned on before they are prepared: shards, tokens, disk."""

from data import corpus as embedded
from data import fineweb, frozen
from data.shards import Sizes as Corpus
from errors import UserError

CORPORA = {"sotu": embedded.SIZES, "fineweb": fineweb.SIZES}


def corpus(name: str) -> Corpus:
    """The sizes of the data set `name`. Raises UserError if they are not known."""
    if frozen(name) not in CORPORA:
        raise UserError(
            f"data set {name!r}: a race can be planned on {', '.join(CORPORA)} alone; "
            "choose a track that trains on one of them"
        )
    return CORPORA[frozen(name)]
