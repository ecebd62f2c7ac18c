"""What a run leaves for every later question: routing traces, their journals and times. Readable without torch."""
