"""JESA: DES and the bandwidth split, in turns."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..bandwidth_split import optimal_split
from ..base import ChannelState, Routing, Selection
from ..expert_choice import device_cost, fill_slots
from ..loads import device_loads
from .des import Des

ROUNDS = 10


@dataclass(frozen=True)
class Jesa(Des):
    """JESA, arXiv 2503.13421: alternate DES for a fixed assignment of subcarriers and the assignment for fixed experts.

    That there is such an alternation, until nothing changes, is from the abstract ([abs]). Subcarriers that serve one
    link each have no counterpart here; ours ([ours]) is the optimal bandwidth split of the layer, `optimal_split`: the
    first DES sees evenly split bandwidth, each next one the split that is optimal for the loads before it, in at most
    ROUNDS DES runs, or until loads repeat. Parameters and other choices are those of `des`.

    A device without load has no bandwidth; its cost stays what it last was, or no token would return to it.
    Under cost='energy' a token's joules grow with its time on the air: exact where the profile tells no joules for
    computing and the split changes both directions alike. The rounds need not converge: loads may cycle, and the
    optimum of the split rewards devices that are crowded already.
    """

    name: ClassVar[str] = "jesa"
    couples_tokens = True  # through the bandwidth split

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Run all rounds; once loads repeat the choice stays as it is, without asking the host."""
        devices = len(channel.communication_s)

        def loads_of(chosen: Tensor) -> Tensor:
            """[tokens, experts] -> [2, devices] loads and evaluations."""
            runs = chosen & routing.is_real_token[:, None]
            return torch.stack(device_loads(channel.device_of_expert.expand(runs.shape), runs, devices))

        of_device = even = device_cost(channel, self.cost).double()
        chosen = self.choose(routing, channel, of_device)
        loads = loads_of(chosen)[None]  # [rounds, 2, devices]
        repeated = torch.zeros((), dtype=torch.bool, device=chosen.device)
        for _ in range(ROUNDS - 1):
            device_load, evaluations = loads[-1]
            sent_s = optimal_split(channel, device_load, evaluations).communication_s
            if self.cost == "latency":
                now = sent_s + channel.computation_s
            else:
                now = even * (sent_s / channel.communication_s)
            of_device = torch.where(device_load > 0, now, of_device)
            new = self.choose(routing, channel, of_device)
            chosen = torch.where(repeated, chosen, new)
            new_loads = loads_of(chosen)
            repeated = repeated | (loads == new_loads).flatten(1).all(dim=1).any()
            loads = torch.cat([loads, new_loads[None]])
        return fill_slots(routing, chosen)
