"""`python -m rustunnel_py` is `rustunnel-py`."""

from rustunnel_py.cli import main

main()
