"""`wdmoe plan`: whether a run can work and what it takes, before anything is loaded."""
