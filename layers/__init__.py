"""The layers of a GPT: the configuration, attention variants, norms, rotary embedding."""
