"""One run with many faults: datasets that cannot be inferred or scored, scores that are no numbers, odd names."""

from mmengine.config import read_base
from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import FixKRetriever

from wdmoe_opencompass.harness.partitioner import SharedProcessPartitioner

with read_base():
    from wdmoe_opencompass.eval_configs.datasets.quickstart import quickstart_datasets as _all
    from wdmoe_opencompass.eval_configs.models.wdmoe_quickstart import models
    from wdmoe_opencompass.eval_configs.runners.wdmoe_local import eval, infer
    from wdmoe_opencompass.eval_configs.summarizers.wdmoe import summarizer

for _section in (infer, eval):  # each process costs seconds of imports: both models share one
    _section["partitioner"] = dict(type=SharedProcessPartitioner, n=1000, tasks=1)
_gen = _all[3]
_bad = dict(
    ice_template=dict(type=PromptTemplate, template="Question: {question}\nAnswer: {answer}\n"),
    prompt_template=dict(type=PromptTemplate, template="</E>Question: {question}\nAnswer:", ice_token="</E>"),
    retriever=dict(type=FixKRetriever, fix_id_list=[0, 99999]),
    inferencer=dict(type=GenInferencer, max_out_len=8),
)
datasets = [
    dict(_gen, abbr="no file", path="quickstart/data/nowhere"),
    dict(_gen, abbr="bad", infer_cfg=_bad, reader_cfg=dict(_gen["reader_cfg"], test_range="[:6]")),
]
for _item, _name in ((_all[3], "good|1"), (_all[0], "good^2\\x"), (_all[3], "[good]")):
    datasets.append(dict(_item, abbr=_name, reader_cfg=dict(_item["reader_cfg"], test_range="[:6]")))
for _kind in ("Raising", "Killed", "Nan", "Infinity", "Bool", "HalfRight"):
    datasets.append(
        dict(
            _gen,
            abbr=_kind.lower(),
            reader_cfg=dict(_gen["reader_cfg"], test_range="[:6]"),
            eval_cfg=dict(evaluator=dict(type=f"tests.cases.odd_evaluators.{_kind}Evaluator")),
        )
    )
LONG = "算" * 81 + "/" + "é" * 122  # as long as a file name of OpenCompass can be: 245 bytes after the slash
_named = ("qs/arith", "qs arith [1:3]", "算术_é%&#$~^", "a_0", "a", "b.json", "tmp_{lib}", LONG)
datasets[:0] = [dict(_gen, abbr=_name, reader_cfg=dict(_gen["reader_cfg"], test_range="[:2]")) for _name in _named]
for _model, _name in zip(models, ("[a] vanilla ~x^2", "b|wdmoe\\y<z>")):
    _model["abbr"] = _name
    _model["batch_size"] = 3
