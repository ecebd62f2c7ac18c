"""The paper's simulation without a model: synthetic routing of its eight benchmarks, fitted to published statistics."""
