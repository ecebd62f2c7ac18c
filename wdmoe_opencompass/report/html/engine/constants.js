// ---- numbers and names that several parts know, as in Python's files of the same names

const ACTIVATION_FLOPS = 4; // eta of Eq. (5), our choice, as in latency.py
const SMALL_SNR = 1e-4; // below it log1p(u) - u / (1 + u) loses digits and is taken from its series
const SPLIT_STEPS = 100;
const SPLIT_TOLERANCE = 1e-9; // Newton squares it in the step that meets it
const LAYER_STEPS = 100;
const FIRST_GUESS_STEPS = 3;
const LAYER_GAP = 1e-10; // a tenth of what is promised; latencies are shown with far fewer digits
const LARGEST_LOG_STEP = 3;
const PASS_STEPS = 100;
const PASS_GAP = 1e-7;
const MIN_PRODUCT = 4e-12; // of a slack and its multiplier; with smaller ones the bound loses digits
const CENTRING = 0.1;
const TO_BOUNDARY = 0.999;
const SHARE_TO_BOUNDARY = 0.7;
const ACCEPTED_GAP = { layer: 1e-9, pass: 1e-6 };
const ROUNDING = 1e-12; // a lower bound above the upper one by more is no bound
const TOGETHER = 1e-6; // relative difference of finish times that count as equal
const TINY = 1e-300; // keeps a division by 0 finite
const PHASES = ["prefill", "decode"];
const ALLOCATIONS = ["uniform", "optimal"];
const SCOPES = ["layer", "pass"];
const DUPLEX_MODES = ["shared", "frequency_division"];
const FADING_MODELS = ["none", "rayleigh"];
const RATES = ["physical", "measured"];
const ARRAYS = {
  uint8: Uint8Array,
  uint16: Uint16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  float64: Float64Array,
};

const PATH_LOSS_MODELS = {
  free_space: (distance_m, frequency_hz) => 32.4 + 20 * Math.log10(frequency_hz / 1e9) + 20 * Math.log10(distance_m),
};

const limits = {
  total_bandwidth_hz: { above: 0, least: 1, most: 1e15, unit: "Hz" },
  payload_bits: { least: 1, most: 64, whole: true, unit: "bit" },
  distance_m: { above: 0, least: 1e-4, most: 1e14, unit: "m" },
  transmit_power_w: { above: 0, least: 1e-12, most: 1e9, unit: "W" },
};
const DEVICE_KEYS = ["distance_m", "transmit_power_w"];
const PROFILE_KEYS = ["total_bandwidth_hz", "payload_bits"];

const VALUE = 0;
const SLOPE = 1;
const CURVATURE = 2;
const SPLIT = 3; // of frequency division: the downlink's share, and where its search begins
