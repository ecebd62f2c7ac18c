"""The quickstart's five tasks, in the formats of the paper's benchmarks, read by OpenCompass's own loaders."""

from opencompass.datasets import (
    ARCDataset,
    BoolQDataset,
    GSM8KDataset,
    Gsm8kEvaluator,
    MBPPDataset,
    MBPPEvaluator,
    PIQADataset,
    gsm8k_dataset_postprocess,
    gsm8k_postprocess,
)
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_inferencer import GenInferencer, PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

quickstart_datasets = [
    dict(
        type=ARCDataset,
        abbr="qs_choice",
        path="quickstart/data/choice.jsonl",
        name="ARC-Challenge",
        reader_cfg=dict(input_columns=["question", "textA", "textB", "textC", "textD"], output_column="answerKey"),
        infer_cfg=dict(
            prompt_template=dict(
                type=PromptTemplate,
                template={
                    "A": "Question: {question}\nAnswer: {textA}",
                    "B": "Question: {question}\nAnswer: {textB}",
                    "C": "Question: {question}\nAnswer: {textC}",
                    "D": "Question: {question}\nAnswer: {textD}",
                },
            ),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=PPLInferencer),
        ),
        eval_cfg=dict(evaluator=dict(type=AccEvaluator)),
    ),
    dict(
        type=PIQADataset,
        abbr="qs_twoway",
        path="quickstart/data/twoway",
        reader_cfg=dict(input_columns=["goal", "sol1", "sol2"], output_column="label", test_split="validation"),
        infer_cfg=dict(
            prompt_template=dict(
                type=PromptTemplate,
                template={0: "Q: {goal}\nA: {sol1}", 1: "Q: {goal}\nA: {sol2}"},
            ),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=PPLInferencer),
        ),
        eval_cfg=dict(evaluator=dict(type=AccEvaluator)),
    ),
    dict(
        type=BoolQDataset,
        abbr="qs_yesno",
        path="json",
        data_files="quickstart/data/yesno.jsonl",
        split="train",
        reader_cfg=dict(input_columns=["question", "passage"], output_column="answer", test_split="train"),
        infer_cfg=dict(
            prompt_template=dict(
                type=PromptTemplate,
                template={
                    0: "{passage}\nQuestion: {question}?\nAnswer: No",
                    1: "{passage}\nQuestion: {question}?\nAnswer: Yes",
                },
            ),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=PPLInferencer),
        ),
        eval_cfg=dict(evaluator=dict(type=AccEvaluator)),
    ),
    dict(
        type=GSM8KDataset,
        abbr="qs_arith",
        path="quickstart/data/arith",
        reader_cfg=dict(input_columns=["question"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(type=PromptTemplate, template="Question: {question}\nAnswer:"),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=GenInferencer, max_out_len=16),
        ),
        eval_cfg=dict(
            evaluator=dict(type=Gsm8kEvaluator),
            pred_postprocessor=dict(type=gsm8k_postprocess),
            dataset_postprocessor=dict(type=gsm8k_dataset_postprocess),
        ),
    ),
    dict(
        type=MBPPDataset,
        abbr="qs_program",
        path="quickstart/data/program.jsonl",
        reader_cfg=dict(input_columns=["text", "test_list"], output_column="test_list_2"),
        infer_cfg=dict(
            prompt_template=dict(type=PromptTemplate, template="{text}\nCode:\n"),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=GenInferencer, max_out_len=64),
        ),
        eval_cfg=dict(evaluator=dict(type=MBPPEvaluator)),
    ),
]
