"""The rival policies once more, as slow plain loops that import nothing of ours.

Everywhere: weights, per token one weight per expert; chosen, per token its top-k experts in the router's order; only
real tokens are given. The answers are the experts that each token keeps, as sets.
"""

import math


def by_rank(w, experts):
    """The highest weight first; equal ones in the router's order."""
    return [e for _, e in sorted(enumerate(experts), key=lambda pair: (-w[pair[1]], pair[0]))]


def fixed_k(weights, chosen, k):
    return [set(by_rank(w, experts)[:k]) for w, experts in zip(weights, chosen)]


def naee(weights, chosen, beta):
    kept = []
    for w, experts in zip(weights, chosen):
        first, *others = by_rank(w, experts)
        kept.append({first} | {e for e in others if not w[e] / w[first] < beta})
    return kept


def one_t(weights, chosen, threshold_of_expert, may_lose_all):
    kept = []
    for w, experts in zip(weights, chosen):
        total = sum(w[e] for e in experts)
        stays = {e for e in experts if not w[e] / total < threshold_of_expert[e]}
        kept.append(stays if may_lose_all else stays | {by_rank(w, experts)[0]})
    return kept


def device_loads(chosen, by, communication, computation, device_of_expert):
    """-> per device its pairs, or its time: a token goes once to a device that holds several of its experts."""
    loads = []
    for device in range(len(communication)):
        device_load = pairs = 0
        for experts in chosen:
            here = [e for e in experts if device_of_expert[e] == device]
            device_load += bool(here)
            pairs += len(here)
        loads.append(device_load * communication[device] + pairs * computation[device] if by == "time" else pairs)
    return loads


def load_aware_thresholds(loads, threshold, max_threshold, device_of_expert):
    """-> per expert its threshold."""
    mean = sum(loads) / len(loads)
    rho = [load / mean if mean else 0.0 for load in loads]
    of_device = [max_threshold if share > 1 else threshold * share for share in rho]
    return [of_device[device] if device >= 0 else 0.0 for device in device_of_expert]


def adapmoe(weights, chosen, threshold, h):
    return one_t(weights, chosen, [math.sqrt(threshold / h)] * len(weights[0]) if weights else [], may_lose_all=False)


def top_p(weights, chosen, p):
    kept = []
    for w, experts in zip(weights, chosen):
        total, reached, stays = sum(w[e] for e in experts), 0.0, set()
        for e in by_rank(w, experts):
            stays.add(e)
            reached += w[e] / total
            if reached > p:
                break
        kept.append(stays)
    return kept


def caps(by, gamma, k, tokens, experts, communication, computation, device_of_expert):
    """-> per expert who is capped for it (None: nobody), and the cap of each of these."""

    def whole(cap):
        return math.ceil(cap - 1e-9)

    if by == "tokens":
        holders = [e if device_of_expert[e] >= 0 else None for e in range(experts)]
        return holders, {e: whole(gamma * k * tokens / experts) for e in range(experts)}
    holders = [device if device >= 0 else None for device in device_of_expert]
    if by == "device":
        each = whole(gamma * k * tokens / experts)
        return holders, {d: each * device_of_expert.count(d) for d in range(len(communication))}
    speed = [1 / (a + b) for a, b in zip(communication, computation)]
    return holders, {d: whole(gamma * k * tokens * s / sum(speed)) for d, s in enumerate(speed)}


def capacity(weights, chosen, holders, cap, may_lose_all):
    kept = [set(experts) for experts in chosen]
    tops = [by_rank(w, experts)[0] for w, experts in zip(weights, chosen)]
    for holder, most in cap.items():
        pairs = [(j, slot) for j, experts in enumerate(chosen) for slot, e in enumerate(experts)]
        pairs = [(j, slot) for j, slot in pairs if holders[chosen[j][slot]] == holder]

        def order(pair):
            j, slot = pair
            e = chosen[j][slot]
            return not (not may_lose_all and e == tops[j]), -weights[j][e], j, slot

        for j, slot in sorted(pairs, key=order)[most:]:
            if may_lose_all or chosen[j][slot] != tops[j]:
                kept[j].discard(chosen[j][slot])
    return kept


def expanded_drop(weights, chosen, holders, cap, may_lose_all, device_of_expert, all_are_local):
    kept = capacity(weights, chosen, holders, cap, may_lose_all)
    room = {holder: most - sum(holders[e] == holder for own in kept for e in own) for holder, most in cap.items()}
    applications = []
    for j, (w, experts) in enumerate(zip(weights, chosen)):
        reached = {device_of_expert[e] for e in experts} | {-1}
        for e in range(len(w)):
            is_local = all_are_local or device_of_expert[e] in reached
            if len(kept[j]) < len(experts) and e not in experts and is_local:
                applications.append((-w[e], j, e))
    taken = [[] for _ in chosen]
    for _, j, e in sorted(applications):
        if holders[e] is None or room[holders[e]] > 0:
            taken[j].append(e)
            if holders[e] is not None:
                room[holders[e]] -= 1
    for j, experts in enumerate(chosen):
        best = sorted(taken[j], key=lambda e: (-weights[j][e], e))
        kept[j] |= set(best[: len(experts) - len(kept[j])])
    return kept
