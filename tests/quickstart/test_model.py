"""The quickstart's model is neither at chance nor saturated, and its experts matter."""

import re

import pytest
import torch

from tests.builders.quickstart_world import WORLD, tasks
from tests.conftest import ROOT
from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel
from wdmoe_opencompass.selection import Selection, SelectionPolicy

MIN_LOSS = 10  # points on average, of one random expert against the router's two


class OneRandomExpert(SelectionPolicy):
    """Every token is computed by one expert drawn at random."""

    may_add = True

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def select(self, routing, channel):
        experts = routing.probabilities.shape[1]
        first = torch.randint(0, experts, (len(routing.top_k_index), 1), generator=self.generator)
        keep = torch.zeros_like(routing.top_k_index, dtype=torch.bool)
        keep[:, 0] = True
        return Selection(torch.cat([first, (first + 1) % experts], dim=1), keep)


def model_with(policy):
    model = WdmoeHuggingFaceBaseModel(
        path=str(ROOT / "quickstart" / "model"),
        model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
        max_seq_len=512,
        wdmoe=dict(profile="paper_8_devices", policy=policy if isinstance(policy, str) else "wlr"),
    )
    if not isinstance(policy, str):
        model.attachment.policy = policy
    return model


@torch.no_grad()
def accuracies(model):
    def by_perplexity(options, answers):
        flat = [prompt for prompts in options for prompt in prompts]
        perplexity = [value for n in range(0, len(flat), 50) for value in model.get_ppl(flat[n : n + 50])]
        width = len(options[0])
        rows = [perplexity[n : n + width] for n in range(0, len(flat), width)]
        return percent([row.index(min(row)) == answer for row, answer in zip(rows, answers, strict=True)])

    def generated(prompts, tokens):
        return [text for n in range(0, len(prompts), 50) for text in model.generate(prompts[n : n + 50], tokens)]

    def percent(right):
        return 100 * sum(right) / len(right)

    items = WORLD.items()
    choice, twoway, yesno = items["choice.jsonl"], items["twoway/dev.jsonl"], items["yesno.jsonl"]
    arith, program = items["arith/test.jsonl"], items["program.jsonl"][10:]
    stems = [(row["question"]["stem"], [choice["text"] for choice in row["question"]["choices"]]) for row in choice]
    sums = generated([tasks.sum_prompt(row["question"]) for row in arith], 16)
    programs = generated([tasks.program_prompt(row["text"]) for row in program], 64)
    return dict(
        choice=by_perplexity(
            [[tasks.choice_prompt(stem, text) for text in texts] for stem, texts in stems],
            ["ABCD".index(row["answerKey"]) for row in choice],
        ),
        twoway=by_perplexity(
            [[tasks.twoway_prompt(row["goal"], row[sol]) for sol in ("sol1", "sol2")] for row in twoway],
            [row["label"] for row in twoway],
        ),
        yesno=by_perplexity(
            [
                [tasks.yesno_prompt(row["passage"], row["question"], answer) for answer in ("No", "Yes")]
                for row in yesno
            ],
            [int(row["label"] == "true") for row in yesno],
        ),
        arith=percent(
            [re.findall(r"\d+", text)[-1:] == row["answer"].split()[-1:] for text, row in zip(sums, arith, strict=True)]
        ),
        program=percent([text.strip() == row["code"] for text, row in zip(programs, program, strict=True)]),
    )


@pytest.mark.slow
def test_vanilla_is_neither_chance_nor_saturated_and_random_experts_cost_at_least_ten_points():
    vanilla = accuracies(model_with("top_k"))
    assert all(60 <= value <= 97 for value in vanilla.values()), vanilla
    damaged = accuracies(model_with(OneRandomExpert()))
    loss = [vanilla[task] - damaged[task] for task in vanilla]
    assert sum(loss) / len(loss) >= MIN_LOSS, damaged
