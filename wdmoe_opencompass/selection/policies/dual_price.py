"""Ours: drop a visit where its routed weight is worth less than the waiting it causes, by the price of its device."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ...errors import PolicyError
from ..bandwidth_split import CURVE_TOLERANCE, optimal_split
from ..base import ChannelState, Knob, Routing, Selection, SelectionPolicy
from ..loads import rank_within, routed_loads
from ..validation import check_choice, check_number

CANDIDATES, ROUNDS = 6, 4  # waiting latencies tried at once, and how often the bracket is narrowed around the best
ROUNDING = 1e-12  # costs that differ by less are equal
OUT_OF_REACH = 1e6  # share of the bandwidth per token that a device cannot serve in time


@dataclass(frozen=True)
class DualPrice(SelectionPolicy):
    """Per layer, the drops that minimise ``T + worth * T_0 / J * lost``, T the attention waiting latency, Eq. (11).

    lost is the routed weight dropped (each token's top-k weights sum to 1), J the tokens, and T_0 the waiting if all
    assignments were spread so that all devices finish together under evenly split bandwidth.

    worth:        what a token's whole weight is worth, in waiting per token where nothing waits for a straggler; one
                  rate for all layers, so that every layer gives up weight for waiting at the same terms
    split:        `optimal`, T under the best split of the bandwidth in this layer; `even`, under the even split: it
                  evens out the devices' times, which one split for all layers of a pass (scope `pass`) rewards
    may_lose_all: whether a token may lose its highest weight too; it then may lose all

    With the even split and one expert per device (the paper's setting) the answer is exact, up to rounding:

    1. T = max_k n_k t_k, t_k the token latency of device k. For a given T every device keeps floor(T / t_k) of its
       visits at most, whatever the others do, and loses the least weight if these are its heaviest.
    2. So the best set is one of a chain: always the lightest visit of the device that now takes longest goes next.
       The chain has one set for every T that any set of drops can reach, and each of its sets is tried.

    With the best split and one expert per device:

    1. T is a convex function of the loads n. Let g_k(B) = 1 / (t_comm_k(B) + t_comp_k) be what device k serves per
       second; rates are concave in B, and so is 1 / (1/R_d + 1/R_u + c), so g_k is concave. With beta_k = T B_k the
       loads that T can serve are n_k <= T g_k(beta_k / T), sum beta_k <= B T: a convex set, for T g(beta / T) is the
       perspective of a concave function.
    2. T(a n) = a T(n) for a > 0, so T(n) = sum_k pi_k n_k with the dual prices pi_k = dT/dn_k: what one more token on
       device k makes everybody wait. Every device with a load is a bottleneck, pi_k > 0.
    3. Within a device the smallest weights go first, so for a given T the least loss is a problem of one number per
       device: the share b_k(n_k / T) of the bandwidth that device k needs, convex in n_k; the shares must sum to at
       most 1. Dropping in the order of ``weight / share saved`` loses at most the last visit dropped more than the
       least that any set loses within T, because along a device weights grow and savings fall.
    4. Were visits divisible, the least loss would be convex in T, and the cost would have one valley. They are whole,
       so the bracket around the valley is a heuristic: it ends at a step of (T_high / T_low)^(1 / 162) between the T
       that it tries, but may leave out the best T, and tries none below T_high / 1000. That no set of drops costs
       less by more than that step and the worth of one visit is therefore not proven, but holds in every small case
       that the tests enumerate.

    With several experts on a device a visit is a token's experts there together. `even` then drops a device's visits
    in the order of ``weight / seconds saved``, which costs at most the worth of the heaviest droppable visit of each
    device more than the best set of visits. `optimal` counts their computation at the device's mean number of
    evaluations per visit: a heuristic. Visits with the token's top expert stay (unless may_lose_all); experts at the
    base station are never dropped. Of sets that cost the same `even` takes the smallest: it drops nothing that saves
    nothing.
    """

    knob = Knob("worth", 0.0, 100.0)
    neutral: ClassVar[dict[str, Any]] = dict(worth=1e9)

    worth: float = 3.0
    split: Literal["optimal", "even"] = "optimal"
    may_lose_all: bool = False

    def __post_init__(self) -> None:
        """Check the parameters' ranges."""
        check_number("dual_price", "worth", self.worth, ">= 0")
        check_choice("dual_price", "split", self.split, ("optimal", "even"))

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Find the drops of least cost; no value leaves the model's device."""
        if routing.top_k_index.shape[1] == 1 and not self.may_lose_all:
            return Selection(routing.top_k_index, torch.ones_like(routing.top_k_index, dtype=torch.bool))
        visits = _visits(routing, channel, stay=0 if self.may_lose_all else 1)
        weight_s = self.worth * _balanced_s(routing, channel) / routing.is_real_token.sum().clamp(min=1)
        drops = _drops_under_even_split if self.split == "even" else _drops_under_best_split
        return Selection(routing.top_k_index, ~visits.spread(drops(visits, channel, weight_s)))


def _drops_under_even_split(visits: "_Visits", channel: ChannelState, weight_s: Tensor) -> Tensor:
    """-> [units] bool the cheapest set of the chain.

    A device's visits go in a fixed order, so how long the device takes until each of them goes is known beforehand. The
    chain is the falling order of these times over all devices: after m drops the layer waits for drop m + 1 to be made,
    or for the visits that stay.
    """
    communication, computation = channel.communication_s.double(), channel.computation_s.double()
    may_go, one_visit = visits.may_go.double(), torch.ones_like(visits.weight)

    def seconds(load: Tensor, evaluations: Tensor, device: Tensor) -> Tensor:
        return torch.where(load > 0, load * communication[device] + evaluations * computation[device], 0.0)

    def droppable(number: Tensor) -> Tensor:
        """[units] -> [devices] sums over what may go."""
        return torch.zeros_like(visits.load).index_add(0, visits.device, number * may_go)

    weight_per_second = visits.weight / seconds(one_visit, visits.experts, visits.device)
    by_worth = weight_per_second.argsort(descending=True, stable=True)
    last_first = by_worth[visits.device[by_worth].argsort(stable=True)]  # device by device, what goes last comes first
    device = visits.device[last_first]

    def still_there(number: Tensor, of_devices: Tensor) -> Tensor:
        """[units], [devices] -> [units, last first] what the device has until the unit goes."""
        so_far = (number * may_go)[last_first].cumsum(0)
        of_device = droppable(number)
        return so_far - (of_device.cumsum(0) - of_device)[device] + (of_devices - of_device)[device]

    until_gone = seconds(still_there(one_visit, visits.load), still_there(visits.experts, visits.pairs), device)
    until_gone = torch.where(visits.may_go[last_first], until_gone, -torch.inf)
    chain = until_gone.argsort(descending=True, stable=True)
    staying = seconds(
        visits.load - droppable(one_visit),
        visits.pairs - droppable(visits.experts),
        torch.arange(len(visits.load), device=device.device),
    ).max()
    waiting = torch.cat([until_gone[chain], staying[None]]).maximum(staying)  # after 0, 1, ... drops
    in_chain = last_first[chain]
    lost = torch.cat([torch.zeros_like(staying)[None], (visits.weight * may_go)[in_chain].cumsum(0)])
    cost = _cost(waiting, lost, weight_s)
    drops = (cost <= cost.min() * (1 + ROUNDING)).int().argmax()
    number = torch.arange(len(in_chain), device=device.device)
    return torch.zeros_like(visits.may_go).scatter(0, in_chain, number < drops)


def _drops_under_best_split(visits: "_Visits", channel: ChannelState, weight_s: Tensor) -> Tensor:
    """-> [units] bool the cheapest set found; the drops of all candidates within the bracket are found at once."""
    low, high = _bracket(visits, channel)
    for _ in range(ROUNDS):
        steps = torch.linspace(0, 1, CANDIDATES + 1, dtype=torch.float64, device=low.device)
        waiting = low * (high / low) ** steps  # [candidates + 1]
        cheapest = _cheapest(visits, channel, waiting)
        best = _cost(cheapest.waiting_s, cheapest.lost, weight_s).argmin()
        low, high = waiting.gather(0, torch.stack([best - 1, best + 1]).clamp(0, CANDIDATES))
    return cheapest.goes.index_select(0, best[None])[0]


def _cost(waiting_s: Tensor, lost: Tensor, weight_s: Tensor) -> Tensor:
    """[n], [n], what a unit of weight is worth -> [n] seconds."""
    return waiting_s + torch.where(lost > 0, weight_s * lost, 0.0)


def _cheapest(visits: "_Visits", channel: ChannelState, waiting: Tensor) -> "_Cheapest":
    """The drops that reach each of the given T with the least loss."""
    need = _share_needed(visits, channel, waiting)
    saved = torch.where(visits.may_go, need.of_units - need.of_units_less, 0.0)  # [candidates, units]
    price = (visits.weight / saved.clamp(min=1e-30)).float()
    order = torch.where(visits.may_go, price, torch.inf).argsort(dim=1)
    left = need.of_all[:, None] - saved.gather(1, order).cumsum(dim=1)
    enough = torch.cat([need.of_all[:, None], left], dim=1) <= 1 + CURVE_TOLERANCE  # after 0, 1, ... drops
    drops = torch.where(enough.any(dim=1), enough.int().argmax(dim=1), visits.may_go.sum())
    number = torch.arange(order.shape[1], device=order.device).expand_as(order)
    goes = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, number < drops[:, None]) & visits.may_go
    lost = torch.where(enough.any(dim=1), (goes * visits.weight).sum(dim=1), torch.inf)
    gone = torch.zeros(len(goes), len(visits.load), dtype=torch.float64, device=goes.device)
    load = visits.load - gone.index_add(1, visits.device, goes.double())
    reached = optimal_split(channel, load, load * visits.evaluations).waiting_latency_s  # less, as visits are whole
    return _Cheapest(goes, lost, reached)


def _share_needed(visits: "_Visits", channel: ChannelState, waiting: Tensor) -> "_Need":
    def share(left: Tensor, device: Tensor) -> Tensor:
        """[..., units] visits left on a device -> [candidates, ..., units] share that serves them in time."""
        computation = (channel.computation_s.double() * visits.evaluations)[device]
        spare = waiting[:, None] / left.clamp(min=1) - computation  # per visit, for sending
        needed = _share_for(channel, spare.clamp(min=1e-30), device)
        needed = torch.where((spare > 0) & (needed <= 2), needed, OUT_OF_REACH * left + 2)
        return torch.where(left > 0, needed, 0.0)

    left = visits.load[visits.device] - visits.rank
    everything = share(visits.load, torch.arange(len(visits.load), device=left.device)).sum(dim=1)
    return _Need(share(left, visits.device), share(left - 1, visits.device), everything)


class _Need(NamedTuple):
    """Shares of the bandwidth that serve a device in time.

    of_units, of_units_less: [candidates, units] the unit's device when the units before it are gone, and it too.
    of_all: [candidates] all devices together, nothing dropped
    """

    of_units: Tensor
    of_units_less: Tensor
    of_all: Tensor


class _Cheapest(NamedTuple):
    """Per candidate T: the units that go, the weight lost (infinite: T is out of reach), and T after they went."""

    goes: Tensor
    lost: Tensor
    waiting_s: Tensor


class _Visits(NamedTuple):
    """A layer's visits of tokens to devices; a unit is a pair of a token and one of its k - 1 lower experts.

    weight:   [units] float64 what a token loses with the visit: its experts on that device together
    experts:  [units] float64 how many these are
    device:   [units]; 0 where the expert is at the base station
    may_go:   [units] whether the pair counts as a visit that may be dropped
    rank:     [units] how many visits to the same device are of less weight
    load:     [devices] visits, q_k of Eq. (9)
    pairs:    [devices] (token, expert) pairs computed
    together: [tokens, k - 1] the token's unit that counts as each pair's visit; -1 for the top expert's
    slots:   [tokens, k] the router's slots from the highest weight to the lowest
    """

    weight: Tensor
    experts: Tensor
    device: Tensor
    may_go: Tensor
    rank: Tensor
    load: Tensor
    pairs: Tensor
    together: Tensor
    slots: Tensor

    @property
    def evaluations(self) -> Tensor:
        """-> [devices] experts computed per visit, on average."""
        return self.pairs / self.load.clamp(min=1)

    def spread(self, goes: Tensor) -> Tensor:
        """[units] -> [tokens, k] the pairs of the visits that go, in the router's slots."""
        units = goes.view(self.together.shape).gather(1, self.together.clamp(min=0)) & (self.together >= 0)
        stay = self.slots.shape[1] - units.shape[1]
        pairs = torch.cat([torch.zeros_like(self.slots[:, :stay], dtype=torch.bool), units], dim=1)
        return torch.zeros_like(pairs).scatter(1, self.slots, pairs)


def _visits(routing: Routing, channel: ChannelState, stay: int) -> _Visits:
    """stay: how many of a token's highest weights are no units."""
    slots = routing.rank.argsort(dim=1)
    device = channel.device_of_expert[routing.top_k_index.gather(1, slots)]  # [tokens, k], highest weight first
    counted = routing.is_real_token[:, None] & (device >= 0)
    same = device[:, :, None] == device[:, None, :]  # [tokens, k, k]
    first = same.int().argmax(dim=2)
    is_visit = counted & (first == torch.arange(device.shape[1], device=device.device))
    weight = (same * routing.shares.gather(1, slots).double()[:, None, :]).sum(dim=2)

    load, pairs = routed_loads(routing, channel)
    parts = (weight, same.sum(dim=2).double(), device.clamp(min=0), is_visit)
    weight, experts, at, may_go = (part[:, stay:].flatten() for part in parts)
    rank = rank_within(at[None], -torch.where(may_go, weight, torch.inf)[None])[0].double()
    return _Visits(weight, experts, at, may_go, rank, load, pairs, first[:, stay:] - stay, slots)


def _bracket(visits: _Visits, channel: ChannelState) -> tuple[Tensor, Tensor]:
    """-> T that nothing can beat, T that the even split reaches without a drop; equal where there is no load."""
    computation = channel.computation_s.double() * visits.evaluations
    stays = visits.load - torch.zeros_like(visits.load).index_add(0, visits.device, visits.may_go.double())
    fastest = channel.communication_s if channel.curve is None else channel.curve.communication_s[:, -1]
    high = (visits.load * (channel.communication_s.double() + computation)).max() * (1 + 1e-6)
    low = (stays * (fastest.double() + computation)).max()
    return torch.maximum(low, high * 1e-3).clamp(min=1e-30), high.clamp(min=1e-30)


def _balanced_s(routing: Routing, channel: ChannelState) -> Tensor:
    """-> seconds that all the layer's assignments take, evenly split bandwidth, if all devices finish together."""
    rates = 1 / (channel.communication_s.double() + channel.computation_s.double())
    return routing.is_real_token.sum() * routing.top_k_index.shape[1] / rates.sum()


def _share_for(channel: ChannelState, communication_s: Tensor, device: Tensor) -> Tensor:
    """[candidates, units] -> the same: curve of each unit's device read backwards."""
    if channel.curve is None:
        raise PolicyError("selection policy 'dual_price' needs the channel's bandwidth curve; split='even' does not")
    return channel.curve.share_for(communication_s, device)
