"""Models of OpenCompass that answer at once, or cannot be loaded."""

from opencompass.models.base import BaseModel


class Answering(BaseModel):
    """Answers `A`."""

    def generate(self, inputs, max_out_len):
        return ["A"] * len(inputs)

    def get_token_len(self, prompt):
        return len(str(prompt))


class Raising(BaseModel):
    """Its weights cannot be read."""

    def __init__(self, **others):
        raise RuntimeError("no weights")


class Exiting(BaseModel):
    """Its library ends the process."""

    def __init__(self, **others):
        raise SystemExit("no licence")
