/*
The latency engine of the page: recomputes every latency of a run from its embedded counts, Eq. (2) to (11) of the
paper (arXiv 2411.06681) and the bandwidth allocations of wdmoe_opencompass/allocation. The parts of this folder
are one closure, which sets the global WdmoeEngine. All quantities are in SI units, as their names say.

WdmoeEngine.load(counts) -> run            counts: what counts.py makes; decoded once
WdmoeEngine.defaults(run) -> settings      what the user may change; null everywhere: each profile's own value
    {total_bandwidth_hz, payload_bits,     null or a number
     fading,                               null or true: the run's own draw; false: as a profile with fading.model none
     allocation: 'uniform' | 'optimal', scope: 'layer' | 'pass', the latter in hindsight: it needs the loads of all layers
     devices: [{name, distance_m, transmit_power_w}, ...]}   every device of any model, matched by name
WdmoeEngine.own(run, number = 0) -> settings with a model's own numbers in place of null, for the sliders' initial positions
WdmoeEngine.limits -> {key: {above, least, most, whole, unit}}          what a profile allows, as far as it makes sense
WdmoeEngine.known -> {path_loss, duplex, fading, rates, scopes, allocations, phases}: names that the engine knows
WdmoeEngine.applicable(run, settings) -> {key: {applies, reason}}       reason: why not, or for which models not; or ''
    keys: total_bandwidth_hz, payload_bits, distance_m, transmit_power_w, fading, allocation, scope
WdmoeEngine.compute(run, settings) -> {settings, models: [model, ...]}; throws an Error (one sentence) on bad settings
    model: {abbr, routing, profile (the changed one), layers, devices: [names], left_out: {dataset: reason},
            groups: {benchmark: [datasets]}, datasets: {name: DatasetResult}, each computed when it is first read,
            results_of(name): the DatasetResults of a dataset or group, [] where one is left out,
            mean_s(name, per, phase): their pooled mean, or null}
    DatasetResult, with phase 'all' | 'prefill' | 'decode' (default 'all') and per 'pass' | 'batch':
        passes, batches, layers, devices          numbers
        error                                     null, or why its numbers are no optimum or not finite (one sentence)
        largest_gap                               of all allocations solved: (latency - lower bound) / latency
        layer_latency_s   Float64Array [passes * layers]   attention waiting latency, Eq. (11)
        waiting_latency_s Float64Array [passes]            summed over the layers
        waiting_device    Int32Array [passes * layers]     the device that finishes last; -1 without load; the first
                                                           of several that finish together (within TOGETHER)
        mean_s(per, phase)           as pooled_mean of replay.py; null without any such pass
        per_batch_s(phase)           Float64Array [batches] sums of the batch's passes; 0 where it has no such pass
        passes_per_batch(phase)      Float64Array [batches]
        groups(phase)                {items: [[part, first item, items], ...], latency_s, passes, batches}: sums over
                                     the batches of the same items, as BatchSums of report/batches.py
        layer_device_time_s(phase)   [layers] arrays [devices], mean seconds of each device, t_k^i of Eq. (10)
        layer_device_load(phase)     [layers] arrays [devices], mean tokens per pass, Eq. (9)
        waited_on(phase)             [layers] arrays [devices], share of the passes in which the layer waited on the
                                     device; n devices that finish together count 1 / n each (under an optimal
                                     allocation of scope layer all loaded ones do)
        Means and shares are over the passes of the phase, 0 without any.
WdmoeEngine.pooled_mean([DatasetResult, ...], per, phase) -> seconds or null: several datasets read as one
WdmoeEngine.changed_profile(run, model number or abbr, settings) -> the channel profile with the changes, plain object
WdmoeEngine.to_yaml(profile) -> text of a profile file: `wdmoe profile validate` takes it, and `wdmoe replay` with it
    gives the page's numbers; its `origin` states what it did, so a changed value is the user's own
WdmoeEngine.origin_sentence(profile) -> which values come from the paper, a fit, an assumption, a tool or the user, as
    channel/origin.py says it

counts = {format: 1, most_bytes, models: [{abbr, routing, profile, profile_hash, hidden_size, ffn_size, layers, devices,
    groups, run_draws, left_out, datasets: {name: {passes, batches, parts: [{name, batches}], rows, load, extra, index,
    passes_of_batch, first_item, items, phase, draws, draw}}}]}; packed arrays are {dtype, data}, see counts.py. The
profile is as its file has it, but for a fading seed beyond 2^53, which is a text.

Every result depends on the counts and the settings alone, not on what was computed before. It agrees with `wdmoe
replay`: uniform and measured to rounding, optimal of scope layer to 1e-9, optimal of scope pass to the gap of 1e-7 that
both prove (per pass; single layers of a pass can differ by more where several splits are equally good).
*/
globalThis.WdmoeEngine = {
  load,
  defaults,
  own,
  limits,
  known: {
    path_loss: Object.keys(PATH_LOSS_MODELS),
    duplex: DUPLEX_MODES,
    fading: FADING_MODELS,
    rates: RATES,
    scopes: SCOPES,
    allocations: ALLOCATIONS,
    phases: PHASES,
  },
  applicable,
  compute,
  pooled_mean,
  changed_profile,
  origin_sentence,
  to_yaml,
};
