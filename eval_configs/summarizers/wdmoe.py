"""OpenCompass's own table, then accuracy and attention waiting latency side by side."""

from wdmoe_opencompass.harness.summarizer import WdmoeSummarizer

summarizer = dict(type=WdmoeSummarizer)
