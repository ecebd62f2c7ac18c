"""SiftMoE: replace or skip experts where a calibrated bound on the change of the output allows it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import PolicyError
from ..base import ChannelState, Knob, Renormalise, Routing, Selection, SelectionPolicy
from ..calibration import given_calibration
from ..expert_choice import COSTS, Cost
from ..validation import check_choice, check_number

MAX_CHOICES = 1 << 12  # (experts + 1)^k that are all tried; beyond, a heuristic
MAX_TRIED_AT_ONCE = 1 << 24  # (token, choice) pairs held in memory
FORBIDDEN = 1e30  # harm
ROUNDING = 1e-6  # relative, of costs that count as equal and of harms
POLICY = "sift_moe"


@dataclass(frozen=True)
class SiftMoe(SelectionPolicy):
    """SiftMoE, arXiv 2603.23888: each expert i of a token is kept, replaced by phi(i) or skipped, at the least cost.

    From notes on the paper's second version ([note]): the choice must satisfy ``sum_i w_i M_l[i, phi(i)] <= eta`` with
    ``M_l[i, j]`` the mean over calibration tokens of ``|E_i(h) - E_j(h)|``, skipping being an expert that answers 0,
    and meet the layer's deadline; least energy decides. The norm is L2, and we ignore the deadline, which couples the
    tokens, with its bandwidth and bits per slot ([ours]): every token is a problem of its own. w_i are the weights as
    the model uses them. The replacement takes the weight w_i of the slot it fills; two slots at one expert are one
    payload, one evaluation and the sum of their weights (the lower slot is dropped). Nothing is renormalised: the
    bound is on the output as it is.

    eta:          in raw activation units; 1.5 is the authors' for Mixtral (200: Switch-base-8, 30: GPT-OSS-20B), the
                  same in all layers. 0 is the router's own choice and needs no calibration
    relative:     eta as a share of ``sum_i w_i M_l[i, skip]``, the harm of skipping all of the token's experts (ours:
                  one number that means the same on any model and in any layer; 1 allows anything)
    calibration:  file of `wdmoe calibrate` on this model, which holds M
    cost:         `energy`, joules as the paper has it; `latency`, seconds under evenly split bandwidth, for a
                  like-for-like run (our default). Experts at the base station cost nothing. A device that holds several
                  of a token's experts is sent it once; its energy is then counted once too, the computing included
    may_lose_all: True, all experts may be skipped where eta allows it, as the rule reads; False, the top expert's slot
                  is kept or replaced, never skipped

    Exact where all (experts + 1)^k choices, at most MAX_CHOICES, can be tried: two of 63 experts, three of 15. Of
    equally cheap ones the least harm wins. Beyond, a heuristic: a change moves one slot, or all slots at one device
    (none of which may save anything alone), to one expert or skips them. k times the change that saves the most cost
    per harm added is made, then k times the one that saves the most, as long as one saves any and eta holds.
    """

    may_add: ClassVar[bool] = True
    renormalise: ClassVar[Renormalise] = False
    knob = Knob("eta", 0.0, 1e3)
    neutral: ClassVar[dict[str, Any]] = dict(eta=0.0)
    couples_tokens = False

    eta: float = 1.5
    relative: bool = False
    calibration: str | None = None
    cost: Cost = "latency"
    may_lose_all: bool = True

    def __post_init__(self) -> None:
        """Check the parameters' ranges, and that the calibration can be read."""
        check_number(POLICY, "eta", self.eta, ">= 0")
        check_choice(POLICY, "relative", self.relative, (True, False))
        check_choice(POLICY, "cost", self.cost, COSTS)
        check_choice(POLICY, "may_lose_all", self.may_lose_all, (True, False))
        if self.eta > 0:
            _differences(self.calibration, torch.device("cpu"))

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Choose an expert, or none, for every slot of every token."""
        if self.eta == 0:
            return Selection(routing.top_k_index, torch.ones_like(routing.top_k_index, dtype=torch.bool))
        harm = self._harm(routing)  # [tokens, k, experts + 1]
        skipping = harm[:, :, -1].sum(dim=1) if self.relative else torch.ones_like(harm[:, 0, 0])
        most_harm = self.eta * skipping * (1 + ROUNDING)
        if not self.may_lose_all:
            top = routing.rank == 0
            harm = torch.cat([harm[:, :, :-1], harm[:, :, -1:].masked_fill(top[:, :, None], FORBIDDEN)], dim=2)
        of_visit, of_evaluation = self._costs(channel)
        if harm.shape[2] ** harm.shape[1] <= MAX_CHOICES:
            phi = _of_all(harm, most_harm, channel, of_visit, of_evaluation)
        else:
            phi = _one_by_one(harm, most_harm, routing.top_k_index, channel, of_visit, of_evaluation)
        return _merged(routing, phi)

    def _harm(self, routing: Routing) -> Tensor:
        """-> [tokens, k, experts + 1] float64 ``w_i M[i, phi]`` of every slot and every expert, the last: skipping."""
        differences = _differences(self.calibration, routing.top_k_index.device)
        experts = routing.probabilities.shape[1]
        if routing.layer >= len(differences) or differences.shape[1] != experts:
            raise PolicyError(
                f"{self.calibration} is of {len(differences)} MoE layers with {differences.shape[1]} experts; layer "
                f"{routing.layer + 1} of this model has {experts}"
            )
        return routing.top_k_weights.double()[:, :, None] * differences[routing.layer][routing.top_k_index]

    def _costs(self, channel: ChannelState) -> tuple[Tensor, Tensor]:
        """-> [devices + 1] of a visit, and of an evaluation; the last is the base station."""
        if self.cost == "latency":
            parts = (channel.communication_s, channel.computation_s)
        elif channel.token_energy_j is None:
            raise PolicyError("cost='energy' needs the channel state's token_energy_j, and this state has none")
        else:
            parts = (channel.token_energy_j, torch.zeros_like(channel.token_energy_j))
        visit, evaluation = (torch.nn.functional.pad(part.double(), (0, 1)) for part in parts)
        return visit, evaluation


@lru_cache(maxsize=16)
def _differences(path: str | None, device: torch.device) -> Tensor:
    """-> [layers, experts, experts + 1] float64 M; a slot keeps its own expert without harm."""
    differences = given_calibration(POLICY, path).need("output_difference").double().clone()
    differences.diagonal(dim1=1, dim2=2).zero_()
    return differences.to(device)


def _of_all(harm: Tensor, most_harm: Tensor, channel: ChannelState, of_visit: Tensor, of_evaluation: Tensor) -> Tensor:
    """-> [tokens, k] the cheapest choice of all; the number of experts stands for skipping."""
    tokens, k, options = harm.shape
    choices = _choices(k, options, harm.device)  # [choices, k]
    per_chunk = max(1, MAX_TRIED_AT_ONCE // len(choices))
    if tokens > per_chunk:
        parts = zip(harm.split(per_chunk), most_harm.split(per_chunk))
        return torch.cat([_of_all(*part, channel, of_visit, of_evaluation) for part in parts])
    evaluated = torch.zeros(len(choices), options, dtype=torch.float64, device=harm.device)
    evaluated = evaluated.scatter(1, choices, 1.0)[:, :-1]  # [choices, experts]
    device = (channel.device_of_expert % len(of_visit)).expand(evaluated.shape)
    visited = torch.zeros(len(choices), len(of_visit), dtype=torch.float64, device=harm.device)
    visited = visited.scatter_add(1, device, evaluated) > 0
    cost = evaluated @ of_evaluation[device[0]] + visited.double() @ of_visit  # [choices]
    total = harm.new_zeros(tokens, len(choices))
    for number in range(k):
        total = total + harm[:, number, choices[:, number]]
    fits = total <= most_harm[:, None]
    lowest = torch.where(fits, cost, torch.inf).amin(dim=1, keepdim=True)
    as_cheap = fits & (cost <= lowest * (1 + ROUNDING))
    return choices[torch.where(as_cheap, total, torch.inf).argmin(dim=1)]


def _one_by_one(
    harm: Tensor, most_harm: Tensor, own: Tensor, channel: ChannelState, of_visit: Tensor, of_evaluation: Tensor
) -> Tensor:
    """-> [tokens, k] as `_of_all`, by 2 k changes from the router's own choice."""
    tokens, k, options = harm.shape
    phi, nowhere = own, len(of_visit)  # where skipped ones are
    at_option = torch.nn.functional.pad(channel.device_of_expert % nowhere, (0, 1), value=nowhere)  # [options]
    visit, evaluation = torch.nn.functional.pad(of_visit, (0, 1)), torch.nn.functional.pad(of_evaluation, (0, 1))
    least_saved = ROUNDING * (of_visit.max() + of_evaluation.max())
    alone = torch.eye(k, dtype=torch.bool, device=harm.device).expand(tokens, k, k)

    def paid(stay: Tensor) -> tuple[Tensor, Tensor]:
        """[tokens, n, k] the slots that stay -> [tokens, n, 1] their cost, [tokens, n, options] what each adds."""
        chosen, at = phi[:, None, :].expand(stay.shape), at_option[phi][:, None, :].expand(stay.shape)
        used = harm.new_zeros(*stay.shape[:2], options).scatter_add(2, chosen, stay.double()) > 0
        reached = harm.new_zeros(*stay.shape[:2], nowhere + 1).scatter_add(2, at, stay.double()) > 0
        cost = (used * evaluation[at_option]).sum(dim=2) + (reached * visit).sum(dim=2)
        adds = torch.where(used, 0.0, evaluation[at_option]) + torch.where(reached, 0.0, visit)[:, :, at_option]
        return cost[:, :, None], adds

    for turn in range(2 * k):
        at = at_option[phi]
        change = torch.cat([alone, at[:, :, None] == at[:, None, :]], dim=1)  # [tokens, 2 k, k] slots, all to one
        rest, adds = paid(~change)
        now = harm.gather(2, phi[:, :, None])[:, :, 0]
        harms = (~change * now[:, None, :]).sum(dim=2, keepdim=True) + change.double() @ harm  # [tokens, 2 k, options]
        saves = paid(torch.ones_like(alone[:, :1]))[0] - rest - adds
        added = (harms - now.sum(dim=1)[:, None, None]).clamp(min=1e-30)
        may = (saves > least_saved) & (harms <= most_harm[:, None, None])
        worth = torch.where(may, saves / added if turn < k else saves, -1.0).flatten(1)
        best = worth.argmax(dim=1, keepdim=True)
        changes = change.gather(1, (best // options)[:, :, None].expand(-1, -1, k))[:, 0] & (worth.gather(1, best) > 0)
        phi = torch.where(changes, best % options, phi)
    return phi


def _merged(routing: Routing, phi: Tensor) -> Selection:
    """-> the selection of phi [tokens, k]; slots at one expert become one, that of the highest weight."""
    runs = phi < routing.probabilities.shape[1]
    same = (phi[:, :, None] == phi[:, None, :]) & runs[:, :, None]
    higher = routing.rank[:, None, :] < routing.rank[:, :, None]
    weights = (same * routing.top_k_weights.float()[:, None, :]).sum(dim=2).to(routing.top_k_weights.dtype)
    keep = runs & ~(same & higher).any(dim=2)
    return Selection(torch.where(keep, phi, routing.top_k_index), keep, weights)


@lru_cache(maxsize=64)
def _choices(k: int, options: int, device: torch.device) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(options, device=device)] * k).view(-1, k)
