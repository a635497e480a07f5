"""``python -m stream.cli``: the same program as ``ztf-stream``."""

from stream.cli import main

main()
