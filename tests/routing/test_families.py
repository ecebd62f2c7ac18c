"""What docs/model_families.md says, family by family."""

import dataclasses

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.routing.families import (
    ALL_POLICIES_ON,
    FAMILIES,
    TABLE,
    TOLERANCE,
    attached,
    examine,
    logits,
    policies_for,
    table,
    tiny_model,
)
from tests.tiny import ONLY_IN_DECODE
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.selection import POLICIES

BREAK_THE_CONTRACT = {
    "doge": "DogeCDMoE (model.layers.0.mlp) routes to experts, but the model has no experts",
    "jetmoe": "JetMoeParallelExperts (model.layers.0.mlp.input_linear) routes to experts, but the model has no experts",
    "longcat_flash": "LongcatFlashTopkRouter (model.layers.0.mlp.router) routes to experts, but the model has",
    "zaya": "no router next to ZayaExperts returns one score for each of its 8 experts; ZayaRouter returns [16, 9]",
}
WORKING = sorted(set(FAMILIES) - set(BREAK_THE_CONTRACT))


def test_every_family_of_the_installed_transformers_is_in_the_table():
    with_experts = {
        model_type
        for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        for field in dataclasses.fields(CONFIG_MAPPING[model_type])
        if "expert" in field.name and not field.name.endswith("implementation")
    }
    assert with_experts <= set(FAMILIES)


@pytest.mark.parametrize("family", WORKING)
def test_top_k_leaves_logits_bit_identical(family):
    assert examine(family).error is None
    assert examine(family).identical


@pytest.mark.parametrize("family", WORKING)
def test_dropped_experts_equal_zeroed_weights(family):
    found = examine(family)
    assert sorted(found.deviation) == policies_for(family, found.router)
    for policy, deviation in found.deviation.items():
        assert deviation <= TOLERANCE, policy
        may_drop = found.router != "one expert" or POLICIES[policy].may_lose_all
        may_drop = may_drop and policy not in ONLY_IN_DECODE
        assert (found.dropped[policy] > 0) == may_drop, policy  # else the test shows nothing
        assert POLICIES[policy].may_add or not found.added[policy], policy
    assert found.added.get("expanded_drop", True)


def test_all_policies_run_on_families_of_every_kind():
    kinds = {(examine(f).router, examine(f).normalises, examine(f).skips_dropped) for f in ALL_POLICIES_ON}
    assert {router for router, _, _ in kinds} == {"softmax", "other", "one expert"}
    assert {(True, True), (False, True), (True, False)} <= {(normalises, skips) for _, normalises, skips in kinds}


@pytest.mark.parametrize("policy", sorted(name for name, kind in POLICIES.items() if kind.may_add))
@pytest.mark.parametrize("family", ["deepseek_v3", "llama4_text", "phimoe"])
def test_experts_outside_the_top_k_of_no_softmax_are_refused(family, policy):
    model = tiny_model(family)
    plain = logits(model)
    with pytest.raises(ModelError, match="may give a token an expert outside its top-k, but this router is no softmax"):
        attached(model, policy)
    assert (logits(model) == plain).all()
    assert examine(family).router != "softmax"


@pytest.mark.parametrize("family", WORKING)
def test_generation_with_the_cache_counts_every_real_token_once(family):
    assert examine(family).decoded


@pytest.mark.parametrize("family", WORKING)
def test_detaching_gives_the_model_back(family):
    assert examine(family).detached


@pytest.mark.parametrize("family", BREAK_THE_CONTRACT)
def test_a_family_that_breaks_the_contract_says_what_is_missing(family):
    assert BREAK_THE_CONTRACT[family] in examine(family).error


def test_the_table_in_the_docs_is_what_was_found():
    assert TABLE.read_text() == table(), "run `make families`"
