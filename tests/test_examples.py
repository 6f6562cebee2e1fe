"""The examples for clusters: their syntax, and that what they start takes the arguments."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from runtime import command_line
from speedrun import TRACKS, Options, chosen_track, entrants_of, make_parser

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted([*EXAMPLES.glob("*.sbatch"), *EXAMPLES.glob("*.sh")])


def words_of(script: Path) -> list[str]:
    """The words of the command that a script ends in, with numbers for what the shell fills in."""
    text = script.read_text().replace("\\\n", " ")
    command = next(line for line in text.splitlines() if line.startswith("exec "))
    command = command.replace('"${resume[@]}"', "--resume")
    return shlex.split(re.sub(r"\$\{?\w+\}?", "2", command))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_shell_can_read_it(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_torchrun_and_the_trainer_take_its_arguments(script: Path) -> None:
    words = words_of(script)
    torchrun = get_args_parser().parse_args(words[words.index("torch.distributed.run") + 1 :])
    assert Path(torchrun.training_script).name == "speedrun.py"
    parser = make_parser("", "speedrun.py")
    parser.add_argument("--resume", nargs="?", const="")
    arguments = parser.parse_args(torchrun.training_script_args)
    Options(**command_line.given(arguments, Options))
    track = chosen_track(arguments)
    assert track == TRACKS["gpt2"] and len(entrants_of(arguments)) == 2
    processes = int(torchrun.nnodes) * int(torchrun.nproc_per_node)
    assert track.batch_tokens // track.seq_len % processes == 0
    assert track.val_tokens // track.seq_len % processes == 0


def test_slurm_starts_one_torchrun_on_each_node() -> None:
    text = (EXAMPLES / "race.sbatch").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    flags = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    assert all(re.fullmatch(r"--[\w-]+(=\S+)?", flag) for flag in flags), flags
    assert asked["ntasks-per-node"] == "1"
    assert f"--nproc_per_node={asked['gpus-per-node']}" in text
    signal, seconds = asked["signal"].split("@")
    assert signal == "TERM" and int(seconds) >= 60  # time for a checkpoint
    assert not re.search(r"^[^#].*\n#SBATCH", text, re.MULTILINE)  # Slurm stops reading there
