"""Tables and figures from a run's accuracies and routing traces."""
