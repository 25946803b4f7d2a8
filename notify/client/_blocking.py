"""Sockets and timers for blocking code. One of the waiting threads runs the event loop on behalf of all of them.

There is no background thread, so nothing has to be stopped and a process may fork. Of the threads that wait at a time, one is the
leader: it sleeps until a socket or a timer is ready and wakes the threads whose wait is over. When its own wait is over, another leads.
"""

from __future__ import annotations

import errno
import heapq
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from notify.client._publishing import End
from notify.client._wire import Address

_RECEIVED = 256 * 1024
#: seconds before the next address of a name is tried in parallel with the current one (RFC 8305, section 5)
_NEXT = 0.25
#: the longest time to sleep in one go (seconds)
_LONGEST = 3600.0
#: cancelled timers that may stay in the heap before it is rebuilt
_CANCELLED = 1000


class _Timer:
    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call


class Loop:
    """A :class:`~notify.client._publishing.Front` whose methods are all called with the lock held. :meth:`run` takes the lock.

    ``broken()`` is called when the leading thread is interrupted, whatever it was doing.
    """

    def __init__(self, address: Address, tls: ssl.SSLContext | None, broken: Callable[[], None]) -> None:
        self.address, self.tls = address, tls
        self._broken = broken
        self.lock = threading.Lock()
        self._waiting: dict[threading.Condition, Callable[[], bool]] = {}
        self._inside: set[int] = set()  # idents of the threads within `run`
        self._leading = self._sleeping = False
        self._timers: list[tuple[float, int, _Timer]] = []
        self._cancelled = 0
        self._numbers = count()
        self._selector: selectors.BaseSelector | None = None
        self._bell: tuple[socket.socket, socket.socket] | None = None

    # --- for threads ----------------------------------------------------------------------------------------

    def run(self, begin: Callable[[], None], done: Callable[[], bool]) -> None:
        """Call ``begin``, then wait until ``done()`` is true. Passes on any exception that interrupts the wait."""
        me = threading.get_ident()
        self._inside.add(me)
        try:
            self._run(begin, done)
        finally:
            self._inside.discard(me)

    def outside(self) -> None:
        """Check that this thread is not inside :meth:`run`, where it would deadlock. Raises ``RuntimeError``."""
        if threading.get_ident() in self._inside:
            raise RuntimeError(
                "this thread is in the middle of a publish: a signal handler can neither publish nor close then"
            )

    def _run(self, begin: Callable[[], None], done: Callable[[], bool]) -> None:
        with self.lock:
            if not self._leading:
                self._led(lambda: self._turn(False))  # handle what arrived while no thread was waiting
            begin()
            mine = threading.Condition(self.lock)
            self._waiting[mine] = done
            try:
                while not done():
                    if self._leading:
                        mine.wait()
                    else:
                        self._led(lambda: self._lead(done))
            finally:
                del self._waiting[mine]
                if not self._leading:
                    for other in self._waiting:
                        other.notify()
                        break

    def _led(self, work: Callable[[], None]) -> None:
        self._leading = True
        try:
            work()
        except BaseException:
            self._broken()
            raise
        finally:
            self._leading = False

    def _lead(self, done: Callable[[], bool]) -> None:
        while not done():
            self._turn(True)
            for other, its in self._waiting.items():
                if its():
                    other.notify()

    def _turn(self, wait: bool) -> None:
        selector = self._open()
        if wait:
            self._sleeping = True
            due = self._timers[0][0] - self._now() if self._timers else _LONGEST
            self.lock.release()
            try:
                ready = selector.select(min(max(0.0, due), _LONGEST))
            finally:
                self.lock.acquire()
                self._sleeping = False
        else:
            ready = selector.select(0)
        for key, mask in ready:
            key.data(mask)
        now = self._now()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            call, timer.call = timer.call, None
            if call is None:
                self._cancelled -= 1
            else:
                call()

    def _open(self) -> selectors.BaseSelector:
        if self._selector is None:
            self._selector = selectors.DefaultSelector()
            self._bell = socket.socketpair()
            for end in self._bell:
                end.setblocking(False)
            self._selector.register(self._bell[0], selectors.EVENT_READ, self._rung)
        return self._selector

    def _rung(self, mask: int) -> None:
        if self._bell is not None:
            self._bell[0].recv(_RECEIVED)

    def shut(self) -> None:
        """Close all sockets without telling anyone: either nothing is running, or everything belongs to the parent process."""
        selector, self._selector = self._selector, None
        if selector is not None:
            # Do not unregister them one by one: this process shares the epoll with the process that it was forked from.
            sockets = [key.fileobj for key in selector.get_map().values()]
            selector.close()
            for one in (*sockets, *(self._bell or ())):
                if isinstance(one, socket.socket):
                    one.close()
        self._bell = None

    # --- with the lock held ---------------------------------------------------------------------------------

    def _now(self) -> float:
        return time.monotonic()

    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]:
        timer = _Timer(call)
        heapq.heappush(self._timers, (self._now() + delay, next(self._numbers), timer))
        if self._timers[0][2] is timer:
            self.wake()

        def cancel() -> None:
            if timer.call is not None:
                timer.call = None
                self._cancelled += 1
                if self._cancelled > _CANCELLED and self._cancelled > len(self._timers) // 2:
                    self._timers = [one for one in self._timers if one[2].call is not None]
                    heapq.heapify(self._timers)
                    self._cancelled = 0

        return cancel

    def _dial(self, end: End) -> None:
        dialling = _Dialling(self, end)
        end.cancel = dialling.cancel
        dialling.begin()

    def wake(self) -> None:
        """Make the leader check again what it waits for."""
        if self._sleeping and self._bell is not None:
            try:
                self._bell[1].send(b"!")
            except BlockingIOError:
                pass  # a wake-up is already pending

    def watch(self, one: socket.socket, mask: int, ready: Callable[[int], None]) -> None:
        """Call ``ready`` when the socket can be read or written, as ``mask`` says; 0 stops watching it."""
        selector = self._open()
        there = selector.get_map().get(one)
        if there is None:
            if mask:
                selector.register(one, mask, ready)
        elif mask:
            selector.modify(one, mask, ready)
        else:
            selector.unregister(one)
        self.wake()


class _Dialling:
    """Resolves a name and connects to the first address that answers."""

    def __init__(self, loop: Loop, end: End) -> None:
        self._loop, self._end = loop, end
        self._addresses: list[Any] = []
        self._trying: list[socket.socket] = []
        self._over = False
        self._stop: Callable[[], None] = lambda: None

    def begin(self) -> None:
        host, port = self._loop.address.host, self._loop.address.port
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except OSError:
            # In a thread, so that a slow resolver holds up nobody.
            threading.Thread(target=self._resolve, args=(host, port), daemon=True).start()
        else:
            self._loop._later(0, lambda: self._found(found))

    def _resolve(self, host: str, port: int) -> None:
        try:
            found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            reason = "the name has no address"
        except (OSError, UnicodeError) as error:
            found, reason = [], str(error)
        with self._loop.lock:
            self._loop._later(0, lambda: self._found(found, reason))

    def cancel(self) -> None:
        if not self._over:
            self._leave()
            self._loop._later(0, lambda: self._end.lost("given up"))

    def _leave(self) -> None:
        self._over = True
        self._stop()
        for one in self._trying:
            self._loop.watch(one, 0, lambda mask: None)
            one.close()
        self._trying = []

    def _found(self, addresses: list[Any], reason: str = "") -> None:
        if not self._over:
            self._addresses = list(addresses)
            self._next(reason)

    def _next(self, reason: str) -> None:
        """Try the next address."""
        self._stop()
        while self._addresses:
            family, kind, protocol, _, address = self._addresses.pop(0)
            try:
                one = socket.socket(family, kind, protocol)
            except OSError as error:  # this machine does not support the address family
                reason = str(error)
                continue
            one.setblocking(False)
            code = one.connect_ex(address)
            if code in (0, errno.EINPROGRESS):
                self._try(one)
                return
            one.close()
            reason = _words(code)
        if not self._trying:
            self._leave()
            self._end.lost(reason)

    def _try(self, one: socket.socket) -> None:
        self._trying.append(one)
        self._loop.watch(one, selectors.EVENT_WRITE, lambda mask: self._ready(one))
        if self._addresses:
            self._stop = self._loop._later(_NEXT, lambda: self._next(""))

    def _ready(self, one: socket.socket) -> None:
        if one not in self._trying:
            return
        code = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code:
            try:
                one.getpeername()
            except OSError:
                return  # not connected yet: the event was for an earlier socket with this number
            self._trying.remove(one)
            self._loop.watch(one, 0, lambda mask: None)
            self._leave()
            _Socket(self._loop, self._end, one)
            return
        self._trying.remove(one)
        self._loop.watch(one, 0, lambda mask: None)
        one.close()
        self._next(_words(code))


def _words(code: int) -> str:
    return str(OSError(code, os.strerror(code)))


class _Socket:
    """One connection, with or without TLS."""

    def __init__(self, loop: Loop, end: End, one: socket.socket) -> None:
        self._loop, self._end = loop, end
        self._out = bytearray()
        self._closed = self._closing = self._open = False
        self._mask = 0
        self._socket: Any = one
        end.cancel = self.abort
        try:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if loop.tls is not None:
                self._socket = loop.tls.wrap_socket(
                    one, server_hostname=loop.address.host, do_handshake_on_connect=False
                )
        except OSError as error:
            self._fail(error)
            return
        if loop.tls is None:
            self._begin()
        else:
            self._shake_hands()

    # --- for the end of the connection that is driven -------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send ``data``."""
        if not self._closed:
            self._out += data
            self._flush()

    def close(self) -> None:
        """Close once all data is sent."""
        self._closing = True
        if not self._out:
            self.abort()

    def abort(self) -> None:
        """Close immediately."""
        self._shut("closed")

    # --- from the loop --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._open = True
        self._watch()
        self._end.connected(self)

    def _shake_hands(self) -> None:
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self._watch(selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._watch(selectors.EVENT_WRITE)
        except OSError as error:
            self._fail(error)
        else:
            self._begin()

    def _ready(self, mask: int) -> None:
        if self._closed:
            return
        if not self._open:
            self._shake_hands()
            return
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if mask & selectors.EVENT_READ:
            self._read()

    def _read(self) -> None:
        while not self._closed:
            try:
                data = self._socket.recv(_RECEIVED)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                self._fail(error)
                return
            if not data:
                self._shut("the server closed the connection")
                return
            self._end.data(data)
            if self._loop.tls is None or not (self._closed or self._socket.pending()):
                return

    def _flush(self) -> None:
        try:
            while self._out and not self._closed:
                sent = self._socket.send(self._out)
                del self._out[:sent]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._fail(error)
        if not self._closed:
            if self._closing and not self._out:
                self.abort()
            else:
                self._watch()

    def _watch(self, mask: int = 0) -> None:
        mask = mask or selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        if mask != self._mask:
            self._mask = mask
            self._loop.watch(self._socket, mask, self._ready)

    def _fail(self, error: OSError) -> None:
        self._shut(str(error) or type(error).__name__)

    def _shut(self, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._loop.watch(self._socket, 0, self._ready)
            self._socket.close()
            self._loop._later(0, lambda: self._end.lost(reason))
