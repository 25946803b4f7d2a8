"""The part that all publishers share, without I/O: the queues, the stream, the connections for requests, timeouts and retries.

A :class:`Job` goes over the stream if one is open, otherwise by request. Whatever the server does, a job ends when its
timeout expires: every wait is a timer of the front end, and nothing here blocks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from notify.client._job import Job
from notify.client._keys import Keys
from notify.client._link import Socket
from notify.client._outcome import Fault, Item, Outcome, PublishFailed
from notify.client._pipe import Pipe
from notify.client._post import Post, Response
from notify.client._wire import Address

#: messages and bytes per request or stream frame; a larger message goes by request
BATCH, BATCH_BYTES = 500, 512 * 1024
#: messages and bytes in flight on a stream; beyond this the server stops reading until it has answered some
MOST_SENT, MOST_SENT_BYTES = 1000, 4 * 2**20
#: messages and bytes that may be unsettled; beyond this a new job is refused
MOST, MOST_BYTES = 10_000, 64 * 2**20
#: the longest backoff (seconds) between two attempts, and the shortest and longest wait if the server asks for one
MAX_BACKOFF, MIN_WAIT, MAX_WAIT = 5.0, 0.1, 30.0
#: with less time left than this (seconds) there is no further attempt
MOMENT = 0.05
#: seconds for which requests are used after a stream could not be opened
WITHOUT_STREAM = 60.0
#: timeout in seconds for opening a stream once connected
HANDSHAKE = 5.0
#: seconds to wait for the other end to close
CLOSING = 2.0


_REUSED = Outcome(
    0, error=Fault("key_reused", "the key was used for another message: nothing of this one was sent")
)


class End(Protocol):
    """The protocol side of a socket: a :class:`Pipe` or a :class:`Post`. Each socket reports its end with ``lost``."""

    cancel: Callable[[], None]

    def connected(self, socket: Socket) -> None:
        """The transport is connected; with TLS, its handshake is complete."""

    def data(self, data: bytes) -> None:
        """Bytes arrived."""

    def lost(self, reason: str) -> None:
        """The transport was lost, or could not be connected. Called once, and never from within another method of the front end."""

    def drop(self) -> None:
        """Close the socket immediately."""


class Front(Protocol):
    """The clock and sockets that drive a :class:`Desk`."""

    def _now(self) -> float:
        """The seconds of a monotonic clock."""

    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call after ``delay`` seconds, unless the returned function is called first."""

    def _dial(self, end: End) -> None:
        """Connect to the server and call the methods of ``end``. Its ``cancel`` stops dialling; ``lost`` then follows."""


class Options(Struct, frozen=True):
    """A publisher's options: see :class:`~notify.client.publisher.Publisher`."""

    timeout: float
    try_timeout: float
    tries: int | None
    stream: bool
    connections: int
    duplicate_window: float


class Desk:
    """Takes jobs, and calls the ``done`` of each once it is over. Not thread-safe."""

    def __init__(
        self, front: Front, address: Address, api_key: str, options: Options, random: Callable[[], float]
    ) -> None:
        self._front, self._address, self._options, self._random = front, address, options, random
        self._authorization = f"Bearer {api_key}"
        self._headers = (("Authorization", self._authorization), ("Content-Type", "application/json"))
        self.stream_from = -math.inf if options.stream else math.inf
        self._pipe: Pipe | None = None
        self._unwatch: Callable[[], None] | None = None
        self._active_at = 0.0
        #: the jobs whose items are in flight on the stream
        self._owners: dict[Item, Job] = {}
        self._idle: list[Post] = []
        self._posts: dict[Post, tuple[Job, Callable[[], None]]] = {}
        self._by_stream: deque[Job] = deque()
        self._by_request: deque[Job] = deque()
        self._jobs: dict[Job, None] = {}
        self._messages = self._bytes = 0
        self._keys = Keys(options.duplicate_window)
        self._ends: set[End] = set()
        self._over: list[Job] = []
        self._going = self.closed = False
        self._gone: list[Callable[[], None]] = []
        #: cancel the timers of closing
        self._closing: list[Callable[[], None]] = []

    # --- for the front end ----------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Take a job. A job that cannot be accepted is over immediately."""
        if self.closed:
            self._refuse(job, "closed", "the publisher is closed")
        elif self._jobs and (self._messages + len(job.items) > MOST or self._bytes + job.size > MOST_BYTES):
            self._refuse(job, "busy", "as much as may be waits to be published already")
        elif not self._use_keys(job):
            self._refuse(
                job, "key_reused", "a key of the list is that of another message: nothing of it was sent"
            )
        else:
            self._jobs[job] = None
            self._messages += len(job.items)
            self._bytes += job.size
            job.deadline = self._front._now() + job.timeout
            job.expiring = self._front._later(job.timeout, lambda: self._expire(job))
            if job.settled:
                self._finish(job)
            else:
                self._line_up(job)
        self._go_on()

    def abandon(self, job: Job) -> None:
        """The caller no longer waits: send nothing more of the job. What was sent may be stored."""
        if job in self._jobs:  # otherwise it is over, or was never accepted
            self._take_out(job)
            self._finish(job)
            self._go_on()

    def reset(self) -> None:
        """Drop all connections. Messages in flight may be stored; they are sent again over new connections."""
        if self._pipe is not None:
            self._pipe.drop()
            self._pipe_lost("no answer from the server: interrupted")
        for post in [*self._posts, *self._idle]:
            post.drop()
            self._post_lost(post, "interrupted", post.sent)
        self._go_on()

    def close(self, patience: float | None, gone: Callable[[], None]) -> None:
        """Accept nothing more. Calls ``gone`` once the accepted jobs are over, or ``patience`` seconds later, and all sockets are closed."""
        self.closed = True
        self._gone.append(gone)
        if patience is not None:
            self._closing.append(self._front._later(patience, self._give_up))
        self._go_on()

    def _give_up(self) -> None:
        for job in list(self._jobs):
            self._expire(job)

    @property
    def streaming(self) -> bool:
        """Whether a stream is open."""
        return self._pipe is not None and self._pipe.open

    # --- jobs -----------------------------------------------------------------------------------------------

    def _refuse(self, job: Job, code: str, message: str) -> None:
        job.last = PublishFailed(code, message)
        job.over = True
        self._over.append(job)

    def _use_keys(self, job: Job) -> bool:
        """Claim the job's keys. Returns whether it may be sent: no key belongs to another message, or its messages stand ``apart``."""
        now = self._front._now()
        owned = [(item, *item.digest) for item in job.items if item.digest is not None]
        for item, subject, message in owned:
            owner = self._keys.owner(subject, item.key, now)
            item.first = owner is None
            if owner not in (None, message):
                item.outcome = _REUSED
        if not job.apart and any(item.outcome is not None for item, _, _ in owned):
            return False
        for item, subject, message in owned:
            self._keys.use(subject, item.key, message, now)
        return True

    def _settle_keys(self, job: Job) -> None:
        for item in job.items:
            if item.digest is not None:
                subject, message = item.digest
                failed = item.failure(job.last)
                if failed is None or not failed.nothing_stored:
                    self._keys.use(subject, item.key, message, self._front._now())
                elif item.first:
                    self._keys.forget(subject, item.key)

    def _line_up(self, job: Job) -> None:
        there = self._pipe is not None or self._front._now() >= self.stream_from
        streamed = there and job.stream and job.size <= BATCH_BYTES
        (self._by_stream if streamed else self._by_request).append(job)

    def _finish(self, job: Job) -> None:
        if not job.over:
            job.over = True
            job.expiring()
            job.retrying()
            self._settle_keys(job)
            del self._jobs[job]
            self._messages -= len(job.items)
            self._bytes -= job.size
            self._over.append(job)

    def _expire(self, job: Job) -> None:
        if job.over:
            return
        self._take_out(job)
        self._finish(job)
        pipe = self._pipe
        if pipe is not None and pipe.sent and not self._owners:
            # The next job gets a new stream. If other jobs waited for this one, it is not known for how long, so it stays.
            pipe.drop()
            self._pipe_lost("no answer from the server")
        self._go_on()

    def _take_out(self, job: Job) -> None:
        """Remove the job from wherever it is queued or in flight."""
        for line in (self._by_stream, self._by_request):
            if job in line:
                line.remove(job)
                if job.last is None:
                    job.last = self._why_not(line is self._by_stream)
        for item in job.items:
            if self._owners.pop(item, None) is not None:
                item.doubt = True
                job.last = _unknown("in time")
        for post, (other, _) in list(self._posts.items()):
            if other is job:
                sent = post.sent
                post.drop()
                self._forget_post(post)
                job.unanswered(_unknown("in time") if sent else _unreached("no connection in time"), sent)

    def _why_not(self, streamed: bool) -> PublishFailed:
        """The reason for which a job was never sent."""
        pipe = self._pipe if streamed else None
        if pipe is None or pipe.open:
            return PublishFailed("busy", "there was no room for it in time")
        return _unreached("it opened no stream in time" if pipe.reached else "no connection in time")

    def _again(self, job: Job, wait: float | None = None) -> None:
        """An attempt is over, and a retry may still succeed."""
        job.attempt += 1
        left = job.deadline - self._front._now()
        if wait is None:
            # Full jitter. Waiting at most half of the time left puts the last attempts before the timeout, not after it.
            wait = min(MAX_BACKOFF, 0.2 * 2 ** min(job.attempt - 1, 10)) * self._random()
            wait = min(wait, left / 2)
        else:
            wait = min(max(wait, MIN_WAIT), MAX_WAIT)
        if job.attempt == job.tries or left - wait < MOMENT:
            self._finish(job)
            return

        def come_back() -> None:
            self._line_up(job)
            self._go_on()

        job.retrying = self._front._later(wait, come_back)

    def _settle(self, job: Job, wait: float | None = None) -> None:
        if job.settled:
            self._finish(job)
        else:
            self._again(job, wait)

    def _go_on(self) -> None:
        """Send what can be sent, and report the jobs that are over."""
        if self._going:
            return
        self._going = True
        try:
            self._pump()
            while self._over:
                over, self._over = self._over, []
                for job in over:
                    job.done()
                self._pump()
        finally:
            self._going = False
        if self.closed and not self._jobs:
            self._shut()

    def _pump(self) -> None:
        while self._by_stream and self._send(self._by_stream[0]):
            self._by_stream.popleft()
        while self._by_request and self._ask(self._by_request[0]):
            self._by_request.popleft()

    # --- the stream -----------------------------------------------------------------------------------------

    def _send(self, job: Job) -> bool:
        """Send the job over the stream. Returns whether it was sent."""
        pipe = self._pipe
        if pipe is None:
            self._open_pipe()
            return False
        items = job.left()
        if not pipe.open or (
            pipe.sent and (len(pipe.sent) + len(items) > MOST_SENT or pipe.bytes + job.size > MOST_SENT_BYTES)
        ):
            return False
        if not pipe.sent:
            self._active_at = self._front._now()
            if self._unwatch is None:
                self._watch(self._options.try_timeout)
        for item in items:
            item.outcome = None
            self._owners[item] = job
        pipe.send(items)
        return True

    def _open_pipe(self) -> None:
        self._pipe = pipe = Pipe(self, self._address, self._authorization)
        self._ends.add(pipe)
        self._watch(self._options.try_timeout)
        self._front._dial(pipe)

    def _watch(self, delay: float) -> None:
        if self._unwatch is not None:
            self._unwatch()
        self._unwatch = self._front._later(delay, self._look)

    def _look(self) -> None:
        """Check whether the stream has been silent for too long."""
        self._unwatch = None
        pipe = self._pipe
        if pipe is None:
            return
        if pipe.open:
            if not pipe.sent:
                return
            quiet = self._front._now() - self._active_at
            if quiet < self._options.try_timeout - 0.001:
                self._watch(self._options.try_timeout - quiet)
                return
        pipe.drop()
        self.pipe_ended(pipe, "no answer from the server" if pipe.reached else "no connection in time")

    def pipe_reached(self) -> None:
        """See :class:`~notify.client._pipe.Owner`."""
        self._watch(min(HANDSHAKE, self._options.try_timeout))

    def pipe_opened(self) -> None:
        """See :class:`~notify.client._pipe.Owner`."""
        self._go_on()

    def pipe_answered(self, answers: Sequence[tuple[Item, Outcome]]) -> None:
        """See :class:`~notify.client._pipe.Owner`."""
        self._active_at = self._front._now()
        touched: dict[Job, None] = {}
        for item, outcome in answers:
            job = self._owners.pop(item, None)
            if job is not None:
                item.tell(outcome)
                touched[job] = None
        for job in touched:
            if all(item.outcome is not None for item in job.items):
                self._settle(job)
        self._go_on()

    def pipe_ended(self, pipe: Pipe, reason: str) -> None:
        """See :class:`~notify.client._pipe.Owner`."""
        if pipe is self._pipe:
            self._pipe_lost(reason)
        self._go_on()

    def _pipe_lost(self, reason: str) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is None:
            return
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        owners, self._owners = self._owners, {}
        for item in owners:
            item.doubt = True
        for job in dict.fromkeys(owners.values()):
            job.last = PublishFailed("unknown", reason)
            self._again(job)
        waiting, self._by_stream = self._by_stream, deque()
        if pipe.opened:
            self._by_stream = waiting
        elif pipe.reached and not _hopeless(reason):
            # The server, or a proxy in front of it, does not open streams.
            self.stream_from = self._front._now() + WITHOUT_STREAM
            self._by_request.extendleft(reversed(waiting))
        else:
            for job in waiting:
                self._unreachable(job, reason)

    def _unreachable(self, job: Job, reason: str) -> None:
        job.last = _unreached(reason)
        if _hopeless(reason):
            self._finish(job)
        else:
            self._again(job)

    # --- requests -------------------------------------------------------------------------------------------

    def _ask(self, job: Job) -> bool:
        """Send the job by request. Returns whether it was sent."""
        fresh = not self._idle
        if fresh and len(self._posts) >= self._options.connections:
            return False
        post = Post(self, self._address.host_header) if fresh else self._idle.pop()
        late = self._front._later(self._options.try_timeout, lambda: self._late(post))
        self._posts[post] = job, late
        post.ask(job.request(self._headers))
        if fresh:
            self._ends.add(post)
            self._front._dial(post)
        return True

    def _late(self, post: Post) -> None:
        sent = post.sent
        post.drop()
        self._post_lost(post, "in time" if sent else "no connection in time", sent)
        self._go_on()

    def post_answered(self, post: Post, response: Response) -> None:
        """See :class:`~notify.client._post.Owner`."""
        job = self._forget_post(post)
        if not post.over:
            self._idle.append(post)
        if job is not None:
            job.answered(response)
            self._settle(job, response.advice)
        self._go_on()

    def post_ended(self, post: Post, reason: str) -> None:
        """See :class:`~notify.client._post.Owner`."""
        self._post_lost(post, reason, post.sent)
        self._go_on()

    def _post_lost(self, post: Post, reason: str, sent: bool) -> None:
        job = self._forget_post(post)
        if post in self._idle:
            self._idle.remove(post)
        if job is None:
            return
        if sent:
            job.unanswered(_unknown(reason), True)
            self._again(job)
        else:
            self._unreachable(job, reason)

    def _forget_post(self, post: Post) -> Job | None:
        found = self._posts.pop(post, None)
        if found is None:
            return None
        found[1]()
        return found[0]

    # --- closed sockets -------------------------------------------------------------------------------------

    def end_gone(self, end: object) -> None:
        """See the ``Owner`` of each kind of connection."""
        self._ends.discard(end)
        if self.closed and not self._jobs:
            self._shut()

    def _shut(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            if self._unwatch is not None:
                self._unwatch()
                self._unwatch = None
            if pipe.open:
                pipe.close()
            else:
                pipe.drop()
            self._closing.append(self._front._later(CLOSING, self._abort))
        idle, self._idle = self._idle, []
        for post in idle:
            post.drop()
        if not self._ends:
            closing, self._closing = self._closing, []
            for stop in closing:
                stop()
            gone, self._gone = self._gone, []
            for call in gone:
                call()

    def _abort(self) -> None:
        for end in list(self._ends):
            end.drop()


def _hopeless(reason: str) -> bool:
    """Whether the other end is not the server it should be, so that a retry is useless."""
    return "certificate verify failed" in reason or "VerificationError" in reason


def _unknown(reason: str) -> PublishFailed:
    return PublishFailed(
        "unknown", f"no answer from the server{' ' if reason == 'in time' else ': '}{reason}"
    )


def _unreached(reason: str) -> PublishFailed:
    return PublishFailed("unreachable", f"the server cannot be reached: {reason}")
