"""`wdmoe testbed`: devices, keys, and a whole lab on one machine. Also `python -m wdmoe_opencompass.testbed.cli`."""

import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import LabError, WdmoeError

app = typer.Typer(no_args_is_help=True, help="A live testbed: experts on real devices over the network.")

Model = Annotated[str, typer.Option(help="Folder of the model: config.json and safetensors files.")]
Dtype = Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: as the model's config says.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads of a device; 0: as many as torch takes.")]
Compute = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
MessageBytes = Annotated[int, typer.Option(min=1 << 16, max=1 << 30, help="Longest message taken.")]


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("wdmoe_opencompass").setLevel(logging.INFO)


@app.command("device")
def device(
    model: Model,
    experts: Annotated[str, typer.Option(help="Experts to hold in every MoE layer: 0,1 or 0-3.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")],
    keys: Annotated[Path | None, typer.Option(help="Folder with ca.pem and this device's certificate and key.")] = None,
    name: Annotated[str | None, typer.Option(help="Its name, where the folder holds keys of several.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Mbit/s of each direction, limited here.")] = None,
    dtype: Dtype = "auto",
    device: Compute = "cpu",
    threads: Threads = 0,
    message_bytes: MessageBytes = 1 << 26,
    workers: Annotated[int, typer.Option(min=1, help="Messages computed at once.")] = 1,
    waiting: Annotated[int, typer.Option(min=0, help="Messages that may wait; the next one is refused.")] = 8,
) -> None:
    """Serve some experts of every MoE layer until a signal comes."""
    import torch

    from .device import DeviceServer, check_address, loaded

    _log_to_stderr()
    check_address(listen, keys is not None)
    if threads:
        torch.set_num_threads(threads)
    held = loaded(model, _experts(experts), dtype, device, lambda text: print(text, flush=True))
    bits_per_s = None if rate is None else rate * 1e6
    server = DeviceServer(held, listen, keys, name, bits_per_s, message_bytes, workers, waiting)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.begin_stop())
    server.start()
    host = listen.rpartition(":")[0]
    print(f"listening on {host}:{server.port}{'' if keys is None else ', mutual TLS'}", flush=True)
    server.wait()


@app.command("keys")
def keys(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; its authority is kept if it has one.")],
    devices: Annotated[str, typer.Option(help="Names of the devices, as in the lab file: a,b,c.")],
    days: Annotated[float, typer.Option(help="How long they are valid.")] = 365.0,
) -> None:
    """Make the certificates and keys of a lab: each device gets ca.pem, NAME.pem and NAME.key, and nothing else."""
    from .keys import make_keys

    for path in make_keys(folder, [name.strip() for name in devices.split(",") if name.strip()], days):
        print(path)
    print(f"keep {folder / 'ca.key'} to yourself: whoever has it can make keys")


@app.command("up", context_settings=dict(ignore_unknown_options=True, allow_interspersed_args=False))
def up(
    model: Model,
    command: Annotated[list[str] | None, typer.Argument(help="Run this (after --), then end.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="How many devices.")] = 4,
    rate: Annotated[str, typer.Option(help="Mbit/s of each direction: one number, or one per device.")] = "",
    experts: Annotated[
        str | None, typer.Option(help="Experts of each device: 0,1;2;3. By default device k holds expert k.")
    ] = None,
    lab: Annotated[Path, typer.Option(help="Lab file to write; it is removed at the end.")] = Path("lab.yaml"),
    dtype: Dtype = "auto",
    threads: Threads = 1,
    payload_bits: Annotated[int | None, typer.Option(help="4, 8 or 16; by default the model's own type.")] = None,
    deadline_s: Annotated[float, typer.Option(help="Of one message and its answer.")] = 10.0,
    send_padding: Annotated[bool, typer.Option(help="Send padding too: the local model's bits.")] = False,
    namespaces: Annotated[
        bool, typer.Option(help="Network namespaces with tc tbf where root allows; else limits in the devices.")
    ] = True,
) -> None:
    """A lab on this machine: devices as processes behind links of a given rate."""
    from pydantic import ValidationError

    from .local import local_lab, namespaces_problem, spread

    _log_to_stderr()
    problem = namespaces_problem() if namespaces else "not wanted"
    if namespaces and problem:
        print(f"no network namespaces: {problem}; the devices limit their rates themselves", flush=True)
    try:
        rates: list[float | None] = [float(one) for one in rate.split(",") if one]
    except ValueError:
        raise LabError(f"--rate must be numbers of Mbit/s like 200,200,100,20, got {rate!r}") from None
    if any(one is None or one <= 0 for one in rates):
        raise LabError(f"--rate must be > 0, got {rate}")
    settings = dict(payload_bits=payload_bits, deadline_s=deadline_s, send_padding=send_padding)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with local_lab(
            model,
            spread(devices, rates, experts),
            lab,
            problem is None,
            dtype,
            threads,
            lambda text: print(text, flush=True),
            **settings,
        ):
            if command:
                raise SystemExit(subprocess.run(command).returncode)
            signal.pause()
    except ValidationError as error:
        raise LabError(f"{error.errors()[0]['loc'][-1]}: {error.errors()[0]['msg']}") from None
    except KeyboardInterrupt:
        print("ended", flush=True)


@app.command("measure")
def measure(
    lab: Annotated[Path, typer.Argument(help="Lab file: its devices must be running.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="Channel profile to write: the profile below with measured rates.")],
    profile: Annotated[
        str, typer.Option(help="Profile of as many devices in the same order, whose names and distances are kept.")
    ] = "testbed_4_devices",
    tokens: Annotated[str, typer.Option(help="Tokens per message, at least two sizes.")] = "1,4,16,64,256",
    rounds: Annotated[int, typer.Option(min=1, help="How often each size goes to all, to some, and to each.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the hidden states and of the order.")] = 0,
    dtype: Dtype = "auto",
    device: Annotated[str, typer.Option(help="Where the base station's own experts compute: cpu, cuda, ...")] = "cpu",
) -> None:
    """Probe the devices of a lab, all at once as a run does, and fit a channel profile of measured rates.

    Examples:

    wdmoe testbed measure lab.yaml --model quickstart/model --dtype float32 --out measured.yaml

    wdmoe predict RUN --profile measured.yaml
    """
    from ..channel.profile import load_profile
    from .experts import layers_without_weights
    from .lab import load_lab, profile_of_lab
    from .measure import fit_lab, measured_profile, measured_profile_text
    from .probe import probe, work_of_own_experts

    _log_to_stderr()
    if out.suffix not in (".yaml", ".yml") or not out.absolute().parent.is_dir():
        raise LabError(f"--out must be a .yaml file in a folder that exists, got {out}")
    sizes = _sizes(tokens)
    its_lab = load_lab(lab)
    base = profile_of_lab(load_profile(profile), its_lab, str(lab))
    layers = layers_without_weights(model, dtype)
    own_work = work_of_own_experts(model, its_lab, layers[0].num_experts, dtype, device)
    times, payload_bits = probe(its_lab, layers, sizes, rounds, own_work, seed)
    names = [one.name for one in base.devices]
    fit = fit_lab(names, times, layers[0].shape, payload_bits)
    fitted = measured_profile(base, names, fit, payload_bits, out.stem)
    out.write_text(measured_profile_text(fitted, fit))
    for name, device_of_lab, one in zip(names, its_lab.devices, fit.devices):
        rates = f"{one.downlink_bit_per_s / 1e6:.4g} Mbit/s down, {one.uplink_bit_per_s / 1e6:.4g} up"
        computing = f"{one.compute_flops / 1e9:.4g} GFLOP/s, {1e3 * one.fixed_s:.3g} ms per message"
        print(f"{device_of_lab.name} ({name}): {rates}, {computing}")
    print(
        f"{1e3 * fit.message_s:.3g} ms from message to message; median relative error of the waiting latency of "
        f"{fit.layers} exchanges {100 * fit.median_relative_error:.1f} %"
    )
    print(f"profile: {out}")


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
        raise LabError(f"--experts must be like 0,1 or 0-3, got {text!r}") from None
    return tuple(found)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(one) for one in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise LabError(f"--tokens must be whole numbers >= 1 like 1,16,256, got {text!r}")
    return sizes


def main(arguments: list[str] | None = None) -> Any:
    """Run one command; a WdmoeError becomes one sentence and exit code 2."""
    try:
        return app(arguments)
    except WdmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
