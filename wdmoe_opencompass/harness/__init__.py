"""What OpenCompass loads: model classes, infer task and summarizer. Only this package knows OpenCompass."""
