"""OpenCompass model classes that route through a selection policy and leave a routing trace."""

import inspect
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate
from opencompass.models.huggingface_above_v4_33 import _convert_base_messages

from ..errors import ModelError, TestbedError, pip_install, unknown_name
from ..identity import Facts
from ..routing.attachment import Attachment, find_moe_layers
from ..routing.channel_state import ChannelStates
from ..routing.discovery import MoeLayer
from ..routing.router_recorder import RouterRecorder
from ..selection import policy_parameters
from ..testbed.history import MeasuredHistory
from ..trace.format import FORMAT_VERSION, TraceMetadata
from .adapters import check_adapter, without_wrapper
from .identify import answer_facts, model_facts
from .loading import whole_weights
from .perplexity import exact_perplexity
from .precision import check_precision, precision_name
from .returned import return_logits, returns_tokens
from .settings import WdmoeSettings, parse_settings
from .trace_session import TraceSession

if TYPE_CHECKING:
    from ..testbed.client import BaseStation

TRACED_PACKAGES = ("wdmoe_opencompass", "opencompass", "torch", "transformers", "numpy")


class WdmoeMixin:
    """Adds `wdmoe=dict(...)` to an OpenCompass Hugging Face model class, and nothing else to its arguments."""

    ranks_by_perplexity = False

    def __init__(self, *args: Any, wdmoe: Any = None, **kwargs: Any):
        self.settings = parse_settings(wdmoe)
        self.check_settings(self.settings)
        self.profile = self.settings.load_profile()
        self._payload_is_rounded = self.settings.payload_is_rounded
        self._refuse_unknown(kwargs)
        path = args[0] if args else kwargs["path"]
        check_adapter(path, kwargs.get("peft_path"))
        if kwargs.get("max_seq_len") is None:  # the base class would look it up trusting remote code
            kwargs["max_seq_len"] = _longest_input(path, bool(kwargs.get("model_kwargs", {}).get("trust_remote_code")))
        super().__init__(*args, **kwargs)
        self.generation_kwargs = returns_tokens(self.generation_kwargs)  # type: ignore[has-type]

    @classmethod
    def check_settings(cls, settings: WdmoeSettings) -> None:
        """Raise ModelError for a setting that means nothing to this class of model."""
        if settings.perplexity != "stock" and not cls.ranks_by_perplexity:
            raise ModelError(
                f"wdmoe.perplexity must be 'stock' with {cls.__name__}, which only generates, got "
                f"{settings.perplexity!r}; WdmoeHuggingFaceBaseModel ranks answers by perplexity"
            )

    def _refuse_unknown(self, kwargs: dict) -> None:
        stock = next(base for base in type(self).__mro__ if base.__module__.startswith("opencompass."))
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known = [key for key, parameter in inspect.signature(stock).parameters.items() if parameter.kind in kinds]
        for key in kwargs:
            if key not in known:
                raise ModelError(unknown_name(f"argument of {type(self).__name__}", key, {*known, "wdmoe"}))

    def _load_tokenizer(self, path: str, kwargs: dict, pad_token_id: int | None = None) -> None:
        super()._load_tokenizer(path, {"trust_remote_code": False, **kwargs}, pad_token_id)  # type: ignore[misc]
        supply_batch_encode_plus(self.tokenizer)  # type: ignore[attr-defined]

    def _load_model(
        self, path: str, kwargs: dict, peft_path: str | None = None, peft_kwargs: dict[str, Any] | None = None
    ) -> None:
        kwargs = {"trust_remote_code": False, **kwargs}
        adapter = dict(peft_path=peft_path, peft_kwargs=dict(peft_kwargs or {}))
        with whole_weights(path, kwargs, peft_path):
            super()._load_model(path=path, kwargs=kwargs, **adapter)  # type: ignore[misc]
        if peft_path is not None:
            elsewhere = self.settings.testbed is not None
            self.model = without_wrapper(self.model, peft_path, elsewhere)  # type: ignore[has-type]
        model: Any = self.model
        return_logits(path, model)
        check_precision(path, model)
        self._facts = model_facts(self, kwargs, peft_path, peft_kwargs)
        layers = find_moe_layers(model)
        if self.settings.calibration is not None:
            self.settings.read_calibration().check_fits(len(layers), layers[0].num_experts, layers[0].top_k)
        self.testbed = self._connect(layers)
        history = None
        if self.testbed is not None:
            history = MeasuredHistory(len(layers), len(self.profile.devices))
            self.testbed.on_layer = history.add
        experts = max(layer.num_experts for layer in layers)
        channel = ChannelStates(self.profile, layers[0].shape, experts, history)
        policy = self.settings.build_policy(channel)
        payload_bits = self.profile.payload_bits if self.settings.quantise_payload else None
        self.attachment = Attachment(model, policy, channel, self.settings.renormalise, payload_bits, self.testbed)
        if self.settings.record_routing:
            self.attachment.router_recorder = RouterRecorder(layers)
        self._session = TraceSession(self.attachment, channel, self.testbed, history)
        if self.testbed is not None:
            self.testbed.keep_own_experts(path)

    def _connect(self, layers: list[MoeLayer]) -> "BaseStation | None":
        """The base station of the live testbed, if there is one; its connections end with the process."""
        if self.settings.testbed is None:
            return None
        try:
            from ..testbed.client import BaseStation
        except ModuleNotFoundError as error:
            raise TestbedError(
                f"testbed needs {error.name}, which is not installed: {pip_install('testbed')}"
            ) from None
        return BaseStation(self.settings.load_testbed(), layers)

    def _has_stop_strings(self, kwargs: dict[str, Any]) -> bool:
        """Whether `generate` will look for stop strings, which it needs the tokenizer for."""
        asked = {**self.generation_kwargs, **kwargs}
        stored = self.model.generation_config.stop_strings  # type: ignore[attr-defined]
        return asked.get("stop_strings", stored) is not None

    def open_trace(
        self,
        predictions: Path,
        model_abbr: str,
        dataset: str,
        items_total: int,
        answered: int,
        test_range: str = "",
        asked: Facts | None = None,
        arguments: Facts | None = None,
    ) -> int:
        """Begin, or continue, the trace next to a dataset's predictions file; see `TraceSession.open`.

        asked: what `identify.inferencer_facts` gives for the dataset; arguments: what `identify.asked_facts` gives.
        """
        metadata = self._metadata(model_abbr, dataset, test_range, asked, arguments)
        return self._session.open(predictions, metadata, items_total, answered)

    def close_trace(self, seal: bool) -> None:
        """End the trace of the dataset; `seal` only when the predictions are complete."""
        self._session.close(seal)

    def _metadata(
        self, model_abbr: str, dataset: str, test_range: str, asked: Facts | None = None, arguments: Facts | None = None
    ) -> TraceMetadata:
        layer = self.attachment.layers[0]
        calibration = None if self.settings.calibration is None else self.settings.read_calibration()
        return TraceMetadata(
            format_version=FORMAT_VERSION,
            model=model_abbr,
            weights=self.path,  # type: ignore[attr-defined]
            dataset=dataset,
            test_range=test_range,
            policy=self.settings.policy,
            policy_parameters=policy_parameters(self.attachment.policy),
            renormalise=self.attachment.renormalise,
            kept_share=self.settings.kept_share,
            calibration_hash=None if calibration is None else calibration.content_hash,
            quantise_payload=self._payload_is_rounded,
            perplexity=self.settings.perplexity,
            profile=self.profile,
            profile_hash=self.profile.content_hash,
            seed=self.profile.fading.seed,
            layers=len(self.attachment.layers),
            experts=self.attachment.num_experts,
            top_k=max(layer.top_k for layer in self.attachment.layers),
            hidden_size=layer.shape.hidden_size,
            ffn_size=layer.shape.ffn_size,
            dtype=precision_name(self.model),  # type: ignore[attr-defined]
            versions={package: version(package) for package in TRACED_PACKAGES},
            identity=answer_facts(self, self._facts, asked or {}, self.settings.perplexity),
            arguments=arguments or {},
        )

    def generate(
        self,
        inputs: list,
        max_out_len: int,
        min_out_len: int | None = None,
        stopping_criteria: list[str] | tuple = (),
        **kwargs: Any,
    ) -> list[str]:
        """Generate as the base class does; the batch enters the trace."""
        kwargs = returns_tokens(kwargs)
        if self._has_stop_strings(kwargs):
            kwargs["tokenizer"] = self.tokenizer  # type: ignore[attr-defined]
        with self._session.record(len(inputs)):
            return super().generate(  # type: ignore[misc]
                inputs, max_out_len, min_out_len=min_out_len, stopping_criteria=list(stopping_criteria), **kwargs
            )


class WdmoeHuggingFaceBaseModel(WdmoeMixin, HuggingFaceBaseModel):
    """`HuggingFaceBaseModel` with a selection policy: perplexity and generation without a chat template."""

    ranks_by_perplexity = True

    def get_ppl(self, inputs: list, mask_length: list[int] | None = None) -> Any:
        """Perplexities as the base class computes them, or independent of the batch; the batch enters the trace."""
        with self._session.record(len(inputs)):
            if self.settings.perplexity == "stock" or self.drop_middle:  # the latter takes one text at a time
                return super().get_ppl(inputs, mask_length)
            texts = _convert_base_messages(inputs)
            return exact_perplexity(self.model, self.tokenizer, texts, self.max_seq_len, mask_length)


class WdmoeHuggingFacewithChatTemplate(WdmoeMixin, HuggingFacewithChatTemplate):
    """`HuggingFacewithChatTemplate` with a selection policy."""


def supply_batch_encode_plus(tokenizer: Any) -> None:
    """Give a tokenizer the method that transformers 5 took away and OpenCompass 0.5.4 still calls."""
    if not hasattr(tokenizer, "batch_encode_plus"):
        tokenizer.batch_encode_plus = tokenizer.__call__


def _longest_input(path: str, trust_remote_code: bool) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    for key in ("max_position_embeddings", "seq_length", "model_max_length"):
        if getattr(config, key, None):
            return int(getattr(config, key))
    raise ModelError(f"{path}: max_seq_len must be given, the model's config does not tell it")
