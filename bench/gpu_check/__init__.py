"""What a machine with a GPU can say of this project, in one command of nine minutes at most.

    make gpu-check                                # or: python -m bench.gpu_check
    python -m bench.gpu_check --data text:mine    # race on this text, prepared by data.text
    python -m bench.gpu_check --cpu               # each part at toy size: tests this program

Needs no network, and nothing but torch, numpy and matplotlib. It checks the optimizers, the model
and training on the device, measures the step of the track `gpt2` on random tokens, and races AdamW
against Muon for the time that is left. What it finds goes into results/gpu/<date>-<device>/:
checks.csv, measures.csv, parts.csv, charts, report.md, and the race as any other. The exit code is
1 if a check failed. Without a GPU it says so and does what --cpu does.

    parts.py       a part: a process with a limit of time, and what it notes down
    setting.py     the sizes, of a GPU and of a CPU; random tokens as a data set
    optimizers.py  checks of Newton-Schulz, its kernels, Muon and AdamW
    models.py      checks of the model
    training.py    checks and measurements of the training step
    ways.py        checks of CUDA graphs and of the engine of several processes
    contest.py     the race
    report.py      CSVs, charts and the page
"""
