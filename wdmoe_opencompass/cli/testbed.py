"""`wdmoe testbed`: devices, keys, a whole testbed on one machine. Also `python -m wdmoe_opencompass.cli.testbed`."""

import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .._util.atomic_write import write_whole
from .._util.given_paths import check_folder, check_out_file, check_out_folder
from .._util.number_text import decimal
from ..errors import TestbedError
from .console import Progress, print_event, print_json
from .options import DTYPE_NAMES, AsJson, JsonLines, examples, names, new_app, open_profile, profile_names, run

app = new_app(help="A live testbed: experts on real devices over the network.")

Model = Annotated[str, typer.Option(help="Folder of the model: config.json and safetensors files.")]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, float16, bfloat16, or auto: as the model's config says.", autocompletion=names(DTYPE_NAMES)
    ),
]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads of a device; 0: the default of torch.")]
Compute = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
MessageBytes = Annotated[int, typer.Option(min=1 << 16, max=1 << 30, help="Maximum size of a message.")]


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("wdmoe_opencompass").setLevel(logging.INFO)


def _say(as_json: bool) -> Callable[[str], None]:
    """How a long-running command prints: plain lines, or one JSON object per line."""

    def say(text: str) -> None:
        print_event(dict(said=text)) if as_json else print(text, flush=True)

    return say


@app.command(
    "device",
    epilog=examples("wdmoe testbed device --model DIR --experts 0-3 --listen 127.0.0.1:50051"),
)
def device(
    model: Model,
    experts: Annotated[str, typer.Option(help="Experts to hold in every MoE layer: 0,1 or 0-3.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")],
    keys: Annotated[Path | None, typer.Option(help="Folder with ca.pem and this device's certificate and key.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the device, if the folder holds keys of several.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Rate limit of each direction in Mbit/s.")] = None,
    dtype: Dtype = "auto",
    device: Compute = "cpu",
    threads: Threads = 0,
    message_bytes: MessageBytes = 1 << 26,
    workers: Annotated[int, typer.Option(min=1, help="Messages computed at once.")] = 1,
    waiting: Annotated[int, typer.Option(min=0, help="Messages that may wait; the next one is refused.")] = 8,
    as_json: JsonLines = False,
) -> None:
    """Serve some experts of every MoE layer until a signal arrives."""
    import torch

    from ..testbed.device import DeviceServer, check_address, load_and_report
    from ..testbed.keys import only_device, server_credentials

    _log_to_stderr()
    check_address(listen, keys is not None)
    if threads:
        torch.set_num_threads(threads)
    say = _say(as_json)
    if keys is not None:  # before the weights are read
        check_folder(keys, TestbedError)
        server_credentials(keys, name or only_device(keys))
    held = load_and_report(model, _experts(experts), dtype, device, say)
    bits_per_s = None if rate is None else rate * 1e6
    server = DeviceServer(held, listen, keys, name, bits_per_s, message_bytes, workers, waiting)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.begin_stop())
    server.start()
    host = listen.rpartition(":")[0]
    say(f"listening on {host}:{server.port}{'' if keys is None else ', mutual TLS'}")
    server.wait()


@app.command("keys", epilog=examples("wdmoe testbed keys keys --devices orin1,orin2,nx1,nx2"))
def keys(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; its authority is kept if it has one.")],
    devices: Annotated[str, typer.Option(help="Names of the devices, as in the lab file: a,b,c.")],
    days: Annotated[float, typer.Option(help="Days that the certificates are valid.")] = 365.0,
    as_json: AsJson = False,
) -> None:
    """Make the certificates and keys of a testbed: each device gets ca.pem, NAME.pem and NAME.key, and nothing else."""
    from ..testbed.keys import make_keys

    check_out_folder(folder, TestbedError)
    written = make_keys(folder, [name.strip() for name in devices.split(",") if name.strip()], days)
    if as_json:
        print_json(dict(written=[str(path) for path in written], secret=str(folder / "ca.key")))
        return
    for path in written:
        print(path)
    print(f"keep {folder / 'ca.key'} to yourself: whoever has it can make keys")


@app.command(
    "up",
    context_settings=dict(ignore_unknown_options=True, allow_interspersed_args=False),
    epilog=examples(
        "wdmoe testbed up --model quickstart/model --rate 200,200,100,20",
        "wdmoe testbed up --model quickstart/model -- opencompass my_config.py",
    )
    + "\n\nExit code: that of the command after --, if there is one.",
)
def up(
    model: Model,
    command: Annotated[list[str] | None, typer.Argument(help="Command to run (after --); then end.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="Number of devices.")] = 4,
    rate: Annotated[str, typer.Option(help="Mbit/s of each direction: one number, or one per device.")] = "",
    experts: Annotated[
        str | None, typer.Option(help="Experts of each device: 0,1;2;3. By default device k holds expert k.")
    ] = None,
    lab: Annotated[Path, typer.Option(help="Lab file to write; it is removed at the end.")] = Path("lab.yaml"),
    dtype: Dtype = "auto",
    threads: Threads = 1,
    payload_bits: Annotated[int | None, typer.Option(help="4, 8 or 16; by default the model's own type.")] = None,
    deadline_s: Annotated[float, typer.Option(help="Seconds for one message and its answer.")] = 10.0,
    send_padding: Annotated[
        bool, typer.Option(help="Send padding too: results equal the local model's bit for bit.")
    ] = False,
    namespaces: Annotated[
        bool, typer.Option(help="Use network namespaces with tc tbf if allowed; else devices limit their rates.")
    ] = True,
    as_json: JsonLines = False,
) -> None:
    """Run a testbed on this machine: devices as processes behind links of a given rate."""
    from pydantic import ValidationError

    from ..testbed.local_testbed import local_testbed, namespaces_problem, spread

    _log_to_stderr()
    say = _say(as_json)
    problem = namespaces_problem() if namespaces else "not wanted"
    if namespaces and problem:
        say(f"no network namespaces: {problem}; the devices limit their rates themselves")
    try:
        rates: list[float | None] = [decimal(text) for text in rate.split(",") if text]
    except ValueError as reason:
        raise TestbedError(f"--rate must be numbers of Mbit/s like 200,200,100,20, got {rate!r} ({reason})") from None
    if any(mbit_per_s is None or mbit_per_s <= 0 for mbit_per_s in rates):
        raise TestbedError(f"--rate must be > 0, got {rate}")
    check_out_file(lab, TestbedError)
    _check_model(model)
    settings = dict(payload_bits=payload_bits, deadline_s=deadline_s, send_padding=send_padding)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with local_testbed(
            model,
            spread(devices, rates, experts),
            lab,
            problem is None,
            dtype,
            threads,
            say,
            **settings,
        ):
            if command:
                raise SystemExit(_run(command))
            signal.pause()
    except ValidationError as error:
        raise TestbedError(f"{error.errors()[0]['loc'][-1]}: {error.errors()[0]['msg']}") from None
    except KeyboardInterrupt:
        say("ended")


@app.command(
    "measure",
    epilog=examples(
        "wdmoe testbed measure lab.yaml --model quickstart/model --out measured.yaml",
        "wdmoe predict outputs/testbed/TIME --profile measured.yaml",
    ),
)
def measure(
    lab: Annotated[Path, typer.Argument(help="Lab file: its devices must be running.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="Channel profile to write: the profile below with measured rates.")],
    profile: Annotated[
        str,
        typer.Option(
            help="Profile with the same devices in the same order; its names and distances are kept.",
            autocompletion=profile_names,
        ),
    ] = "testbed_4_devices",
    tokens: Annotated[str, typer.Option(help="Tokens per message, at least two sizes.")] = "1,4,16,64,256",
    rounds: Annotated[
        int, typer.Option(min=1, help="How often each size goes to all devices, to some, and to each.")
    ] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the hidden states and of the order.")] = 0,
    dtype: Dtype = "auto",
    device: Annotated[str, typer.Option(help="Where the experts of the base station compute: cpu, cuda, ...")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Probe the devices of a testbed, all at once as a run does, and fit a channel profile of measured rates."""
    from ..testbed.experts import layers_without_weights
    from ..testbed.fit import fit_testbed, measured_profile, measured_profile_text
    from ..testbed.lab_file import load_testbed, profile_of_testbed
    from ..testbed.probe import probe, work_of_own_experts

    _log_to_stderr()
    if out.suffix not in (".yaml", ".yml"):
        raise TestbedError(f"--out must be a .yaml file, got {out}")
    check_out_file(out, TestbedError)
    _check_model(model)
    sizes = _sizes(tokens)
    of_profile = open_profile(profile)
    testbed = load_testbed(lab)
    base = profile_of_testbed(of_profile, testbed, str(lab))
    layers = layers_without_weights(model, dtype)
    own_work = work_of_own_experts(model, testbed, layers[0].num_experts, dtype, device)
    with Progress(f"measuring {len(testbed.devices)} devices"):
        times, payload_bits = probe(testbed, layers, sizes, rounds, own_work, seed)
    device_names = [channel_device.name for channel_device in base.devices]
    fit = fit_testbed(device_names, times, layers[0].shape, payload_bits)
    fitted = measured_profile(base, device_names, fit, payload_bits, out.stem)
    write_whole(out, measured_profile_text(fitted, fit))
    if as_json:
        print_json(dict(profile=str(out), hash=fitted.content_hash, **asdict(fit)))
        return
    for name, testbed_device, link in zip(device_names, testbed.devices, fit.devices):
        rates = f"{link.downlink_bit_per_s / 1e6:.4g} Mbit/s down, {link.uplink_bit_per_s / 1e6:.4g} up"
        computing = f"{link.compute_flops / 1e9:.4g} GFLOP/s, {1e3 * link.fixed_s:.3g} ms per message"
        rates += f" after a burst of {link.burst_bit / 8:.0f} bytes" if link.burst_bit else ""
        print(f"{testbed_device.name} ({name}): {rates}, {computing}")
    shared = f", {fit.shared_bit_per_s / 1e6:.4g} Mbit/s for all but the slowest" if fit.shared_bit_per_s else ""
    print(
        f"{1e3 * fit.message_s:.3g} ms for each further message of a layer{shared}; median relative error of the "
        f"waiting latency of {fit.layers} exchanges {100 * fit.median_relative_error:.1f} %"
    )
    print(f"profile: {out}")


def _check_model(model: str) -> None:
    """Checked before devices load it or are probed."""
    if not (Path(model) / "config.json").is_file():
        raise TestbedError(f"{model}: no such folder with a config.json")


def _run(command: list[str]) -> int:
    """-> exit code of the user's command; TestbedError if it cannot be run."""
    try:
        return subprocess.run(command).returncode
    except OSError as error:
        raise TestbedError(f"{command[0]}: cannot be run: {error.strerror}") from None


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _experts(text: str) -> tuple[int, ...]:
    """`0,1,4-6` -> (0, 1, 4, 5, 6)."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    except ValueError:
        raise TestbedError(f"--experts must be like 0,1 or 0-3, got {text!r}") from None
    return tuple(found)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise TestbedError(f"--tokens must be whole numbers >= 1 like 1,16,256, got {text!r}")
    return sizes


def main(arguments: list[str] | None = None) -> Any:
    """Run one command; a WdmoeError becomes one sentence and exit code 2."""
    run(app, "wdmoe testbed", arguments)


if __name__ == "__main__":
    main()
