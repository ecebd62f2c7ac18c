"""The base station's link to one device: calls, its clock, whether it is there, and how it comes back."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ..errors import LabError
from .keys import channel_credentials
from .lab import Lab, LabDevice
from .wire import CHANGED, COMPUTE, HELLO, OVERHEAD_BYTES, PING, Holding, Nothing, Now, Sums, WireError, check_of_sums

LOG = logging.getLogger(__name__)
FIRST_BACKOFF_S = 0.25
MAX_AT_ONCE = 8  # calls of one device under way; more wait for their turn
CLOCK_WINDOW_S = 60.0  # how long an estimate of a device's clock is good: crystals drift by some 50 us a second
RESTARTED = "it was started anew since it said what it holds"
STAYS_UP = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
KIND = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.INVALID_ARGUMENT: "refused",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "refused",
    grpc.StatusCode.PERMISSION_DENIED: "refused",
}


class CallFailed(Exception):
    """A device did not give a usable answer; kind: timeout, unavailable, refused, bad_reply or failed."""

    def __init__(self, kind: str, reason: str, stays_up: bool = False):
        super().__init__(reason)
        self.kind, self.stays_up = kind, stays_up


class Call:
    """One message on its way, sent and waited for by a thread of its link; `answer` waits for the reply."""

    def __init__(self, pool: ThreadPoolExecutor, send: Callable[[], bytes]):
        self.sent_at = self.done_at = math.nan
        self._future = pool.submit(self._timed, send)

    def _timed(self, send: Callable[[], bytes]) -> bytes:
        self.sent_at = time.monotonic()
        try:
            return send()
        finally:
            self.done_at = time.monotonic()  # on this thread: also right while the one that waits computes

    def answer(self) -> bytes:
        """Wait for the reply; CallFailed where none comes (the deadline went with the message)."""
        try:
            return self._future.result()
        except grpc.RpcError as error:
            status = error.code()  # type: ignore[attr-defined]
            reason = f"{status.name}: {error.details()}"  # type: ignore[attr-defined]
            raise CallFailed(KIND.get(status, "failed"), reason, status in STAYS_UP) from None
        except (ValueError, CancelledError):
            raise CallFailed("failed", "the link was closed") from None


class Link:
    """One device as the base station sees it.

    check: holding -> None, raises LabError where the device does not hold what it should
    changed: (link, kind, reason), called when the device goes down, is refused, or is back
    """

    def __init__(
        self,
        number: int,
        device: LabDevice,
        lab: Lab,
        check: Callable[["Link", Any], None],
        changed: Callable[["Link", str, str], None],
    ):
        self.number, self.device, self.lab = number, device, lab
        self._check, self._changed = check, changed
        self.is_up = False
        self.session = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._wake = threading.Event()
        self._channel: Any = None
        self._backoff_s = FIRST_BACKOFF_S
        self._used_at = 0.0
        self._in_flight = 0
        self._pool = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix=f"calls-{device.name}")
        self._clock: deque[tuple[float, float, float]] = deque(maxlen=1000)  # when, uncertainty, offset
        self._thread = threading.Thread(target=self._watch, name=f"health-{device.name}", daemon=True)

    def connect(self, timeout_s: float) -> None:
        """Wait for the device and check what it holds; CallFailed where it does not come, LabError for another one."""
        self._open()
        self._greet(timeout_s, wait=True)

    def watch(self) -> None:
        """Look after the device in the background until `close`."""
        self._thread.start()

    def close(self) -> None:
        """End the background thread and all connections."""
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        with self._lock:
            if self._channel is not None:
                self._channel.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def down(self) -> None:
        """The device does not answer as it should: send it nothing until it is back.

        One that says it is back and fails again without one good answer is left alone for longer each time.
        """
        with self._lock:
            if self.is_up:
                self.is_up = False
                self._backoff_s = min(2 * self._backoff_s, self.lab.most_backoff_s)
        self._wake.set()

    def _open(self) -> None:
        """A fresh connection: an old one may hang in what was there before."""
        limits = self.lab.message_bytes + OVERHEAD_BYTES
        options: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", limits),
            ("grpc.max_receive_message_length", limits),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.enable_retries", 0),
        ]
        if self.lab.keys is None:
            channel = grpc.insecure_channel(self.device.address, options=options)
        else:
            options.append(("grpc.ssl_target_name_override", self.device.name))
            credentials = channel_credentials(Path(self.lab.keys))
            channel = grpc.secure_channel(self.device.address, credentials, options=options)
        with self._lock:
            old, self._channel = self._channel, channel
        if old is not None:
            old.close()

    def _greet(self, timeout_s: float, wait: bool = False) -> None:
        reply = self._send(HELLO, Nothing().SerializeToString(), timeout_s, wait).answer()
        try:
            holding = Holding.FromString(reply)
        except DecodeError:
            raise CallFailed("bad_reply", "what it holds cannot be read") from None
        self._check(self, holding)
        if holding.session != self.session:
            self._clock.clear()  # a board that was started anew counts from another moment
        self.session = holding.session
        self._ping(timeout_s)
        with self._lock:
            self.is_up = True

    def _watch(self) -> None:
        pause_s = self.lab.health_s if self.is_up else self._backoff_s
        while not self._closed.is_set():
            self._wake.wait(pause_s)
            self._wake.clear()
            if self._closed.is_set():
                return
            pause_s = self._look()

    def _look(self) -> float:
        """Ask whether the device is there; -> seconds until the next time."""
        if self.is_up:
            if self._in_flight == 0 and time.monotonic() - self._used_at >= self.lab.health_s:
                try:
                    self._ping(self.lab.deadline_s)
                except CallFailed as failed:
                    if not failed.stays_up:
                        self.down()
                        self._changed(self, failed.kind, f"health check: {failed}")
            return self.lab.health_s if self.is_up else self._backoff_s
        if self._closed.wait(self._backoff_s):
            return 0.0
        try:
            self._open()
            self._greet(min(self.lab.deadline_s, 5.0))
        except (CallFailed, LabError) as failed:
            self._backoff_s = min(2 * self._backoff_s, self.lab.most_backoff_s)
            if isinstance(failed, LabError):
                self._changed(self, "refused", str(failed))
            return 0.0
        self._changed(self, "rejoined", f"{self.device.name} is back")
        return self.lab.health_s

    def compute(self, message: bytes) -> Call:
        """Send tokens; the answer is waited for later."""
        return self._send(COMPUTE, message, self.lab.deadline_s)

    def worked(self) -> None:
        """The last answer was good: the next absence starts with the shortest pause."""
        self._backoff_s = FIRST_BACKOFF_S

    def _send(self, method: str, message: bytes, timeout_s: float, wait: bool = False) -> Call:
        with self._lock:
            if self._closed.is_set():
                raise CallFailed("unavailable", "the link is closed")
            self._in_flight += 1
            call = self._channel.unary_unary(method)

        def send() -> bytes:
            try:
                return call(message, timeout=timeout_s, wait_for_ready=wait)
            finally:
                with self._lock:
                    self._in_flight -= 1
                    self._used_at = time.monotonic()

        return Call(self._pool, send)

    def _ping(self, timeout_s: float) -> None:
        call = self._send(PING, Nothing().SerializeToString(), timeout_s)
        reply = call.answer()
        try:
            now = Now.FromString(reply)
        except DecodeError:
            raise CallFailed("bad_reply", "its clock cannot be read") from None
        clock = now.clock
        if now.session != self.session:
            raise CallFailed("bad_reply", RESTARTED)
        if math.isfinite(clock):
            self._learn_clock(call, clock, clock)

    def _learn_clock(self, call: Call, received_at: float, answered_at: float) -> None:
        uncertainty = (call.done_at - call.sent_at) - (answered_at - received_at)
        offset = ((received_at - call.sent_at) + (answered_at - call.done_at)) / 2
        self._clock.append((call.done_at, uncertainty, offset))

    def parts(self, call: Call, sums: Any) -> tuple[float, float, float, float]:
        """-> seconds of sending, waiting at the device, computing, returning; WireError where they cannot be.

        The device's clock is set to ours by the exchange with the least time under way in the last minute.
        """
        total_s = call.done_at - call.sent_at
        times = (sums.received_at, sums.queue_s, sums.compute_s, sums.answered_at)
        if not all(map(math.isfinite, times)) or sums.queue_s < 0 or sums.compute_s < 0:
            raise WireError("its times are no numbers of seconds")
        transfer_s = total_s - sums.queue_s - sums.compute_s
        if transfer_s < 0:
            raise WireError(f"it says {sums.queue_s + sums.compute_s:.3f} s of the {total_s:.3f} s that it took")
        self._learn_clock(call, sums.received_at, sums.received_at + sums.queue_s + sums.compute_s)
        oldest = call.done_at - CLOCK_WINDOW_S
        offset = min((look for look in list(self._clock) if look[0] >= oldest), key=lambda look: look[1])[2]
        send_s = min(max(sums.received_at - offset - call.sent_at, 0.0), transfer_s)
        return send_s, sums.queue_s, sums.compute_s, transfer_s - send_s


def read_sums(reply: bytes, number: int, session: int) -> Any:
    """The reply to message `number` of a device in this session; WireError where it is not one."""
    try:
        sums = Sums.FromString(reply)
    except DecodeError:
        raise WireError("the reply cannot be read") from None
    if sums.check != check_of_sums(sums):
        raise WireError(CHANGED)
    if sums.number != number:
        raise WireError(f"the reply is to message {sums.number}, not to {number}")
    if sums.session != session:
        raise WireError(RESTARTED)
    return sums
