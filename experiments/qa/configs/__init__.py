"""One file per run; each defines `get_config(method)`."""
