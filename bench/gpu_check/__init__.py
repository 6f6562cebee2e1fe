"""Checks and measures this project on a machine with a GPU, in one command of nine minutes at most.

    make gpu-check                                # or: python -m bench.gpu_check
    python -m bench.gpu_check --data text:data/mine    # race on this text, prepared by data.text
    python -m bench.gpu_check --cpu               # each part at toy size: tests this program

Needs no network, and of Python packages only torch, numpy, pandas, scipy and matplotlib. It has its
own checks, because the tests need pytest, which is not among these packages. It checks the
optimizers, the model and the training on the device, measures the step of the track `gpt2` on
random tokens, and races AdamW against Muon in the time that is left. The results go to
results/gpu/<date>-<device>/: checks.csv, measures.csv, parts.csv, charts, report.md, and the rows
and curves of the race. The exit code is 1 if a check failed. Without a GPU it says so and does what
--cpu does.

    runner.py          runs a part in a process with a time limit, and records what it finds
    config.py          the sizes on a GPU and on a CPU; random tokens as a data set
    optimizers.py      checks of Newton-Schulz, its kernels, Muon and AdamW
    models.py          checks of the model
    training.py        checks and measurements of the training step
    graphs_and_engines.py  checks of CUDA graphs and of the engines
    race.py            the race
    report.py          CSVs, charts and the page
"""

import analysis.charts  # noqa: F401  # imports matplotlib, whatever the user has set for it
