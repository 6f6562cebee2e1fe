"""Other people's shells and machines: paths, streams, locales, interpreters, hidden GPUs, pip."""

import argparse
import ast
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import engines
import speedrun
from data import open_dataset
from engines import _watch
from errors import UserError
from host import entry, interpreter, paths
from runtime import machine

ROOT = Path(__file__).parents[1]
SOURCES = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0][0] != "."]


def run(command: Callable[[argparse.Namespace], int | None]) -> int:
    return entry.run(entry.parser("test", None), [], command)


# ---- Paths -------------------------------------------------------------------------------------


def test_a_typed_path_knows_the_home_folder_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINE", str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    assert paths.typed("~/x") == tmp_path / "x"
    assert paths.typed("$MINE/x") == paths.typed("${MINE}/x") == tmp_path / "mine" / "x"
    assert paths.typed("x") == Path("x")  # of the working directory
    for name in ("~", "$MINE", "a$b.txt"):
        (tmp_path / name).touch()
        assert paths.typed(name) == Path(name), "a file that is there is meant"


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 5000, "~nobody-of-this-name/x", "$NO_SUCH/x"])
def test_what_cannot_be_a_path_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(UserError, match="name a file or a folder|name another path") as refused:
        paths.typed(text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_every_option_that_is_a_path_is_read_by_one_function() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                kinds = [ast.unparse(word.value) for word in node.keywords if word.arg == "type"]
                found += [f"{path.name}:{node.lineno}" for kind in kinds if kind == "Path"]
    # data/text.py is read by its own functions.
    assert [each for each in found if not each.startswith("text.py")] == []


def test_a_data_set_in_the_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"prepared in {tmp_path / 'mine'}"):
        open_dataset("text:~/mine")


def test_from_another_folder_the_projects_data_is_found_and_nothing_is_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_dataset("sotu").vocab_size == 1024
    assert speedrun.Options().results == ROOT / "results"
    monkeypatch.setattr(speedrun, "Trainer", lambda *_: pytest.fail("it began"))
    assert speedrun.main(["adamw", "--results=mine", "--track=nowhere"]) == 2
    assert speedrun.main(["nonsense", "--results=mine"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_message_names_commands_that_work_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"no shards in {ROOT / 'data' / 'tiny'}; run: make data, or run: python -m data.corpus"
    monkeypatch.chdir(ROOT)
    assert paths.from_here(said) == (
        "no shards in data/tiny; run: make data, or run: python -m data.corpus"
    )
    monkeypatch.chdir(tmp_path)
    assert paths.from_here(said) == (
        f"no shards in {ROOT / 'data' / 'tiny'}; run: make -C {ROOT} data, "
        f"or run: PYTHONPATH={ROOT} python -m data.corpus"
    )
    assert paths.from_here("try python speedrun.py muon") == f"try python {ROOT}/speedrun.py muon"


# ---- What is printed ---------------------------------------------------------------------------


def test_a_terminal_without_a_character_is_shown_another(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    assert run(lambda _: print("70 ± 3, 1.3×, café, \udcff")) == 0
    assert shown.getvalue() == b"70 +- 3, 1.3x, caf\\xe9, \\udcff\n"


def command_with(stdout: int, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tracking.tuned", "tiny"], stdout=stdout, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, cwd=ROOT, env=os.environ | environment, text=True, timeout=60,
    )  # fmt: skip


def test_a_reader_that_has_gone_away_ends_a_command_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    done = command_with(write)
    os.close(write)
    assert (done.returncode, done.stderr) == (entry.NO_READER, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_is_full_is_told_in_a_line() -> None:
    with open("/dev/full", "wb") as full:
        done = command_with(full.fileno())
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("tracking.tuned: cannot write the output: No space left")


def test_closed_streams_are_no_fault() -> None:
    command = f"cd {ROOT} && {sys.executable} -m tracking.tuned tiny <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], timeout=60).returncode == 0


# Without docstrings and assertions, as under `python -OO`; of this project alone, since to compile
# the libraries anew takes longer than all else.
HELP = """
import importlib, os, sys
from importlib.machinery import FileFinder, SourceFileLoader

class Bare(SourceFileLoader):
    def get_code(self, name):
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True, optimize=2)

def ours(path):
    if not path.startswith(os.getcwd()) or "site-packages" in path:
        raise ImportError
    return FileFinder(path, (Bare, [".py"]))

sys.path_hooks.insert(0, ours)
sys.path_importer_cache.clear()
for name in sys.argv[1:]:
    try:
        importlib.import_module(name).main(["--help"])
    except SystemExit as ended:
        if ended.code:
            raise
assert sys.modules["speedrun"].__doc__ is None
"""
COMMANDS = [
    "analysis.charts._make", "analysis.power", "analysis.report", "bench.data",
    "bench.gpu_check.__main__", "data.corpus", "data.fineweb", "data.gpt2", "data.text",
    "leaderboard.__main__", "leaderboard.changed", "leaderboard.pages", "leaderboard.public_logs",
    "leaderboard.published", "leaderboard.rerun", "leaderboard.seal", "leaderboard.submit",
    "leaderboard.verify", "planner.__main__", "runtime.machine", "speedrun", "studies.scale",
    "studies.ends", "studies.replay", "studies.tune", "tracking.tuned",
]  # fmt: skip


@pytest.mark.slow
def test_every_command_explains_itself_in_a_hostile_environment() -> None:
    hostile = {
        "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii",
        "PYTHONHASHSEED": "7", "COLUMNS": "1", "TERM": "dumb", "TZ": "XYZ+9",
        "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", HELP, *COMMANDS], cwd=ROOT, env=os.environ | hostile,
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.count(b"usage: ") == len(COMMANDS)


def test_no_file_is_read_or_written_in_the_users_encoding() -> None:
    found = []
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == "tests":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            given = [ast.unparse(word) for word in node.args]
            unsaid = "encoding" not in words
            if name == "read_text" and unsaid and not given:
                found.append((path.name, node.lineno))
            if name == "write_text" and unsaid and len(given) < 2:
                found.append((path.name, node.lineno))
            if words.get("text") == "True" and unsaid:
                found.append((path.name, node.lineno))
            modes = [word for word in given if word.strip("'\"") in ("r", "w", "a", "x", "r+")]
            if name == "open" and unsaid and modes and modes != ["'r+'"]:
                found.append((path.name, node.lineno))
    assert found == []


# ---- Interpreters, make and pip ----------------------------------------------------------------


def test_an_old_python_is_told_which_one_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    with pytest.raises(SystemExit) as ended:
        interpreter.check_version()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert "Python 3.10: needs 3.11 or newer" in said and "PYTHON=python3.12" in said


def test_an_old_python_can_read_what_it_is_told_by() -> None:
    for name in ("host/interpreter.py", "host/__init__.py"):
        tree = ast.parse((ROOT / name).read_text("utf-8"), feature_version=(3, 7))
        new = (ast.JoinedStr, ast.AnnAssign)
        assert not any(isinstance(node, new) for node in ast.walk(tree)), name
    commands = ("analysis", "bench", "data", "leaderboard", "planner", "runtime", "studies")
    for name in ("speedrun.py", *(f"{package}/__init__.py" for package in commands)):
        tree = ast.parse((ROOT / name).read_text("utf-8"), feature_version=(3, 7))
        first = next(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
        assert ast.unparse(first) == "import host.interpreter", name


def test_a_python_without_the_packages_is_told_how_to_get_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = ModuleNotFoundError("No module named 'torch'", name="torch")
    with pytest.raises(SystemExit) as ended:
        interpreter.say_missing(type(error), error, None)
    assert ended.value.code == 2
    assert "No module named 'torch'; run: make setup" in capsys.readouterr().err


def make(folder: Path, *words: str, gpus: str | None = None, **environment: str) -> str:
    """What make would do on a machine whose nvidia-smi lists eight GPUs, of which torch uses
    `gpus`; None: those that torch really uses."""
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text("#!/bin/sh\nfor i in 0 1 2 3 4 5 6 7; do echo GPU $i; done")
    fake = [f"PY={folder / 'python'}"] if gpus else []
    (folder / "python").write_text(f"#!/bin/sh\necho {gpus}\n")
    for name in ("nvidia-smi", "python"):
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"} | environment
    kept = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "TRACK", "NPROC")}
    command = ["make", "--no-print-directory", "-n", *words, *fake]
    done = subprocess.run(
        command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ("0", ["data.corpus", "speedrun.py adamw muon --track tiny"]),
        ("1", ["data.fineweb", "/python speedrun.py adamw muon --track gpt2"]),
        ("2", ["data.fineweb", "--local-addr=127.0.0.1 --nproc_per_node=2", "--track gpt2"]),
    ],
)
def test_make_takes_the_track_and_the_processes_from_what_torch_sees(
    tmp_path: Path, gpus: str, expected: list[str]
) -> None:
    for environment in ({}, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {"CUDA_VISIBLE_DEVICES": ""}):
        said = make(tmp_path / "bin", "speedrun", gpus=gpus, **environment)
        assert all(word in said for word in expected), said
        assert ("data.fineweb" in said) == (gpus != "0")


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["-1", ""])
def test_a_hidden_gpu_is_none(tmp_path: Path, hidden: str) -> None:
    said = make(tmp_path / "bin", "speedrun", CUDA_VISIBLE_DEVICES=hidden)
    assert "--track tiny" in said and "fineweb" not in said and "torch.distributed" not in said


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (
            "0",
            "speedrun.py adamw muon soap sgd --track tiny --seeds 2 --log-spectra --val-every 5 -x",
        ),
        ("1", "speedrun.py adamw muon soap sgd --track gpt2 --seeds 2 --log-spectra -x"),
    ],
)
def test_make_why_measures_spectra_at_more_validations_where_tiny_has_few(
    tmp_path: Path, gpus: str, expected: str
) -> None:
    said = " ".join(make(tmp_path / "bin", "why", "SEEDS=2", "ARGS=-x", gpus=gpus).split())
    assert expected in said
    assert said.index("analysis.charts") < said.index("analysis.why") < said.index("docs/why.md")
    others = make(tmp_path / "bin", "speedrun", gpus=gpus, SPECTRA="--of-a-shell")
    assert "--log-spectra" not in others and "--of-a-shell" not in others


def test_a_track_for_gpus_without_one_is_obeyed_and_announced(tmp_path: Path) -> None:
    said = make(tmp_path / "bin", "data", "TRACK=gpt2", gpus="0")
    assert said.index("torch uses none here") < said.index("data.fineweb")
    assert "torch uses none here" not in make(tmp_path / "bin", "data", "TRACK=gpt2", gpus="1")
    assert "gpt2 (with a GPU, else tiny)" in make(tmp_path / "bin", "help", gpus="8")


def recorded(folder: Path, *words: str, **environment: str) -> list[str]:
    """The arguments that a recipe gives to Python, of which each is a line."""
    (folder / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "python").chmod(0o755)
    skipped = ["-o", "setup", "-o", "data", f"PY={folder / 'python'}", "TRACK=tiny"]
    kept = {k: v for k, v in os.environ.items() if k != "MAKEFLAGS"} | environment
    done = subprocess.run(
        ["make", "--no-print-directory", *skipped, *words],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[2:]  # after -m leaderboard


def test_make_record_passes_what_was_typed_and_nothing_else(tmp_path: Path) -> None:
    new = """it's "five" $5 $$ `x` $(shell id) $HOME * \\ %"""
    said = recorded(
        tmp_path, "record", "NAME=wider heads", f"NEW={new}", 'AUTHOR=A. "N" Name',
        "CLAIM=muon *  muon:lr=0.05,a=$b", "RUNS=--odd",
    )  # fmt: skip
    assert said == [
        "submit", "--claim=muon", "--claim=*", "--claim=muon:lr=0.05,a=$b", "--runs=--odd",
        '--author=A. "N" Name', f"--new={new}", "--", "wider heads",
    ]  # fmt: skip
    # A shell's own variable of such a name, as some systems have it, is not meant.
    assert recorded(tmp_path, "record", NAME="host", NEW="x", CLAIM="y") == ["submit", "--"]


def test_make_help_lists_them() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "\n  make record " in done.stdout and "\n  make rerun " in done.stdout


def test_make_rerun_names_a_folder_and_takes_options(tmp_path: Path) -> None:
    said = recorded(tmp_path, "rerun", "FOLDER=a b/it's", "CLAIM=muon", "ARGS=--seeds 1 --keep")
    assert said == ["rerun", "--claim=muon", "--seeds", "1", "--keep", "--", "a b/it's"]


def test_tables_of_a_bench_that_are_kept_are_sealed(tmp_path: Path) -> None:
    said = make(tmp_path / "bin", "bench", "RECORD=bench-new", gpus="0")
    assert said.rstrip().endswith("python -m leaderboard seal results/records/bench-new")
    assert "leaderboard" not in make(tmp_path / "bin", "bench", gpus="0")


@pytest.mark.slow
def test_pip_installs_into_venv_whatever_the_user_has_set_for_it(tmp_path: Path) -> None:
    """A copy of the Makefile makes a .venv of no packages, with pip's user mode on."""
    for name in ("Makefile", "host/interpreter.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    (tmp_path / "pip.conf").write_text("[install]\nuser = true\n", "utf-8")
    (tmp_path / "mine").mkdir()
    for name in ("numpy.py", "torch.py"):
        (tmp_path / "mine" / name).write_text("")
    (tmp_path / "requirements.txt").write_text("--no-index\n./numpy-1-py3-none-any.whl\n")
    wheel(tmp_path / "numpy-1-py3-none-any.whl")
    hostile = {
        "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_USER": "1", "PIP_TARGET": "/nowhere",
        "PIP_PREFIX": "/nowhere", "PYTHONHOME": "/nowhere", "PIP_REQUIRE_VIRTUALENV": "1",
        "PYTHONPATH": str(tmp_path / "mine"),
    }  # fmt: skip
    command = ["make", "setup", f"PYTHON={sys.executable}"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | hostile, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob(".venv/lib/python*/site-packages/torch.py"))


def wheel(path: Path) -> None:
    """A wheel of the distribution `numpy` 1, whose modules numpy and torch are empty."""
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name in ("numpy.py", "torch.py"):
            archive.writestr(name, "")
        info = "numpy-1.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: numpy\nVersion: 1\n")
        tag = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tag)
        names = ("numpy.py", "torch.py", f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD")
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))


# ---- GPUs that torch does not use, and processes that do not meet ------------------------------


def test_the_reason_is_told_where_torch_uses_none_of_the_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: 0)
    monkeypatch.setattr(machine, "DRIVERS", (tmp_path / "none",))
    assert machine.why_no_gpu() == ""
    monkeypatch.setattr(machine, "DRIVERS", (tmp_path,))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "is built for the CPU alone" in machine.why_no_gpu()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "CUDA_VISIBLE_DEVICES=-1" in machine.why_no_gpu()
    for name in machine.HIDING:
        monkeypatch.delenv(name, raising=False)
    assert "driver" in machine.why_no_gpu()
    monkeypatch.setattr(machine, "gpus", lambda: 1)
    assert machine.why_no_gpu() == ""


def test_a_process_too_many_for_the_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert machine.local_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="2 GPUs that torch sees; run with --nproc_per_node=2"):
        machine.local_device()


def test_what_takes_days_is_announced() -> None:
    cpu = torch.device("cpu")
    assert machine.patience_note(cpu, flops=1e15, peak=1e12) == ""
    assert "at least 116 days" in machine.patience_note(cpu, flops=1e19, peak=1e12)


def test_an_address_that_nothing_resolves_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match="MASTER_ADDR=no-such-host.invalid.*--local-addr=127.0.0.1"):
        _watch.store("group", _watch.timedelta(seconds=5))


def test_processes_that_do_not_meet_are_given_up_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = _watch.threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    with _watch.patience(0.01, rank=3):
        assert ended.wait(10)
    assert "rank 3: the processes have not found each other" in capsys.readouterr().err
    ended.clear()
    with _watch.patience(0.2, rank=3):
        pass
    assert not ended.wait(0.4)


def test_every_call_of_torchrun_gives_an_address_in_place_of_the_hosts_name() -> None:
    files = [ROOT / "Makefile", ROOT / "README.md", *ROOT.glob("docs/*.md"), *SOURCES]
    for path in files:
        text = path.read_text("utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            if "--standalone" in line and path.parent.name != "tests":
                assert "--local-addr=127.0.0.1" in line, f"{path.name}: {line}"


@pytest.mark.parametrize("text", ["abc", "", "-1", "0", "1.5", "²"])
@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
def test_a_launchers_variable_that_is_no_number_is_refused_by_its_name(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=f"{name}: is .*must be a whole number.*unset {name}"):
        machine.threads()
        engines.make("auto", torch.device("cpu"), timeout=1)
        _watch.store("group", _watch.timedelta(seconds=1))


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_a_meeting_place_that_is_not_set_is_refused_at_once(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv(missing)
    with pytest.raises(UserError, match=f"{missing}.*is not set.*torchrun --standalone"):
        engines.make("auto", torch.device("cpu"), timeout=1)
