"""The `wdmoe=dict(...)` of a model config."""

import inspect
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..channel.profile import ChannelProfile, load_profile
from ..errors import ModelError, PolicyError, unknown_name
from ..selection import POLICIES, SelectionPolicy, build_policy
from ..selection.calibration import Calibration, read_calibration
from ..selection.kept_share import ChannelOfLayer, match_kept_share
from ..testbed.lab_file import Testbed, load_testbed, profile_of_testbed
from ..trace.format import Perplexity


class WdmoeSettings(BaseModel):
    """What a user writes: `wdmoe=dict(profile='paper_8_devices', policy='wlr')`.

    profile:           name of a shipped channel profile, or path of a profile file
    policy:            name of a selection policy; `top_k` is the unchanged model
    policy_parameters: parameters of that policy, where they differ from its defaults
    renormalise:       scale the kept weights back to the router's sum: `model` as the model does, true, or false; by
                       default as the policy's author does
    calibration:       file of `wdmoe calibrate` for this model, for policies with measured constants and for kept_share
    kept_share:        tune the policy until it keeps this share of the calibration's assignments
    quantise_payload:  round hidden states to the profile's payload_bits on their way to and from the devices
    perplexity:        `stock`, as OpenCompass's own class, where scores depend on the batch's padding; `exact`, what
                       each text gets alone (harness/perplexity.py)
    record_routing:    leave a recording of the router next to each trace, for `wdmoe route`
    testbed:           lab file: send the tokens to real devices; its placement and payload bits replace the profile's
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str
    policy: str = "top_k"
    policy_parameters: dict[str, Any] = Field(default_factory=dict)
    renormalise: Literal["model"] | bool | None = None
    calibration: str | None = None
    kept_share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)] | None = None
    quantise_payload: bool = False
    perplexity: Perplexity = "stock"
    record_routing: bool = False
    testbed: str | None = None

    @field_validator("policy_parameters", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return dict(value) if isinstance(value, dict) else value  # OpenCompass hands over its own dict class

    def load_profile(self) -> ChannelProfile:
        """Read the profile, with the placement and payload bits of the lab, if there is one.

        Raises ProfileError or TestbedError where one of them breaks a rule, or they do not fit each other.
        """
        profile = load_profile(self.profile)
        return profile if self.testbed is None else profile_of_testbed(profile, self.load_testbed(), self.testbed)

    @property
    def payload_is_rounded(self) -> bool:
        """Whether hidden states are rounded to the profile's payload_bits: simulated, or packed for the devices."""
        on_the_wire = self.testbed is not None and self.load_testbed().payload_bits is not None
        return self.quantise_payload or on_the_wire

    def load_testbed(self) -> Testbed:
        """Read the lab file; TestbedError where it breaks a rule."""
        assert self.testbed is not None
        return load_testbed(self.testbed)

    def build_policy(self, channel_of_layer: ChannelOfLayer | None = None) -> SelectionPolicy:
        """Build the policy, matched to kept_share where the channel is given; PolicyError where something is wrong."""
        parameters = dict(self.policy_parameters)
        kind = POLICIES.get(self.policy)
        if kind is not None and self.calibration is not None and "calibration" in inspect.signature(kind).parameters:
            parameters.setdefault("calibration", self.calibration)
        policy = build_policy(self.policy, parameters)
        if self.kept_share is None or channel_of_layer is None:
            return policy
        matched = match_kept_share(type(policy), parameters, self.kept_share, self.read_calibration(), channel_of_layer)
        return build_policy(self.policy, matched)

    def read_calibration(self) -> Calibration:
        """Read the calibration; PolicyError where kept_share asks for one and there is none."""
        if self.calibration is None:
            raise PolicyError("wdmoe.kept_share needs wdmoe.calibration: a file of `wdmoe calibrate` for this model")
        return read_calibration(self.calibration)


def validate_settings(wdmoe: Any) -> WdmoeSettings:
    """Check the keys and values of a `wdmoe` argument, without reading a file; ModelError where one is wrong."""
    if not isinstance(wdmoe, dict):
        raise ModelError("the model config needs wdmoe=dict(profile='paper_8_devices', policy='wlr')")
    try:
        return WdmoeSettings.model_validate(dict(wdmoe))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise ModelError(unknown_name("key of wdmoe=dict(...)", key, WdmoeSettings.model_fields)) from None
        raise ModelError(f"wdmoe.{key}: {first['msg'].lower()}, got {first['input']!r}") from None


def parse_settings(wdmoe: Any) -> WdmoeSettings:
    """Check the whole `wdmoe` argument, the files that it names and the policy included."""
    settings = validate_settings(wdmoe)
    settings.load_profile()
    if settings.testbed is not None and settings.quantise_payload:
        raise ModelError("wdmoe.quantise_payload simulates; with wdmoe.testbed the lab file's payload_bits decides")
    policy = settings.build_policy()
    if settings.kept_share is not None:
        settings.read_calibration().need("probabilities")
        if policy.tuned is None:
            raise PolicyError(f"selection policy {settings.policy!r} has no parameter to match wdmoe.kept_share by")
    return settings
