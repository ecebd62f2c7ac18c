"""Live experts on other machines, over gRPC: devices that serve them, and a base station that sends tokens there."""
