"""Checkpoints of a heat: a race that is killed goes on from the newest one, within its runs.

    results/checkpoints/<race>/<number>/   the tensors and .metadata of torch.distributed.checkpoint
    results/checkpoints/<race>/<number>/manifest.txt   the size and SHA-256 of each of these files

A checkpoint is written in a folder with a temporary name, its files are synced, and then the folder
is renamed. The last two are kept until the runs of the heat are recorded. All processes write their
own tensors, so several machines need one results folder that all of them see.

What is read was written by this program, or else is refused. Sizes and hashes are checked first;
a damaged checkpoint is named, and the one before it is used. Only tensors are stored, JSON as a
tensor of bytes; they are read with weights_only=True, and .metadata by an unpickler that knows only
torch's own classes for it. Nothing in a checkpoint is executed.
"""

import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

from engines import Engine
from tracking.files import sync_folder

MANIFEST, KEPT = "manifest.txt", 2
MAKING = ".making"  # the name of the folder of an unfinished checkpoint
NAME = re.compile(r"\d{6}")
# What .metadata consists of.
CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(n for n, v in vars(torch).items() if isinstance(v, torch.dtype))},
}  # fmt: skip


class DamagedError(Exception):
    """A checkpoint that is not what was written; says why."""


# ---- Writing -----------------------------------------------------------------------------------


def write(folder: Path, tensors: Mapping[str, Tensor], about: Any, engine: Engine) -> bool:
    """Write one more checkpoint of a race, and remove all but the last two; whether it is there.

    Each process calls it, with what it holds. tensors: by name; those of a name are the same on all
    processes. about: of this process, as JSON. What the disk refuses is said in a line.
    """
    making, first = folder / MAKING, engine.rank == 0
    failure = ""
    if first:
        try:
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)
        except OSError as error:
            failure = _told(error)
    if not _any(engine, failure):
        text = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
        failure = _save({**tensors, f"rank{engine.rank}/about": text}, making, engine)
    if first and not failure:
        try:
            _finish(making, engine.world_size)
        except OSError as error:
            failure = _told(error)
    if first and failure:
        shutil.rmtree(making, ignore_errors=True)
        print(
            f"speedrun.py: no checkpoint in {folder}: {failure}; the race goes on",
            file=sys.stderr,
            flush=True,
        )
    return not _any(engine, failure)


def _save(tensors: Mapping[str, Tensor], folder: Path, engine: Engine) -> str:
    """Write the tensors of all processes to a folder; why that failed, or empty."""
    writer = dcp.FileSystemWriter(str(folder), sync_files=True, overwrite=True)
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no process group
            dcp.save(
                dict(tensors),
                storage_writer=writer,
                planner=planner,
                no_dist=engine.world_size == 1,
            )
    except dcp.api.CheckpointException as error:
        failed = [each for each, _ in error.failures.values()]
        for each in failed:
            if not isinstance(each, OSError | RuntimeError):
                raise
        return _told(failed[0])
    return ""


def _finish(making: Path, world_size: int) -> None:
    """Write the manifest, give the folder its name, and remove older ones. Raises OSError."""
    files = sorted(path for path in making.iterdir() if path.name != MANIFEST)
    held = {path.name: [path.stat().st_size, _digest(path)] for path in files}
    text = json.dumps({"world_size": world_size, "files": held})
    with open(making / MANIFEST, "w", encoding="utf-8") as file:
        file.write(_sealed(text))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(making)
    folder, names = making.parent, _names(making.parent)
    os.rename(making, folder / f"{int(names[-1]) + 1 if names else 0:06d}")
    sync_folder(folder)
    for name in names[: 1 - KEPT]:
        shutil.rmtree(folder / name)


def _sealed(text: str) -> str:
    """A manifest: its own hash in the first line."""
    return f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n"


def _names(folder: Path) -> list[str]:
    found = os.listdir(folder) if folder.is_dir() else []
    return sorted(name for name in found if NAME.fullmatch(name))


def _any(engine: Engine, failure: str) -> bool:
    """Whether any process has failed; each learns it."""
    return bool(engine.all_reduce_max(torch.tensor(float(bool(failure)))).item())


def _told(error: BaseException) -> str:
    """What a failed write says, in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(folder: Path) -> None:
    """Remove the checkpoints of a race: the runs of its heat are recorded."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # other races have some
        folder.parent.rmdir()


# ---- Reading -----------------------------------------------------------------------------------


def newest(folder: Path) -> str:
    """The name of the newest checkpoint that is as it was written; empty: none is.

    Names each damaged one in a line.
    """
    for name in reversed(_names(folder)):
        try:
            _check(folder / name)
            Saved(folder / name)
            return name
        except (DamagedError, OSError) as error:
            print(
                f"speedrun.py: checkpoint {folder / name} is damaged: {error}; it is not used",
                file=sys.stderr,
                flush=True,
            )
    return ""


def _check(folder: Path) -> int:
    """The number of processes that wrote a checkpoint. Raises DamagedError, OSError."""
    content = (folder / MANIFEST).read_text("utf-8", "replace")
    text = content.partition("\n")[2].removesuffix("\n")
    if content != _sealed(text):
        raise DamagedError(f"{MANIFEST} has another hash than it says")
    manifest = json.loads(text)
    for name, (size, digest) in manifest["files"].items():
        path = folder / Path(name).name
        if not path.exists():
            raise DamagedError(f"{name} is missing")
        if path.stat().st_size != size:
            raise DamagedError(f"{name} has {path.stat().st_size} bytes, not {size}")
        if _digest(path) != digest:
            raise DamagedError(f"{name} has another hash than when it was written")
    return int(manifest["world_size"])


class _Unpickler(pickle.Unpickler):
    """Knows the classes of .metadata and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pathlib":  # of the folder's name when it was written
            return os.path.join
        if name not in CLASSES.get(module, ()):
            raise DamagedError(f".metadata names {module}.{name}")
        return super().find_class(module, name)


class _Files(dcp.FileSystemReader):
    """The files of a checkpoint, whose metadata is read once, and only as far as it is known."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        with open(folder / ".metadata", "rb") as file:
            self.metadata: Metadata = _Unpickler(file).load()

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        return self.metadata


class Saved:
    """A checkpoint that has been found sound by `newest`."""

    def __init__(self, folder: Path) -> None:
        """Raises DamagedError."""
        self._files = _Files(folder)
        self.world_size = 0  # of the processes that wrote it
        names = self._files.metadata.state_dict_metadata
        self.abouts: list[Any] = []  # of each process
        while (name := f"rank{self.world_size}/about") in names:
            self.abouts.append(json.loads(self.read(name).numpy().tobytes()))
            self.world_size += 1

    def read(self, name: str) -> Tensor:
        """One of the tensors, on the CPU."""
        entry: Any = self._files.metadata.state_dict_metadata[name]
        tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no process group
            dcp.load(
                {name: tensor},
                storage_reader=self._files,
                planner=dcp.DefaultLoadPlanner(
                    flatten_state_dict=False, flatten_sharded_tensors=False
                ),
                no_dist=True,
            )
        return tensor

    def reader(self, prefix: str) -> Callable[[str], Tensor]:
        """`read` for names that all begin with `prefix`."""
        return lambda name: self.read(prefix + name)
