"""What tests share: small models, traces, runs and texts. A test imports from here, never from a test."""
