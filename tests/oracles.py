"""The paper's equations once more, as slow plain loops that import nothing of ours."""

import math


def path_loss_db(distance_m, frequency_hz):
    return 32.4 + 20 * math.log10(frequency_hz / 1e9) + 20 * math.log10(distance_m)


def rate(bandwidth_hz, power_w, gain, noise_psd_w_per_hz):
    if bandwidth_hz == 0:
        return 0.0
    return bandwidth_hz * math.log2(1 + power_w * gain / (noise_psd_w_per_hz * bandwidth_hz))


def token_latency(bandwidth_hz, down_power_w, up_power_w, gain, noise, payload_bits, m, m_h, compute_flops):
    bits = payload_bits * m
    flop = 4 * m * m_h + 2 * m_h * m + 4 * m_h + m_h
    return (
        bits / rate(bandwidth_hz, down_power_w, gain, noise)
        + bits / rate(bandwidth_hz, up_power_w, gain, noise)
        + (flop / compute_flops)
    )


def replay(tokens_by_layer, token_latency_s):
    """Eq. (9) to (11) token by token: each layer is a list of tokens, each token the list of its devices."""
    total = 0.0
    for tokens in tokens_by_layer:
        busy = [0.0] * len(token_latency_s)
        for devices in tokens:
            for k in devices:
                busy[k] += token_latency_s[k]
        total += max(busy)
    return total


def loads(chosen, is_real_token, device_of_expert, devices):
    """Eq. (9) token by token: -> tokens sent to each device, (token, expert) pairs computed there."""
    sent, computed = [0] * devices, [0] * devices
    for experts, counts in zip(chosen, is_real_token):
        if not counts:
            continue
        places = [device_of_expert[expert] for expert in experts if device_of_expert[expert] >= 0]
        for place in set(places):
            sent[place] += 1
        for place in places:
            computed[place] += 1
    return sent, computed


def algorithm_1(weights, chosen, communication, computation, device_of_expert, theta, step, gain, extra_pass):
    """Algorithm 1 step by step; -> the sets of experts that each token keeps.

    weights: per token its softmax over all experts; chosen: per token its top-k experts; communication, computation:
    seconds per device; device_of_expert: -1 is the base station.
    """
    kept = [sorted(experts, key=lambda k: -w[k]) for w, experts in zip(weights, chosen)]
    latency = [communication[d] + computation[d] if d >= 0 else 0.0 for d in device_of_expert]

    def total_wlr():
        total = 0.0
        for device in range(len(communication)):
            numerator = denominator = 0.0
            for w, experts in zip(weights, kept):
                here = [k for k in experts if device_of_expert[k] == device]
                if here:
                    numerator += sum(w[k] for k in here)
                    denominator += communication[device] + len(here) * computation[device]
            total += numerator / denominator if denominator else 0.0
        return total

    def similarity(w):
        dot = sum(a * b for a, b in zip(w, latency))
        return dot / math.sqrt(sum(a * a for a in w)) / math.sqrt(sum(b * b for b in latency))

    def drop(threshold):
        for w, experts in zip(weights, kept):
            if similarity(w) < threshold and len(experts) > 1:
                experts.pop()

    initial, rounds = total_wlr(), 0
    if initial == 0:
        return [set(experts) for experts in kept]
    while total_wlr() <= gain * initial and theta + rounds * step <= 1 + 1e-9:
        drop(theta + rounds * step)
        rounds += 1
    if extra_pass:
        drop(theta + rounds * step)
    return [set(experts) for experts in kept]


def algorithm_2(weights, chosen, seconds_per_token, device_of_expert, factor, loaded_only=False, visits_only=False):
    """Algorithm 2 step by step, Eq. (30) to (32); -> the sets of experts that each token keeps.

    weights: per token its softmax over all experts; chosen: per token its top-k experts in the router's order;
    seconds_per_token: tbar_k per device; device_of_expert: -1 is the base station.
    """
    kept = [set(experts) for experts in chosen]
    devices = range(len(seconds_per_token))
    tokens = [sum(any(device_of_expert[e] == k for e in experts) for experts in chosen) for k in devices]
    predicted = [seconds_per_token[k] * tokens[k] for k in devices]
    ascending = sorted(t for t, own in zip(predicted, tokens) if own or not loaded_only)
    if not ascending:
        return kept
    position = 0.75 * (len(ascending) - 1)
    below = int(position)
    above = min(below + 1, len(ascending) - 1)
    quartile = ascending[below] + (position - below) * (ascending[above] - ascending[below])
    worst = max(devices, key=lambda k: (predicted[k], -k))
    if not predicted[worst] > factor * quartile:
        return kept
    most = math.floor((predicted[worst] - quartile) / seconds_per_token[worst] + 1e-9)
    there = [(w[e], j, e) for j, (w, own) in enumerate(zip(weights, chosen)) for e in own]
    there = [pair for pair in there if device_of_expert[pair[2]] == worst]
    mean = sum(w for w, _, _ in there) / len(there)
    candidates = []
    for w, j, e in there:
        by_weight = sorted(range(len(chosen[j])), key=lambda place: (-weights[j][chosen[j][place]], place))
        is_lowest = chosen[j][by_weight[-1]] == e and len(by_weight) > 1
        others = sum(device_of_expert[other] == worst for other in chosen[j] if other != e)
        if is_lowest and w < mean and not (visits_only and others):
            candidates.append((w, j, e))
    for _, j, e in sorted(candidates)[:most]:
        kept[j].discard(e)
    return kept
