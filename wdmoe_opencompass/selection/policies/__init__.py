"""One policy a file; `wdmoe_opencompass.selection.POLICIES` gives each its name."""
