// ---- channel and placement

function changedProfile() {
  return WdmoeEngine.changed_profile(run, view.model, settings);
}

function waitedShare() {
  const results = chosenResults(),
    waited = results.length && !errorOf(results) ? pooledLayers(results, view.phase, "waited_on") : null;
  return waited && waited[0].map((_, device) => sum(waited.map((ofLayer) => ofLayer[device])) / waited.length);
}

const expertsOf = (device) =>
  (models.get(view.model).device_of_expert ?? [])
    .map((holder, expert) => (holder === device ? expert : -1))
    .filter((expert) => expert >= 0);

function drawChannel() {
  if (!run.models.some((model) => model.abbr === view.model)) {
    byId("channel-lead").textContent = "No model of this run has a trace, so there is no channel to draw.";
    return;
  }
  const profile = changedProfile(),
    waited = waitedShare(),
    measured = profile.rates === "measured";
  const elsewhere = expertsOf(-1);
  byId("channel-lead").textContent =
    `Profile ${profile.name}${isOwn() ? "" : " with the changes of the controls"}: ${measured ? "measured rates" : `${exact(profile.total_bandwidth_hz / 1e6)} MHz, ${profile.path_loss.replace(/_/g, " ")} path loss, fading ${profile.fading.model}, base station ${profile.base_station.transmit_power_w} W`}; ${profile.payload_bits} bits per value. Colour: how often a layer of ${view.model} on ${view.benchmark} waited for the device.${elsewhere.length ? ` The base station itself holds ${elsewhere.length === 1 ? "expert" : "experts"} ${elsewhere.join(", ")}.` : ""}`;
  byId("channel-origin").textContent =
    `Values of this profile${isOwn() ? "" : " as changed"}: ${WdmoeEngine.origin_sentence(profile)}.`;
  replace("map", mapOf(profile, waited, measured));
  const share = (device) =>
    waited ? { content: `${fixed(100 * waited[device], 1)} %`, "data-value": waited[device] } : "–";
  const experts = (device) => expertsOf(device).join(", ") || "none";
  const columns = [
    { title: "device" },
    { title: "experts", class: "text" },
    ...(measured
      ? [{ title: "downlink (Mbit/s)" }, { title: "uplink (Mbit/s)" }, { title: "fixed (ms)" }, { title: "burst (kbit)" }]
      : [{ title: "metres" }, { title: "watts" }]),
    { title: "GFLOP/s" },
    { title: "waited for" },
  ];
  scrollable(
    "table-devices",
    table(
      "Devices",
      columns,
      profile.devices.map((device, k) => [
        device.name,
        experts(k),
        ...(measured
          ? [
              short(device.downlink_bit_per_s / 1e6),
              short(device.uplink_bit_per_s / 1e6),
              short(1e3 * (device.fixed_s ?? 0)),
              short((device.burst_bit ?? 0) / 1e3),
            ]
          : [exact(device.distance_m), exact(device.transmit_power_w)]),
        short(device.compute_flops / 1e9),
        share(k),
      ]),
    ),
  );
}

function mapOf(profile, waited, measured) {
  const size = 360,
    centre = size / 2,
    reach = 118,
    far = Math.max(...profile.devices.map((device) => device.distance_m));
  const radius = (metres) => (measured ? reach : 26 + (reach - 26) * (metres / far));
  const step = 10 ** Math.floor(Math.log10(far)),
    rings = [];
  for (
    let metres = far / step > 5 ? 2 * step : far / step > 2 ? step : step / 2, add = metres;
    metres <= far && !measured;
    metres += add
  )
    rings.push(metres);
  const low = ramp("--heat-low"),
    high = ramp("--heat-high"),
    most = waited ? Math.max(...waited, 1e-9) : 1;
  const title = svg("title");
  title.textContent = "Devices around the base station at their distances; the table next to it holds the same numbers";
  const picture = svg(
    "svg",
    { viewBox: `0 18 ${size} ${size - 30}`, role: "img", "aria-label": title.textContent },
    title,
  );
  for (const metres of rings) {
    const label = svg("text", { x: centre + 3, y: centre - radius(metres) - 2, class: "soft" });
    label.textContent = `${short(metres)} m`;
    picture.append(svg("circle", { cx: centre, cy: centre, r: radius(metres), class: "ring" }), label);
  }
  const count = profile.devices.length;
  const points = profile.devices.map((device, k) => {
    const angle = -Math.PI / 2 + (2 * Math.PI * (k + 0.5)) / count;
    return [
      centre + radius(device.distance_m) * Math.cos(angle),
      centre + radius(device.distance_m) * Math.sin(angle),
      angle,
    ];
  });
  for (const [x, y] of points) picture.append(svg("line", { x1: centre, y1: centre, x2: x, y2: y, class: "link" }));
  picture.append(svg("rect", { x: centre - 9, y: centre - 9, width: 18, height: 18, rx: 4, fill: style("--accent") }));
  points.forEach(([x, y, angle], k) => {
    const rgb = low.map((from, n) => Math.round(from + ((high[n] - from) * (waited ? waited[k] : 0)) / most));
    const side = Math.cos(angle) > 0.3 ? "start" : Math.cos(angle) < -0.3 ? "end" : "middle";
    const dx = side === "start" ? 13 : side === "end" ? -13 : 0,
      dy = side === "middle" ? (Math.sin(angle) > 0 ? 24 : -22) : -2;
    const name = svg("text", { x: x + dx, y: y + dy, "text-anchor": side }),
      held = svg("text", { x: x + dx, y: y + dy + 12, "text-anchor": side, class: "soft" });
    name.textContent = shorten(profile.devices[k].name, 14);
    const experts = expertsOf(k);
    held.textContent = experts.length
      ? `expert${experts.length > 1 ? "s" : ""} ${shorten(experts.join(", "), 14)}`
      : "no expert";
    picture.append(
      svg("circle", {
        ...{ cx: x, cy: y, r: 9, fill: `rgb(${rgb})`, stroke: style("--ink"), "stroke-width": 1.5 },
        ...(waited ? { "data-waited": waited[k] } : {}),
      }),
      name,
      held,
    );
  });
  return picture;
}
