"""The default, CAP's and our placement of recorded traces side by side; and ours as a channel profile."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .._util.safe_yaml import yaml_text
from ..channel.origin import DEVICE_PATH
from ..channel.profile import ChannelProfile, Placement
from ..errors import ProfileError, WdmoeError, unknown_name
from ..latency import ExpertShape
from ..trace.format import RoutingTrace
from .cap import cap_greedy
from .co_selection import DeviceIndex, co_selection_of
from .exact import can_be_exact, exact
from .local_search import local_search
from .problem import PlacementProblem, fewest_per_device, latency, modulo, transfers

OBJECTIVES = ("latency", "transfers")


@dataclass(frozen=True)
class Judged:
    """One placement and what it costs.

    transfers_per_token_layer: tokens sent to devices, over tokens and MoE layers: K without any pair together
    mean_waiting_latency_s:    mean over batches of the sum over layers of Eq. (11), even bandwidth
    status:                    baseline, proven optimal, or heuristic (with a bound where time ran out)
    """

    name: str
    device_of_expert: DeviceIndex
    transfers_per_token_layer: float
    mean_waiting_latency_s: float
    status: str


@dataclass(frozen=True)
class Comparison:
    """The default placement, CAP's and ours, under one objective; notes say what is assumed."""

    profile: ChannelProfile
    objective: str
    experts_per_device: int
    judged: tuple[Judged, ...]
    notes: tuple[str, ...]

    @property
    def ours(self) -> Judged:
        """Our placement, never worse in the objective than the other two."""
        return self.judged[-1]

    def experts_of(self, judged: Judged) -> dict[str, list[int]]:
        """-> device name -> its experts."""
        devices = enumerate(self.profile.devices)
        return {device.name: [int(e) for e in (judged.device_of_expert == k).nonzero()[0]] for k, device in devices}

    def records(self) -> list[dict[str, Any]]:
        """One record per placement; savings in % of the default placement's."""
        default = self.judged[0]
        return [
            dict(
                placement=judged.name,
                transfers_per_token_layer=judged.transfers_per_token_layer,
                transfers_saving_percent=_saving(judged.transfers_per_token_layer, default.transfers_per_token_layer),
                mean_waiting_latency_s=judged.mean_waiting_latency_s,
                latency_saving_percent=_saving(judged.mean_waiting_latency_s, default.mean_waiting_latency_s),
                status=judged.status,
            )
            for judged in self.judged
        ]


def compare_placements(
    traces: Sequence[RoutingTrace],
    profile: ChannelProfile | None = None,
    devices: int | None = None,
    objective: str = "latency",
    experts_per_device: int | None = None,
    time_limit_s: float = 30.0,
    seed: int = 0,
    advance: Callable[[float], None] = lambda share: None,
) -> Comparison:
    """Place the experts that several traces of one model recorded on the first `devices` of a profile.

    profile:            default the first trace's own; devices: default all of the profile's
    experts_per_device: most experts a device holds, default experts / devices, rounded up
    time_limit_s:       for the exact solver; at 0 only the local search runs, from random starts drawn with `seed`
    advance:            told shares of the work, 2 in all (local search, exact solver)
    """
    if objective not in OBJECTIVES:
        raise WdmoeError(unknown_name("objective", objective, OBJECTIVES))
    profile = profile or traces[0].metadata.profile
    has_placement = bool(profile.placement.experts) or profile.placement.others != "modulo"
    profile = _first_devices(profile, len(profile.devices) if devices is None else devices)
    counts, metadata = co_selection_of(traces), traces[0].metadata
    used = len(profile.devices)
    capacity = fewest_per_device(counts.experts, used) if experts_per_device is None else experts_per_device
    of_latency = latency(profile, ExpertShape(metadata.hidden_size, metadata.ffn_size))
    by_latency = PlacementProblem(counts, of_latency, capacity)
    by_transfers = PlacementProblem(counts, transfers(used), capacity)
    problem = by_latency if objective == "latency" else by_transfers

    default, rival = modulo(counts.experts, used), cap_greedy(problem)
    ours, status = local_search(problem, [rival], seed=seed, advance=advance), "heuristic"
    if time_limit_s > 0 and can_be_exact(problem):
        answer = exact(problem, ours, time_limit_s, advance)
        ours = answer.device_of_expert
        bound = f"heuristic, the optimum is at most {100 * answer.relative_gap:.2g} % less"
        status = "proven optimal" if answer.is_proven else bound
    else:
        advance(1)
    if objective == "transfers":
        ours = _on_best_devices(ours, by_latency)
    named = (("default", default, "baseline"), ("cap_greedy", rival, "heuristic"), ("ours", ours, status))
    judged = tuple(
        Judged(
            name,
            placement,
            by_transfers.cost(placement) * counts.batches / counts.token_layers,
            by_latency.cost(placement),
            status,
        )
        for name, placement, status in named
    )
    return Comparison(profile, objective, capacity, judged, _notes(traces, profile, has_placement))


def placed_profile(profile: ChannelProfile, device_of_expert: DeviceIndex) -> ChannelProfile:
    """The profile with every expert placed by name; it says that the placement was computed."""
    experts = {expert: profile.devices[int(device)].name for expert, device in enumerate(device_of_expert)}
    placed = profile.model_copy(update=dict(placement=Placement(experts=experts)))
    stated = placed.placement.model_dump(mode="json")
    return placed.with_statements("computed", {f"placement.{key}": value for key, value in stated.items()})


def profile_text(comparison: Comparison, traces: Sequence[RoutingTrace]) -> str:
    """A complete channel profile with our placement, as YAML; comments say how it was made and what is assumed."""
    ours, default = comparison.records()[-1], comparison.records()[0]
    names = ", ".join(f"{trace.metadata.model}/{trace.metadata.dataset}" for trace in traces)
    sentences = [
        f"Made by `wdmoe place` from channel profile {comparison.profile.name} and the routing traces {names}.",
        f"Placement for the least {comparison.objective}: {ours['status']}; experts per device: at most "
        f"{comparison.experts_per_device}.",
        f"Transfers per token and layer {ours['transfers_per_token_layer']:.6g} (expert k on device k modulo "
        f"{len(comparison.profile.devices)}: {default['transfers_per_token_layer']:.6g}).",
        f"Mean waiting latency {ours['mean_waiting_latency_s']:.6g} s per batch (there: "
        f"{default['mean_waiting_latency_s']:.6g} s).",
        *(f"Assumed: {note}." for note in comparison.notes),
    ]
    comment = textwrap.TextWrapper(118, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)
    placed = placed_profile(comparison.profile, comparison.ours.device_of_expert)
    content = placed.model_dump(exclude={"name"}, exclude_none=True)
    content["devices"] = list(content["devices"])
    return "\n".join([*map(comment.fill, sentences), yaml_text(content)])


def _first_devices(profile: ChannelProfile, devices: int) -> ChannelProfile:
    if not 1 <= devices <= len(profile.devices):
        raise ProfileError(
            f"devices must be 1 to {len(profile.devices)}, those of profile {profile.name!r}, got {devices}; "
            "for more give a profile with more devices"
        )
    origin = {
        word: {path: value for path, value in statements.items() if not _is_of_device_beyond(path, devices)}
        for word, statements in (profile.origin or {}).items()
    }
    update = dict(devices=profile.devices[:devices], placement=Placement(), origin=origin or None)
    return profile.model_copy(update=update)


def _is_of_device_beyond(path: str, devices: int) -> bool:
    match = DEVICE_PATH.fullmatch(path)
    return match is not None and match[1] != "*" and int(match[1]) >= devices


def _on_best_devices(placement: DeviceIndex, by_latency: PlacementProblem) -> DeviceIndex:
    """Exchange whole devices' experts while that lowers the latency; the transfers stay what they are."""
    best, cost, changed = placement, by_latency.cost(placement), True
    while changed:
        changed = False
        for device in range(by_latency.devices):
            for other in range(device):
                swapped = best.copy()
                swapped[best == device], swapped[best == other] = other, device
                if (new := by_latency.cost(swapped)) < cost * (1 - 1e-12):
                    best, cost, changed = swapped, new, True
    return best


def _saving(value: float, default: float) -> float:
    return 100 * (1 - value / default)


def _notes(traces: Sequence[RoutingTrace], profile: ChannelProfile, has_placement: bool) -> tuple[str, ...]:
    metadata = traces[0].metadata
    channel = f"the draw of its seed {profile.fading.seed}" if profile.fading.model != "none" else "no fading"
    if profile.fading.model != "none" and profile.fading.coherence != "run":
        channel = f"gains without fading, as its fading changes every {profile.fading.coherence}"
    notes = [
        f"bandwidth split evenly over the {len(profile.devices)} devices, channel of profile {profile.name}, {channel}",
        "one placement for all layers, for the router's own top-k choice",
    ]
    if metadata.top_k > 2:
        notes.append(
            f"with {metadata.top_k} experts per token, pairs do not tell how many tokens visit a device: the placement "
            "is a heuristic, transfers and latency are at least those given, and the savings are of these bounds"
        )
    if any((trace.pass_index > 0).any() for trace in traces):
        notes.append(
            "pairs are counted per batch: where a batch has several forward passes, the latency is that of its summed "
            "loads, at most the sum over its passes"
        )
    dropping = sorted({trace.metadata.policy for trace in traces} - {"top_k"})
    if dropping:
        notes.append(
            f"recorded under policy {', '.join(dropping)}, whose dropped experts the pairs still count; better "
            "place by a trace of the vanilla model (top_k)"
        )
    if has_placement:
        notes.append(
            f"the placement in profile {profile.name} is replaced; the default is expert k on device k modulo N"
        )
    if profile.rates == "measured":
        notes.append("the profile's rates are measured; fixed seconds and bursts of its messages are left out")
    return tuple(notes)
