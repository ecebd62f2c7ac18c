"""The latency engine: waiting latency of a recorded run under any allocation, fading draw and bandwidth; no model."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from .allocation import allocate
from .channel.plausibility import culprit
from .channel.profile import ChannelProfile
from .channel.propagation import Channel, FadingSource
from .energy import Energy, pass_energy
from .errors import AllocationError, TraceError
from .latency import Array, ExpertShape, LinkBudget, link_budget, waiting_latency_s
from .trace.format import PHASES, RoutingTrace

CHUNK_NUMBERS = 250_000  # of an array of loads: a few MB, so that a chunk's work stays in the processor's caches
WORKERS = 2
Advance = Callable[[float], None]


def ignore(share: float) -> None:
    """Default of callers that show no progress."""


@dataclass(frozen=True)
class ReplayedLatency:
    """What every recorded forward pass takes with the run's own channel draws.

    layer_latency_s: [passes, layers] attention waiting latency, Eq. (11)
    """

    trace: RoutingTrace
    layer_latency_s: Array
    energy: Energy

    @property
    def waiting_latency_s(self) -> Array:
        """-> [passes] summed over the layers."""
        return self.layer_latency_s.sum(axis=1)

    @property
    def request_latency_s(self) -> Array:
        """-> [requests] seconds that each item of the dataset waits in all its batches, in the order of the items.

        An item without a token in a recording waits for no pass and is no request.

        In a batch it waits for every pass from the first to the one that gives its last token, whichever rows a pass
        also serves: batches run in lockstep. Under perplexity an item is in one batch per possible answer.
        """
        trace = self.trace
        first_pass = np.searchsorted(trace.batch, np.arange(len(trace.items)))
        is_request = trace.item_passes > 0
        last_pass = (np.repeat(first_pass, trace.items) + trace.item_passes - 1)[is_request]
        in_batch_s = np.concatenate([np.zeros(0), *map(np.cumsum, np.split(self.waiting_latency_s, first_pass[1:]))])
        _, item = np.unique(trace.item_numbers[is_request], return_inverse=True)
        return np.bincount(item, weights=in_batch_s[last_pass]).astype(np.float64)

    def mean_s(self, per: str, phase: str) -> float | None:
        """Mean waiting latency per pass or batch; None without any such pass."""
        return self.mean(self.waiting_latency_s, per, phase)

    def mean(self, values: Array | None, per: str, phase: str) -> float | None:
        """Mean over forward passes, or over batches of the sum of their passes.

        values: [passes], or None.
        per, phase: `pass` or `batch`; which passes count, as `RoutingTrace.is_phase` names them.
        """
        return pooled_mean([self], lambda _: values, per, phase)

    def records(self) -> list[dict]:
        """One record per pass: dataset, batch, pass, phase, layer_latency_s, waiting_latency_s and energies."""
        trace, energy = self.trace, self.energy
        computation = energy.computation_j
        return [
            {
                "dataset": trace.metadata.dataset,
                "batch": int(trace.batch[n]),
                "pass": int(trace.pass_index[n]),
                "phase": PHASES[int(trace.phase[n])],
                "layer_latency_s": self.layer_latency_s[n].tolist(),
                "waiting_latency_s": float(self.waiting_latency_s[n]),
                "downlink_energy_j": float(energy.downlink_j[n]),
                "uplink_energy_j": float(energy.uplink_j[n]),
                "computation_energy_j": None if computation is None else float(computation[n]),
            }
            for n in range(len(trace.batch))
        ]


def pooled_mean(
    parts: Sequence[ReplayedLatency], values_of: Callable[[ReplayedLatency], Array | None], per: str, phase: str
) -> float | None:
    """Mean over the forward passes, or batches, of several traces read as one; None without any or without values."""
    total, count = 0.0, 0
    for part in parts:
        values, chosen = values_of(part), part.trace.is_phase(phase)
        if values is None:
            return None
        total += float(values[chosen].sum())
        count += int(chosen.sum()) if per == "pass" else len(np.unique(part.trace.batch[chosen]))
    return total / count if count else None


@dataclass(frozen=True)
class DrawnLatency:
    """Mean waiting latency per pass over a trace, for many fading draws; equal draw numbers meet equal fading.

    mean_latency_s: [draws] mean over the trace's passes; draw 0 is the run's own.

    Under Rayleigh fading a gain can be arbitrarily close to 0, and 1 / rate then grows so fast that the expected
    latency is infinite, for every allocator: mean_s and standard_error_s describe the draws at hand and converge to
    nothing. Quantiles are sound; compare those.
    """

    mean_latency_s: Array

    @property
    def mean_s(self) -> float:
        """Mean over the draws."""
        return float(self.mean_latency_s.mean())

    @property
    def standard_error_s(self) -> float | None:
        """Standard deviation over the square root of the draws (fading alone, the trace is given); None for one."""
        draws = len(self.mean_latency_s)
        return float(self.mean_latency_s.std(ddof=1) / np.sqrt(draws)) if draws > 1 else None

    def saving_over(self, other: "DrawnLatency") -> Array | None:
        """Saving against `other`, draw by draw.

        Returns: [draws] 1 - latency / other's latency; None where the other waits 0 s in a draw.
        """
        if not other.mean_latency_s.all():
            return None
        return 1 - self.mean_latency_s / other.mean_latency_s

    def quantile_s(self, share: float) -> float:
        """Quantile over the draws of the mean latency per pass."""
        return float(np.quantile(self.mean_latency_s, share))

    def quantile_interval_s(self, share: float, confidence: float = 0.95) -> tuple[float, float] | None:
        """Order statistics that enclose the fading law's quantile, whatever the law; None for too few draws."""
        draws = len(self.mean_latency_s)
        low, high = binom.ppf([(1 - confidence) / 2, (1 + confidence) / 2], draws, share)
        if not (low >= 1 and high < draws):
            return None
        ordered = np.sort(self.mean_latency_s)
        return float(ordered[int(low) - 1]), float(ordered[int(high)])


def replay(
    trace: RoutingTrace, profile: ChannelProfile, method: str, scope: str, advance: Advance = ignore
) -> ReplayedLatency:
    """Waiting latency, Eq. (11), and energy of every pass under a bandwidth allocation of the given method and scope.

    scope: `layer`, one split per layer, or `pass`, one per forward pass in hindsight; see `allocation.allocate`.
    The draw of each pass and layer is the one the run itself met, if the profile is the run's. `advance` is told the
    share of the work that each chunk was. Raises TraceError where the profile has other devices or another placement
    than the run: the recorded loads would mean nothing.
    """
    check_same_devices(trace, profile)
    distinct = _Distinct.of_passes(trace, profile)
    latency = np.zeros((len(distinct.rows), trace.metadata.layers))
    parts: list[Energy] = []
    for rows in _chunks(len(distinct.rows), distinct.numbers_per_pass):
        part = distinct.only(rows)
        budget = part.budget(next(_channels(trace, profile, part, [1])), 1)
        answer = allocate(method, scope, budget, part.load, profile.total_bandwidth_hz, part.evaluations)
        latency[rows] = answer.layer_latency_s
        parts.append(pass_energy(profile, part.shape, budget, answer.bandwidth_hz, part.load, part.evaluations))
        advance(len(rows) / len(distinct.rows))
    return ReplayedLatency(trace, latency[distinct.back], _join(parts, distinct))


def replay_draws(
    trace: RoutingTrace,
    profile: ChannelProfile,
    method: str,
    scope: str,
    draws: int,
    advance: Advance = ignore,
    max_layers: int | None = None,
) -> DrawnLatency:
    """As `replay` for many fading draws, in chunks of passes and draws of bounded memory.

    `coherence: run` draws one channel per draw, `pass` and `layer` one per pass or layer and draw. Draw n is the same
    for every method, scope, bandwidth, distance and trace (common random numbers; where the fading changes within a
    run, for passes of the same moment): differences between two calls are paired.

    max_layers: at most this many distinct layers of the trace are solved per draw (scope `layer`, one draw for the
    whole run; the even split, which costs little, always takes all). If the trace has more, they are sampled at points
    spread evenly over the tokens of all layers in order of their size: a layer's latency grows nearly in proportion to
    its tokens, so the mean is off by some 0.0003 of itself with 1,024 (our choice)

    Raises TraceError for a trace without a forward pass, AllocationError where a latency is not finite.
    """
    check_same_devices(trace, profile)
    if not len(trace.batch):
        raise TraceError(f"the trace of {trace.metadata.dataset} holds no forward pass")
    layers_apart = scope == "layer" and is_constant(profile)
    distinct = (_Distinct.of_layers if layers_apart else _Distinct.of_passes)(trace, profile)
    if layers_apart and max_layers is not None and len(distinct.rows) > max_layers and method != "uniform":
        distinct = distinct.sample(max_layers)
    total_s = np.zeros(draws)
    waiting: deque[tuple[slice, float, Future[Array]]] = deque()

    def collect() -> None:
        chosen, share, future = waiting.popleft()
        total_s[chosen] += future.result()
        advance(share)

    with ThreadPoolExecutor(WORKERS) as pool:
        for rows in _chunks(len(distinct.rows), distinct.numbers_per_pass):
            part = distinct.only(rows)
            per_chunk = max(1, CHUNK_NUMBERS // max(1, part.load.size))
            starts = range(0, draws, per_chunk)
            sizes = (min(per_chunk, draws - start) for start in starts)
            for start, channel in zip(starts, _channels(trace, profile, part, sizes), strict=True):
                size = len(channel.downlink_gain)
                share = size / draws * len(rows) / len(distinct.rows)
                future = pool.submit(part.summed_latency_s, channel, method, scope)
                waiting.append((slice(start, start + size), share, future))
                if len(waiting) > WORKERS:  # no more chunks in memory than are worked on
                    collect()
        while waiting:
            collect()
    if not np.isfinite(total_s).all():
        raise AllocationError(
            f"a latency is beyond what numbers can hold; channel profile {profile.name}: {culprit(profile)}"
        )
    return DrawnLatency(total_s / len(trace.batch))


@dataclass(frozen=True)
class _Distinct:
    """The passes that have to be solved: where the channel is one for all, passes of equal counts are solved once.

    rows: [distinct] their numbers in the trace; back: [passes] which of them equals each pass; weight: [distinct]
    how many passes equal each. load, evaluations: [distinct, layers, devices]. Of `of_layers` each layer of a pass
    is a pass of its own.
    """

    rows: NDArray
    back: NDArray
    weight: Array
    load: Array
    evaluations: Array
    profile: ChannelProfile
    shape: ExpertShape

    @classmethod
    def of_passes(cls, trace: RoutingTrace, profile: ChannelProfile) -> "_Distinct":
        return cls._of(trace, profile, trace.device_load, trace.expert_evaluations)

    @classmethod
    def of_layers(cls, trace: RoutingTrace, profile: ChannelProfile) -> "_Distinct":
        """For an allocation of scope `layer` under one channel: equal layers of any passes are solved once."""
        devices = trace.device_load.shape[2]
        alone = (array.reshape(-1, 1, devices) for array in (trace.device_load, trace.expert_evaluations))
        return cls._of(trace, profile, *alone)

    @classmethod
    def _of(cls, trace: RoutingTrace, profile: ChannelProfile, load: NDArray, evaluations: NDArray) -> "_Distinct":
        passes = len(load)
        rows = back = np.arange(passes)
        if is_constant(profile) and passes:
            both = np.concatenate([load, evaluations], axis=1).reshape(passes, -1)
            _, rows, back = np.unique(both, axis=0, return_index=True, return_inverse=True)
        back = back.ravel()
        weight = np.bincount(back, minlength=len(rows)).astype(float)
        shape = ExpertShape(trace.metadata.hidden_size, trace.metadata.ffn_size)
        return cls(rows, back, weight, load[rows].astype(float), evaluations[rows].astype(float), profile, shape)

    @property
    def numbers_per_pass(self) -> int:
        return max(1, self.load[0].size) if len(self.load) else 1

    def sample(self, points: int) -> "_Distinct":
        """-> layers at points spread evenly over all tokens, smallest layers first; each with an equal part of them.

        The weights make every sum that is proportional to a layer's tokens the one over all layers.
        """
        tokens = self.load.sum(axis=(1, 2))
        order = np.argsort(tokens, kind="stable")
        order = order[tokens[order] > 0]
        passed = np.cumsum((self.weight * tokens)[order])
        if not len(order):
            return self
        at = np.searchsorted(passed, (np.arange(points) + 0.5) / points * passed[-1])
        rows, hits = np.unique(order[at], return_counts=True)
        return replace(self.only(rows), weight=hits * passed[-1] / points / tokens[rows])

    def only(self, rows: NDArray) -> "_Distinct":
        return _Distinct(
            self.rows[rows],
            self.back,
            self.weight[rows],
            self.load[rows],
            self.evaluations[rows],
            self.profile,
            self.shape,
        )

    def budget(self, channel: Channel, draws: int) -> LinkBudget:
        """Gains [draws, passes or 1, layers or 1, devices] -> SNRs [draws * passes or 1, layers or 1, devices]."""

        def flat(gains: Array) -> Array:
            if gains.shape[0] * gains.shape[1] > 1:
                gains = np.broadcast_to(gains, (draws, len(self.rows), *gains.shape[2:]))
            return gains.reshape(-1, *gains.shape[2:])

        return link_budget(self.profile, Channel(flat(channel.downlink_gain), flat(channel.uplink_gain)), self.shape)

    def summed_latency_s(self, channel: Channel, method: str, scope: str) -> Array:
        """-> [draws] waiting latency summed over all passes that equal these."""
        draws, total_hz = len(channel.downlink_gain), self.profile.total_bandwidth_hz
        if method == "uniform":  # the even split is known: nothing has to be repeated per draw
            budget, even_hz = link_budget(self.profile, channel, self.shape), total_hz / len(self.profile.devices)
            latency_s = waiting_latency_s(budget, even_hz, self.load, self.evaluations)  # [draws, passes, layers]
            return np.broadcast_to(latency_s, (draws, *self.load.shape[:2])).sum(axis=2) @ self.weight

        def repeat(array: Array) -> Array:
            return np.broadcast_to(array, (draws, *array.shape)).reshape(-1, *array.shape[1:])

        answer = allocate(
            method, scope, self.budget(channel, draws), repeat(self.load), total_hz, repeat(self.evaluations)
        )
        return answer.waiting_latency_s.reshape(draws, -1) @ self.weight


def is_constant(profile: ChannelProfile) -> bool:
    """Whether one draw holds for the whole run."""
    return profile.fading.model == "none" or profile.fading.coherence == "run"


def _channels(
    trace: RoutingTrace, profile: ChannelProfile, passes: _Distinct, sizes: Iterable[int]
) -> Iterator[Channel]:
    """Gains of the next sizes[0], sizes[1], ... draws: [draws, passes or 1, layers or 1, devices] each."""
    if is_constant(profile):
        sources = [[FadingSource(profile, "", 0, 0, 0)]]
    else:
        layers = range(trace.metadata.layers) if profile.fading.coherence == "layer" else range(1)
        items_before = trace.items_before[trace.batch[passes.rows]].tolist()
        moments = list(zip(items_before, trace.pass_index[passes.rows].tolist(), strict=True))
        dataset = trace.metadata.dataset
        sources = [[FadingSource(profile, dataset, *moment, layer) for layer in layers] for moment in moments]
    for draws in sizes:
        drawn = [[source.draw(draws) for source in row] for row in sources]
        down, up = (
            np.array([[getattr(channel, gain) for channel in row] for row in drawn]).transpose(2, 0, 1, 3)
            for gain in ("downlink_gain", "uplink_gain")
        )
        yield Channel(down, up)


def _chunks(rows: int, numbers_per_row: int) -> Iterator[NDArray]:
    per_chunk = max(1, CHUNK_NUMBERS // max(1, numbers_per_row))
    for start in range(0, rows, per_chunk):
        yield np.arange(start, min(start + per_chunk, rows))


def _join(parts: list[Energy], distinct: _Distinct) -> Energy:
    def all_passes(arrays: list[Array]) -> Array:
        return np.concatenate(arrays)[distinct.back] if arrays else np.zeros(0)

    computation = [part.computation_j for part in parts if part.computation_j is not None]
    return Energy(
        all_passes([part.downlink_j for part in parts]),
        all_passes([part.uplink_j for part in parts]),
        all_passes(computation) if len(computation) == len(parts) else None,
    )


def check_same_devices(trace: RoutingTrace, profile: ChannelProfile) -> None:
    """Raise TraceError unless the profile has the devices and the placement of the run."""
    own = trace.metadata.profile
    for what, ours, theirs in (
        ("devices", [d.name for d in own.devices], [d.name for d in profile.devices]),
        ("placement", own.placement, profile.placement),
    ):
        if ours != theirs:
            raise TraceError(
                f"the trace of {trace.metadata.dataset} was recorded with the {what} of profile {own.name!r}, "
                f"which differ from those of {profile.name!r}; its loads cannot be used there"
            )
