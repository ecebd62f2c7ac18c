"""Exact bandwidth allocation against SLSQP and CVXPY with Clarabel: gaps and times, ratios in one run.

Seeded random loads on the shipped profiles of eight devices. Ends with one line of JSON. The growth plot goes to
outputs/benchmarks/allocation_growth.png.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from wdmoe_opencompass import ExpertShape, allocate, draw_channel, link_budget, load_profile
from wdmoe_opencompass.latency import LinkBudget
from wdmoe_opencompass.replay import replay, replay_draws
from wdmoe_opencompass.trace.format import FORMAT_VERSION, PER_BATCH, PER_PASS, RoutingTrace, TraceMetadata

PROFILES = [load_profile(name) for name in ("paper_8_devices", "near_far_8_devices", "heterogeneous_compute_8_devices")]
DRAWS = 100_000


def seconds(work, rounds=3):
    """Median time of some rounds after one that is not counted."""
    work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def budget_of(profile):
    return link_budget(profile, draw_channel(profile), ExpertShape())


def loads_of(passes, layers, devices=8, seed=0):
    rng = np.random.default_rng(seed)
    load = rng.integers(0, rng.choice([4, 60, 2000], (passes, 1, 1)), (passes, layers, devices)).astype(float)
    return load * (rng.random(load.shape) < 0.9)


def layer_scope():
    gaps, micros, speedups, worst = [], [], [], 0.0
    for seed, profile in enumerate(PROFILES):
        budget, total = budget_of(profile), profile.total_bandwidth_hz
        load = loads_of(10_000, 1, seed=seed)
        exact = allocate("optimal", "layer", budget, load, total, certified=True)
        gaps.append(exact.relative_gap.max())
        per_problem = seconds(lambda: allocate("optimal", "layer", budget, load, total)) / 10_000  # noqa: B023
        few = load[:200]
        slsqp = allocate("slsqp", "layer", budget, few, total).waiting_latency_s
        worst = max(worst, float((exact.waiting_latency_s[:200] / np.maximum(slsqp, 1e-300) - 1)[slsqp > 0].max()))
        slow = seconds(lambda: allocate("slsqp", "layer", budget, few, total), 1) / 200  # noqa: B023
        micros.append(1e6 * per_problem)
        speedups.append(slow / per_problem)
        print(f"layer scope, {profile.name}: {1e6 * per_problem:.2f} us, SLSQP {1e6 * slow:.0f} us, gap {gaps[-1]:.1e}")
    print(f"layer scope: worst excess of optimal over SLSQP {worst:.1e} (relative; negative is better)")
    return dict(layer_gap_max=max(gaps), layer_us_per_problem=max(micros), layer_speedup_slsqp=min(speedups))


def pass_scope():
    gaps, against_slsqp, against_cvxpy = [], [], []
    for seed, profile in enumerate(PROFILES):
        budget, total = budget_of(profile), profile.total_bandwidth_hz
        load = loads_of(256, 32, seed=seed)
        gaps.append(allocate("optimal", "pass", budget, load, total, certified=True).relative_gap.max())
        per_pass = seconds(lambda: allocate("optimal", "pass", budget, load, total)) / 256  # noqa: B023
        slsqp = seconds(lambda: allocate("slsqp", "pass", budget, load[:12], total), 1) / 12  # noqa: B023
        cvxpy = cvxpy_seconds(budget, load[:6], total)
        against_slsqp.append(slsqp / per_pass)
        against_cvxpy.append(cvxpy / per_pass)
        print(
            f"pass scope, {profile.name}: {1e6 * per_pass:.0f} us, SLSQP {1e3 * slsqp:.1f} ms, "
            f"CVXPY with Clarabel {1e3 * cvxpy:.1f} ms, gap {gaps[-1]:.1e}"
        )
    return dict(pass_gap_max=max(gaps), pass_speedup_slsqp=min(against_slsqp), pass_speedup_cvxpy=min(against_cvxpy))


def cvxpy_seconds(budget, load, total):
    """Median time per pass; the problem is compiled once, its loads are parameters."""
    import cvxpy

    layers, devices = load.shape[1:]
    share, finish, tokens = (
        cvxpy.Variable(devices),
        cvxpy.Variable(layers),
        cvxpy.Parameter((layers, devices), nonneg=True),
    )
    scale = budget.payload_bit * np.log(2) / total
    snrs = (budget.downlink_snr_hz / total, budget.uplink_snr_hz / total)
    latency = sum(scale * cvxpy.inv_pos(-cvxpy.rel_entr(share, share + snr)) for snr in snrs) + budget.computation_s
    constraints = [finish[layer] >= cvxpy.multiply(tokens[layer], latency) for layer in range(layers)]
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(finish)), [*constraints, cvxpy.sum(share) == 1])
    times = []
    for one in load:
        tokens.value = one
        started = time.perf_counter()
        problem.solve(solver="CLARABEL")
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def growth():
    """Time against devices x layers; the exponent is the slope of a least-squares line in logarithms."""
    sizes, layer_times, pass_sizes, pass_times = [], [], [], []
    for devices in (8, 32, 128, 512, 1024):
        rng = np.random.default_rng(devices)
        snr = 1e8 * 10 ** rng.uniform(-0.5, 1.5, (2, devices))
        budget = LinkBudget(65536.0, snr[0], snr[1], np.full(devices, 3e-4))
        for layers in (1, 4, 16, 64):
            load = loads_of(max(1, 20_000 // (devices * layers)), layers, devices)
            taken = seconds(lambda: allocate("optimal", "layer", budget, load, 1e8)) / len(load)  # noqa: B023
            sizes.append(devices * layers)
            layer_times.append(taken)
            if layers in (4, 64) or devices == 1024:
                pass_load = load[:4] if layers < 64 else load[:1]
                pass_sizes.append(devices * layers)
                pass_times.append(
                    seconds(lambda: allocate("optimal", "pass", budget, pass_load, 1e8), 1) / len(pass_load)  # noqa: B023
                )
    large = loads_of(1, 32, 1024)
    largest = seconds(lambda: allocate("optimal", "pass", budget, large, 1e8), 1)
    print(f"pass scope, 1024 devices and 32 layers: {largest:.2f} s")
    exponent = np.polyfit(np.log(sizes), np.log(layer_times), 1)[0]
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.loglog(sizes, layer_times, "o", label=f"scope layer, slope {exponent:.2f}")
    axes.loglog(pass_sizes, pass_times, "^", label="scope pass (hindsight)")
    axes.set(xlabel="devices x layers", ylabel="seconds per forward pass", title="exact allocation, one core")
    axes.legend()
    folder = Path("outputs/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "allocation_growth.png")
    return dict(growth_exponent=exponent, pass_1024_devices_s=largest)


def trace_of(passes, profile):
    metadata = TraceMetadata(
        format_version=FORMAT_VERSION, model="random", weights="random", dataset="random", policy="top_k",
        policy_parameters={}, renormalise="model", profile=profile, profile_hash=profile.content_hash, seed=0,
        layers=32, experts=8, top_k=2, hidden_size=4096, ffn_size=14336, dtype="float32", versions={},
    )  # fmt: skip
    sizes = metadata.sizes()
    arrays = {
        name: np.zeros((passes if name in PER_PASS else 1, *(sizes[axis] for axis in axes)), dtype=dtype)
        for name, (dtype, axes) in (PER_PASS | PER_BATCH).items()
    }
    load = loads_of(passes, 32).astype(np.int32)
    return RoutingTrace(metadata, arrays | dict(device_load=load, expert_evaluations=load))


def sweep():
    trace = trace_of(200, PROFILES[0])
    profiles = [
        PROFILES[0].model_copy(update=dict(total_bandwidth_hz=float(hertz))) for hertz in np.linspace(20e6, 120e6, 11)
    ]
    started = time.perf_counter()
    for profile in profiles:
        for scope in ("layer", "pass"):
            replay(trace, profile, "optimal", scope)
    return dict(sweep_s=time.perf_counter() - started)


def draws():
    """In a process of its own: its peak memory is that of the draws."""
    trace = trace_of(1, PROFILES[0])
    started = time.perf_counter()
    replay_draws(trace, PROFILES[0], "optimal", "layer", DRAWS)
    taken = time.perf_counter() - started
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps(dict(draws_100k_s=taken, draws_peak_gb=peak_gb)))


def main():
    figures = layer_scope() | pass_scope() | growth() | sweep()
    done = subprocess.run([sys.executable, __file__, "draws"], capture_output=True, text=True, check=True)
    figures |= json.loads(done.stdout)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))


if __name__ == "__main__":
    draws() if sys.argv[1:] == ["draws"] else main()
