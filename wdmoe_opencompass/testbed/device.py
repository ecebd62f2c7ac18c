"""A device of the testbed: serves its experts of every MoE layer over gRPC."""

import ctypes
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from ..channel.profile import BASE_STATION
from ..errors import LabError
from .experts import HeldExperts, load_experts, pair_answers, sums_per_token
from .keys import only_device, server_credentials
from .lab import LOOPBACK_ONLY, is_loopback, split_address
from .wire import (
    CHANGED,
    DTYPES,
    SERVICE,
    Holding,
    Nothing,
    Now,
    Sums,
    Tokens,
    WireError,
    check_of_sums,
    check_of_tokens,
    dtype_name,
    from_raw,
    pack,
    unpack,
)

LOG = logging.getLogger(__name__)
MAX_DEADLINE_S = 600.0  # a call without one could hold a place for ever
MEMORY_CONSTANT_BYTES = 16 << 20  # what memory may grow by beside 1.1 times the weights: allocator and files
GRPC_OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.so_reuseport", 0),
]


class _Refused(Exception):
    """A call is refused with this status and sentence."""

    def __init__(self, status: grpc.StatusCode, sentence: str):
        super().__init__(sentence)
        self.status = status


class Bucket:
    """A link of so many bit/s: `take` returns when so many bytes would have passed, one message after the other."""

    def __init__(self, bits_per_s: float):
        self.bits_per_s = bits_per_s
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Wait as long as the link is busy with earlier bytes and with these."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + 8 * count / self.bits_per_s
            free_at = self._free_at
        time.sleep(max(0.0, free_at - time.monotonic()))


def check_address(listen: str, has_keys: bool) -> None:
    """Raise LabError unless a device may listen there: without keys on loopback only."""
    try:
        host, _ = split_address(listen, "--listen")
    except ValueError as error:
        raise LabError(str(error)) from None
    if not has_keys and not is_loopback(host):
        raise LabError(f"--listen {listen}: {LOOPBACK_ONLY}")


class DeviceServer:
    """Serves experts; `start`, then `stop`.

    name: that of the device's certificate; read where keys are given
    keys: folder with ca.pem, NAME.pem and NAME.key; None serves loopback addresses only
    workers: how many messages are computed at once; waiting: how many more may wait, the next one is refused
    rate_bit_per_s: of each direction, where the link itself has no limit
    """

    def __init__(
        self,
        held: HeldExperts,
        listen: str,
        keys: Path | None = None,
        name: str | None = None,
        rate_bit_per_s: float | None = None,
        message_bytes: int = 1 << 26,
        workers: int = 1,
        waiting: int = 8,
    ):
        self.held, self.message_bytes = held, message_bytes
        check_address(listen, keys is not None)
        self._row_of = {expert: row for row, expert in enumerate(held.experts)}
        self._computing = threading.BoundedSemaphore(workers)
        self._links = None if rate_bit_per_s is None else (Bucket(rate_bit_per_s), Bucket(rate_bit_per_s))
        self._has_keys = keys is not None
        self._session = secrets.randbits(63) or 1
        self._fingerprints = held.fingerprints()
        most = workers + waiting + 2  # two more for the small calls
        # gRPC itself cuts off what is far too long; what is a little too long is refused here, with a sentence.
        limits = [("grpc.max_receive_message_length", message_bytes), ("grpc.max_send_message_length", 1 << 30)]
        self._server = grpc.server(
            ThreadPoolExecutor(most), options=[*GRPC_OPTIONS, *limits], maximum_concurrent_rpcs=most
        )
        calls = {"Compute": self._compute, "Ping": self._ping, "Hello": self._hello}
        handlers = {
            name: grpc.stream_unary_rpc_method_handler(self._answering(name, call)) for name, call in calls.items()
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        try:
            if keys is None:
                self.port = self._server.add_insecure_port(listen)
            else:
                self.port = self._server.add_secure_port(listen, server_credentials(keys, name or only_device(keys)))
        except RuntimeError:
            raise LabError(
                f"--listen {listen}: the address cannot be bound; is another device running there?"
            ) from None

    def start(self) -> None:
        """Serve in the background."""
        self._server.start()

    def wait(self) -> None:
        """Serve until `stop`."""
        self._server.wait_for_termination()

    def begin_stop(self) -> None:
        """Take no more calls; `wait` returns when the last is done. May be called by a signal."""
        threading.Thread(target=self.stop, daemon=True).start()

    def stop(self, grace_s: float = 1.0) -> None:
        """Finish what is being computed, then end."""
        self._server.stop(grace_s).wait()

    def _answering(self, name: str, method: Callable[[bytes, float], Any]) -> Callable[[Iterator, Any], bytes]:
        """The handler of one method: takes one message, and turns whatever is wrong with it into a logged status."""

        def handler(messages: Iterator[bytes], context: Any) -> bytes:
            try:
                self._check_peer(context)
                content = self._one_message(messages)
                if self._links is not None:
                    self._links[0].take(len(content))
                answer = method(content, time.monotonic()).SerializeToString()
                if self._links is not None:
                    self._links[1].take(len(answer))
                return answer
            except _Refused as refused:
                status, sentence = refused.status, str(refused)
            except (WireError, DecodeError) as error:
                status, sentence = grpc.StatusCode.INVALID_ARGUMENT, str(error) or "the message is torn"
            except Exception as error:  # out of memory, say: the next message may be smaller
                LOG.exception("%s failed", name)
                status, sentence = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
            LOG.warning("refused %s from %s: %s", name, context.peer(), sentence)
            context.abort(status, sentence[:500])
            raise AssertionError("abort raises")

        return handler

    def _check_peer(self, context: Any) -> None:
        left = context.time_remaining()
        if left is None or left > MAX_DEADLINE_S:
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, f"a call needs a deadline of at most {MAX_DEADLINE_S:g} s")
        if self._has_keys:
            names = context.auth_context().get("x509_common_name", [])
            if names != [BASE_STATION.encode()]:
                shown = names[0].decode(errors="replace") if names else "nobody"
                raise _Refused(grpc.StatusCode.PERMISSION_DENIED, f"only {BASE_STATION} may call, this is {shown!r}")

    def _one_message(self, messages: Iterator[bytes]) -> bytes:
        try:
            content = next(messages, None)
        except Exception:
            content = None
        if content is None:
            raise _Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"no whole message came: longer than {self.message_bytes} bytes, cut off, or given up",
            )
        return content

    def _ping(self, content: bytes, received_at: float) -> Any:
        Nothing.FromString(content)
        return Now(clock=received_at, session=self._session)

    def _hello(self, content: bytes, received_at: float) -> Any:
        Nothing.FromString(content)
        return Holding(
            experts=self.held.experts,
            layers=len(self.held.layers),
            hidden_size=self.held.hidden_size,
            dtype=dtype_name(self.held.dtype),
            fingerprints=self._fingerprints,
            message_bytes=self.message_bytes,
            session=self._session,
        )

    def _compute(self, content: bytes, received_at: float) -> Any:
        with self._computing:
            began = time.monotonic()
            tokens = Tokens.FromString(content)
            sums = self._sums(tokens)
            message = pack(sums, tokens.sums_bits or None)
            ended = time.monotonic()
        reply = Sums(
            number=tokens.number,
            sums=message,
            received_at=received_at,
            queue_s=began - received_at,
            compute_s=ended - began,
            answered_at=ended,
            session=self._session,
        )
        reply.check = check_of_sums(reply)
        return reply

    def _sums(self, tokens: Any) -> Tensor:
        """-> [tokens, hidden] weighted sums; WireError for whatever does not fit."""
        held = self.held
        if tokens.check != check_of_tokens(tokens):
            raise WireError(CHANGED)
        if tokens.layer >= len(held.layers):
            raise WireError(f"layer must be < {len(held.layers)}, got {tokens.layer}")
        experts = held.layers[tokens.layer]
        if tokens.sums_bits not in (0, 4, 8, 16):
            raise WireError(f"sums_bits must be 0, 4, 8 or 16, got {tokens.sums_bits}")
        hidden = unpack(tokens.hidden, held.hidden_size, held.dtype)
        token, row, weights = self._pairs(tokens, len(hidden))
        here = experts.down_proj.device
        hidden, token, row, weights = (tensor.to(here) for tensor in (hidden, token, row, weights))
        sums = sums_per_token(pair_answers(experts, hidden[token], row, weights), token, len(hidden))
        return sums if tokens.sums_bits else sums.to(held.dtype)

    def _pairs(self, tokens: Any, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """-> [pairs] token, row of the expert's weights, weight."""
        if tokens.weight_dtype not in DTYPES:
            raise WireError(f"weight_dtype must be one of {', '.join(DTYPES)}, got {tokens.weight_dtype[:20]!r}")
        token = from_raw(tokens.pair_token, torch.int32).long()
        expert = from_raw(tokens.pair_expert, torch.int32).tolist()
        weights = from_raw(tokens.pair_weight, DTYPES[tokens.weight_dtype])
        if not len(token) == len(expert) == len(weights) or not len(token):
            raise WireError(f"pairs: {len(token)} tokens, {len(expert)} experts and {len(weights)} weights do not fit")
        if int(token.min()) < 0 or int(token.max()) >= count:
            raise WireError(f"pairs: a token must be one of the {count} sent")
        unknown = set(expert) - set(self._row_of)
        if unknown:
            raise WireError(f"pairs: expert {min(unknown)} is not held here; held: {list(self.held.experts)}")
        if not bool(torch.isfinite(weights).all()):
            raise WireError("pairs: weights must be finite, got infinity or not-a-number")
        row = torch.tensor([self._row_of[number] for number in expert])
        if len(torch.unique(token * len(self._row_of) + row)) < len(row):
            raise WireError("pairs: a token asks for the same expert twice")
        return token, row, weights


def loaded(path: str, experts: tuple[int, ...], dtype: str, device: str, say: Callable[[str], None]) -> HeldExperts:
    """Load a device's experts and say how much memory that took, beside what their weights need."""
    before = used_bytes(device)
    held = load_experts(path, experts, dtype, device)
    _give_memory_back()
    grown, expected = used_bytes(device) - before, held.weight_bytes
    say(
        f"experts {', '.join(map(str, held.experts))} of {len(held.layers)} layers in {dtype_name(held.dtype)}: "
        f"weights {expected} bytes, memory grew by {grown} bytes "
        f"(expected at most {expected} + 10 % + {MEMORY_CONSTANT_BYTES})"
    )
    if grown > 1.1 * expected + MEMORY_CONSTANT_BYTES:
        LOG.warning("memory grew by %d bytes, more than the weights of %d explain", grown, expected)
    return held


def used_bytes(device: str) -> int:
    """Memory of this process on `device` that no file backs."""
    if device != "cpu":
        return int(torch.cuda.memory_allocated(device))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _give_memory_back() -> None:
    """What loading needed for a moment goes back to the system, where the C library can do that."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
