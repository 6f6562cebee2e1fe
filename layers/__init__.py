"""The layers of a GPT: attention variants, norms, rotary embedding, and the configuration.

An attention variant is one file: its class `SelfAttention`, chosen by the name of the file. A model
that uses it is one line of `PRESETS` in config.py.
"""
