"""As `wdmoe`, with the 57 subjects of MMLU as one benchmark."""

from mmengine.config import read_base

from wdmoe_opencompass.harness.summarizer import WdmoeSummarizer

with read_base():
    from opencompass.configs.summarizers.groups.mmlu import mmlu_summary_groups

mmlu_groups = [group for group in mmlu_summary_groups if group["name"] == "mmlu"]
summarizer = dict(type=WdmoeSummarizer, summary_groups=mmlu_groups)
