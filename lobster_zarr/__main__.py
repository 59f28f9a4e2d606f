"""``python -m lobster_zarr`` is the command line."""

from lobster_zarr.cli import main

main()
