"""`python -m wdmoe_opencompass.cli`: the `wdmoe` command where it is not on PATH."""

from . import main

main()
