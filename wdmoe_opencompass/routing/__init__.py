"""Attach a selection policy to a transformers MoE model and record what it routes."""
