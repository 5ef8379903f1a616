"""Jobs that run from a checkout: `python -m experiments.<task>.main`."""
