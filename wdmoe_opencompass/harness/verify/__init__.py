"""`wdmoe verify`: whether a run's results and tables are what its predictions and traces give."""
