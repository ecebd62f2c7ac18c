"""The rules that search (DES, JESA, CAEE, SiftMoE, LExI, OEA) as slow plain loops that import nothing of ours.

A token is (scores over all experts, its top-k experts, their weights as the model uses them). device_of_expert: -1 is
the base station, where experts cost nothing.
"""

import itertools

from tests.oracles import loads

ROUNDING = 1e-6


def costs_of_experts(device_of_expert, cost_of_device):
    return [cost_of_device[d] if d >= 0 else 0.0 for d in device_of_expert]


def cheapest(items, score, cost, least, most, must=(), fewest=1):
    """-> the cheapest set of at most `most` items that reach the score `least`, the best of equally cheap; or None."""
    sets = [
        chosen
        for size in range(fewest, most + 1)
        for chosen in itertools.combinations(items, size)
        if set(must) <= set(chosen) and sum(score[i] for i in chosen) >= least - ROUNDING
    ]
    if not sets:
        return None
    lowest = min(sum(cost[i] for i in chosen) for chosen in sets)
    as_cheap = [chosen for chosen in sets if sum(cost[i] for i in chosen) <= lowest * (1 + ROUNDING)]
    return set(max(as_cheap, key=lambda chosen: sum(score[i] for i in chosen)))


def by_weight(experts, weights):
    return [expert for _, expert in sorted(zip(weights, experts), key=lambda pair: -pair[0])]


def des(tokens, cost, least, most):
    """-> the set of experts of each token."""
    chosen = []
    for scores, experts, weights in tokens:
        best = cheapest(range(len(scores)), scores, cost, least, most)
        chosen.append(best or set(by_weight(experts, weights)[:most]))
    return chosen


def des_top_k(tokens, cost, least, most, may_lose_all):
    chosen = []
    for scores, experts, weights in tokens:
        falling = by_weight(experts, weights)
        must, fewest = ((), 0) if may_lose_all else (falling[:1], 1)
        best = cheapest(experts, scores, cost, least, most, must, fewest)
        chosen.append(set(falling[:most]) if best is None else best)
    return chosen


def jesa(tokens, is_real_token, device_of_expert, cost_of_device, cost_under_split, least, most, rounds=10):
    """cost_under_split: (device_load, evaluations) -> cost of each device under the best split; None without load."""
    cost, seen = list(cost_of_device), []
    for _ in range(rounds):
        chosen = des(tokens, costs_of_experts(device_of_expert, cost), least, most)
        now = loads(chosen, is_real_token, device_of_expert, len(cost))
        if now in seen:
            break
        seen.append(now)
        cost = [old if new is None else new for old, new in zip(cost, cost_under_split(*now))]
    return chosen


def caee_steps(tokens, is_real_token, device_of_expert, communication, computation, tau):
    """The rule one drop at a time, what may go is asked again before each; -> the sets of experts kept."""
    keep = [dict(zip(experts, weights)) for _, experts, weights in tokens]
    least = [tau * sum(weights) for _, _, weights in tokens]
    top = [experts[weights.index(max(weights))] for _, experts, weights in tokens]
    while True:
        device_load, evaluations = loads(keep, is_real_token, device_of_expert, len(communication))
        time = [v * a + e * b for v, a, e, b in zip(device_load, communication, evaluations, computation)]
        last = time.index(max(time))
        pairs = [
            (weight, j, expert)
            for j, kept in enumerate(keep)
            if is_real_token[j]
            for expert, weight in kept.items()
            if device_of_expert[expert] == last and expert != top[j] and sum(kept.values()) - weight >= least[j]
        ]
        if not pairs:
            return [set(kept) for kept in keep]
        _, j, expert = min(pairs)
        del keep[j][expert]


def caee_rounds(tokens, is_real_token, device_of_expert, communication, computation, tau, rounds):
    """As `caee_steps`, what may go fixed for a round: as many lower experts of a token as may all go together."""
    keep = [dict(zip(experts, weights)) for _, experts, weights in tokens]
    total = [sum(weights) for _, _, weights in tokens]
    top = [experts[weights.index(max(weights))] for _, experts, weights in tokens]

    def times():
        device_load, evaluations = loads(keep, is_real_token, device_of_expert, len(communication))
        return [v * a + e * b for v, a, e, b in zip(device_load, communication, evaluations, computation)]

    for _ in range(rounds):
        time = times()
        candidates = set()
        for j, kept in enumerate(keep):
            left = 1 - tau - (1 - sum(kept.values()) / total[j])
            lower = [
                (-time[device_of_expert[e]], w / total[j], e)
                for e, w in kept.items()
                if is_real_token[j] and device_of_expert[e] >= 0 and e != top[j] and w / total[j] <= left
            ]
            for _, share, expert in sorted(lower):
                left -= share
                if left < -1e-12:
                    break
                candidates.add((j, expert))
        while True:
            time = times()
            last = time.index(max(time))
            pairs = [(keep[j][e], j, e) for j, e in candidates if device_of_expert[e] == last]
            if not pairs:
                break
            _, j, expert = min(pairs)
            candidates.remove((j, expert))
            del keep[j][expert]
    return [set(kept) for kept in keep]


def _cost_of(experts, device_of_expert, of_transfer, of_evaluation):
    used = [e for e in set(experts) if device_of_expert[e] >= 0]
    return sum(of_evaluation[device_of_expert[e]] for e in used) + sum(
        of_transfer[d] for d in {device_of_expert[e] for e in used}
    )


def _most_harm(token, differences, eta, relative):
    _, experts, weights = token
    skipping = sum(w * differences[e][-1] for e, w in zip(experts, weights))
    return (eta * skipping if relative else eta) * (1 + ROUNDING)


def _added(phi, weights):
    """-> expert -> weight; slots at one expert become one."""
    answer = {}
    for expert, weight in zip(phi, weights):
        if expert is not None:
            answer[expert] = answer.get(expert, 0.0) + weight
    return answer


def _harm(differences, own, weight, option):
    return 0.0 if option == own else weight * differences[own][-1 if option is None else option]


def sift_moe(tokens, device_of_expert, of_transfer, of_evaluation, differences, eta, relative, may_lose_all):
    """-> expert -> weight of each token, over all choices; None is skipping."""
    answers = []
    for token in tokens:
        scores, experts, weights = token
        most = _most_harm(token, differences, eta, relative)
        best = []
        for phi in itertools.product([*range(len(scores)), None], repeat=len(experts)):
            harm = sum(_harm(differences, *slot) for slot in zip(experts, weights, phi))
            if harm > most or (not may_lose_all and phi[weights.index(max(weights))] is None):
                continue
            cost = _cost_of([e for e in phi if e is not None], device_of_expert, of_transfer, of_evaluation)
            best.append((cost, harm, phi))
        lowest = min(cost for cost, _, _ in best)
        _, phi = min((harm, phi) for cost, harm, phi in best if cost <= lowest * (1 + ROUNDING))
        answers.append(_added(phi, weights))
    return answers


def sift_moe_one_by_one(tokens, device_of_expert, of_transfer, of_evaluation, differences, eta, relative, may_lose_all):
    """-> as `sift_moe`, change by change: k that save most per harm added, k that save most.

    A change moves one slot, or all slots at one device (or all that are skipped), to one expert or skips them.
    """
    answers = []
    for token in tokens:
        scores, experts, weights = token
        most, phi = _most_harm(token, differences, eta, relative), list(experts)

        def cost(phi):
            return _cost_of([e for e in phi if e is not None], device_of_expert, of_transfer, of_evaluation)

        def harm(phi, token=token):
            return sum(_harm(differences, *slot) for slot in zip(*token[1:], phi))

        def at(expert):
            return None if expert is None else device_of_expert[expert]

        for turn in range(2 * len(experts)):
            groups = [{slot} for slot in range(len(experts))]
            groups += [{other for other, e in enumerate(phi) if at(e) == at(expert)} for expert in phi]
            best, changed = 0.0, phi
            for group in groups:
                for option in [*range(len(scores)), None]:
                    new = [option if slot in group else e for slot, e in enumerate(phi)]
                    if not may_lose_all and new[weights.index(max(weights))] is None:
                        continue
                    saved = cost(phi) - cost(new)
                    worth = saved / max(harm(new) - harm(phi), 1e-30) if turn < len(experts) else saved
                    small = ROUNDING * (max(of_transfer) + max(of_evaluation))
                    if saved > small and harm(new) <= most and worth > best * (1 + 1e-9):
                        best, changed = worth, new
            phi = changed
        answers.append(_added(phi, weights))
    return answers


def lexi(losses, budget):
    """-> the least sum of losses over all k_l >= 1, at most `budget` together; losses: per layer, of 1, 2, ..., k."""
    layers, k = len(losses), len(losses[0])
    return min(
        sum(row[count - 1] for row, count in zip(losses, counts))
        for counts in itertools.product(range(1, k + 1), repeat=layers)
        if sum(counts) <= budget
    )


def oea(tokens, is_real_token, k0):
    bases = [by_weight(experts, weights)[:k0] for _, experts, weights in tokens]
    union = {expert for base, counts in zip(bases, is_real_token) if counts for expert in base}
    answers = []
    for (scores, experts, _), base in zip(tokens, bases):
        fill = sorted(union - set(base), key=lambda e: -scores[e])[: len(experts) - k0]
        answers.append(set(base) | set(fill))
    return answers
