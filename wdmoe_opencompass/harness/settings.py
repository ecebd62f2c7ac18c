"""The `wdmoe=dict(...)` of a model config."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..channel.profile import ChannelProfile, load_profile
from ..errors import ModelError, unknown_name
from ..selection import SelectionPolicy, build_policy


class WdmoeSettings(BaseModel):
    """What a user writes: `wdmoe=dict(profile='paper_8_devices', policy='wlr')`.

    profile:           name of a shipped channel profile, or path of a profile file
    policy:            name of a selection policy; `top_k` is the unchanged model
    policy_parameters: parameters of that policy, where they differ from its defaults
    renormalise:       scale the kept weights back to the router's sum: `model` as the model does, true, or false; by
                       default as the policy's author does
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str
    policy: str = "top_k"
    policy_parameters: dict[str, Any] = Field(default_factory=dict)
    renormalise: Literal["model"] | bool | None = None

    @field_validator("policy_parameters", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return dict(value) if isinstance(value, dict) else value  # OpenCompass hands over its own dict class

    def load_profile(self) -> ChannelProfile:
        """Read the profile; ProfileError where it breaks a rule."""
        return load_profile(self.profile)

    def build_policy(self) -> SelectionPolicy:
        """Build the policy; PolicyError where its name or a parameter is wrong."""
        return build_policy(self.policy, self.policy_parameters)


def parse_settings(wdmoe: Any) -> WdmoeSettings:
    """Check the whole `wdmoe` argument, profile and policy included."""
    if not isinstance(wdmoe, dict):
        raise ModelError("the model config needs wdmoe=dict(profile='paper_8_devices', policy='wlr')")
    try:
        settings = WdmoeSettings.model_validate(dict(wdmoe))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise ModelError(unknown_name("key of wdmoe=dict(...)", key, WdmoeSettings.model_fields)) from None
        raise ModelError(f"wdmoe.{key}: {first['msg'].lower()}, got {first['input']!r}") from None
    settings.load_profile()
    settings.build_policy()
    return settings
