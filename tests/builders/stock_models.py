"""OpenCompass's model configs on the quickstart model, ours and the stock one."""

from opencompass.models import HuggingFaceBaseModel

from tests.conftest import ROOT

MODEL = dict(
    path=str(ROOT / "quickstart" / "model"),
    model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
    max_seq_len=512,
)


VANILLA = dict(profile="paper_8_devices", policy="top_k")


PROMPTS = ["Question: Ada has 7 pens, loses 3. How many pens are there now?\nAnswer:", "A bolo", "What is this, then?"]


class WithTokenizerMethod:
    """What transformers 5 took from tokenizers and OpenCompass 0.5.4 still calls; nothing else is changed."""

    def _load_tokenizer(self, *args, **kwargs):
        super()._load_tokenizer(*args, **kwargs)
        self.tokenizer.batch_encode_plus = self.tokenizer.__call__


class StockBase(WithTokenizerMethod, HuggingFaceBaseModel):
    pass
