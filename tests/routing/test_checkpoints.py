"""Every family's checkpoint passes as it is saved, and with any of its tensors changed is refused by its name."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.routing.families import FAMILIES, tiny_model
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.routing.checkpoint import check_checkpoint, check_loading

EVERY = 7  # tensors, of which one is tried: layers are alike
IGNORED = ("axk1", "e_score_correction_bias")  # transformers says that its checkpoints need not have it


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES])
def test_a_family(family, tmp_path):
    model = tiny_model(family)
    for folder, how in ((tmp_path / "one", {}), (tmp_path / "shards", dict(max_shard_size="50kB"))):
        model.save_pretrained(folder, **how)
        assert check_checkpoint(folder, {}) is None
        with check_loading(family):
            AutoModelForCausalLM.from_pretrained(folder)
    shutil.copytree(tmp_path / "one", tmp_path / "changed")
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    names = sorted(tensors)
    routers = [name for name in names if "gate.weight" in name or "router" in name]
    for name in {*names[:: max(len(names) // EVERY, 1)], *routers[:2]}:
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        doubled = torch.cat([tensors[name]] * 2) if tensors[name].ndim else tensors[name][None]
        for changed in (rest, rest | {f"{name}_": tensors[name]}, rest | {name: doubled}):
            save_file(changed, tmp_path / "changed" / "model.safetensors", metadata={"format": "pt"})
            if family == IGNORED[0] and IGNORED[1] in name and name not in changed:
                continue
            with pytest.raises(ModelError):
                check_checkpoint(tmp_path / "changed", {})
