"""The reactor on uvloop behaves as Twisted's own on asyncio does. The tests run programs, each with its own reactor."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from notify.config import ConfigError, load
from notify.service import reactor as reactors
from tests.support.process import Server
from tests.support.programs import run
from tests.support.running import SECRET

LOOPS = ("uvloop", "asyncio")
INSTALLED = importlib.util.find_spec("uvloop") is not None and sys.platform == "linux"

#: installs the reactor on the named loop; ends after 30 s, whatever happens
BEGIN = """
import asyncio, os, socket, struct, sys
from notify.service import reactor as reactors
reactors.install(sys.argv[1])
from twisted.internet import reactor
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol

def end():
    print("not in time")
    reactor.stop()

def full(sock):
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(4096))
    except BlockingIOError:
        pass

last = reactor.callLater(30, end)

class Reads(Protocol):
    count = 0
    def connectionMade(self):
        self.transport.write(b"unread")
        self.transport.pauseProducing()
    def dataReceived(self, data):
        self.count += len(data)
    def connectionLost(self, reason):
        print(self.count > 65536, reason.type.__name__)
        reactor.stop()

class Child(ProcessProtocol):
    def processEnded(self, reason):
        print("ended with", reason.value.exitCode)
        reactor.stop()
"""

#: bytes sent before a reset are all read, and then the end is noticed
RESET = """
made = []
class Made(Factory):
    def buildProtocol(self, address):
        made.append(Reads())
        return made[0]
def go():
    full(client)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    reactor.callLater(0.1, made[0].transport.resumeProducing)
port = reactor.listenTCP(0, Made(), interface="127.0.0.1")
port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
client = socket.create_connection(("127.0.0.1", port.getHost().port))
reactor.callLater(0.2, go)
reactor.run()
"""

#: the same with a socket pair whose other end leaves something unread
GONE = """
ours, theirs = socket.socketpair()
ours.setblocking(False)
reads = Reads()
reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, Factory.forProtocol(lambda: reads))
theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
full(theirs)
def go():
    theirs.close()
    reactor.callLater(0.1, reads.transport.resumeProducing)
reactor.callLater(0.1, go)
reactor.run()
"""

#: a descriptor that is closed before it is removed; afterwards another socket has its number
CLOSED = """
class Descriptor:
    def __init__(self, sock, read):
        self.sock, self.doRead = sock, read
    def fileno(self):
        return self.sock.fileno()
    def logPrefix(self):
        return ""
    def connectionLost(self, reason):
        pass
one, two = socket.socketpair()
kept = []
closed = Descriptor(one, lambda: print("read"))
def go():
    reactor.addReader(closed)
    number = one.fileno()
    one.close()
    reactor.callLater(0.1, after, number)
def after(number):
    reactor.removeReader(closed)
    global another
    another, other = kept[:] = socket.socketpair()
    print(another.fileno() == number)
    reactor.addReader(Descriptor(another, done))
    other.send(b"x")
def done():
    print(another.recv(1))
    reactor.stop()
reactor.callLater(0, go)
reactor.run()
"""

#: an exception from a descriptor, also from its connectionLost, is logged, and the others are still read
RAISES = """
from twisted.logger import globalLogBeginner
logged = []
globalLogBeginner.beginLoggingTo([lambda event: logged.append(event["log_level"].name)], redirectStandardIO=False)
class Descriptor:
    def __init__(self, sock, read):
        self.fileno, self.doRead = sock.fileno, read
    def logPrefix(self):
        return ""
    def connectionLost(self, reason):
        raise ZeroDivisionError
def fault():
    raise KeyError
def done():
    print(three.recv(1), logged.count("critical"))
    reactor.stop()
one, two = socket.socketpair()
three, four = socket.socketpair()
def go():
    reactor.addReader(Descriptor(one, fault))
    two.send(b"x")
    reactor.callLater(0.1, after)
def after():
    reactor.addReader(Descriptor(three, done))
    four.send(b"x")
reactor.callLater(0, go)
reactor.run()
"""

#: a child that ends without closing any watched descriptor, in the foreground and in a daemon
CHILD = """
def go():
    ends = {0: 0, 1: 1, 2: 2}
    reactor.spawnProcess(Child(), "/bin/sh", ["sh", "-c", "sleep 0.2; exit 3"], childFDs=ends)
reactor.callWhenRunning(go)
reactor.run()
"""

#: as with twistd: the reactor exists before the process goes to the background, and it forks twice
FORKED = """
before = asyncio.get_event_loop()
def begin():
    print("timer", flush=True)
    asyncio.ensure_future(talk())
reactor.callLater(0.1, begin)
for _ in range(2):
    if os.fork():
        os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
    os.setsid()
reactors.forked(reactor)
# uvloop's is another, for libuv promises nothing of one that was there before
assert (asyncio.get_event_loop() is before) == (sys.argv[1] == "asyncio")

async def talk():
    server = await asyncio.start_server(lambda _, writer: (writer.write(b"hello"), writer.close()), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    print(await reader.read(), flush=True)
    writer.close()
    reactor.callInThread(reactor.callFromThread, go)

def go():
    reactor.spawnProcess(Child(), "/bin/sh", ["sh", "-c", "exit 3"])

reactor.run()
"""

#: a file, which epoll does not accept; and turns in which nothing is done
FILE = """
from twisted.internet.abstract import FileDescriptor
class Output(FileDescriptor):
    def __init__(self, file):
        super().__init__(reactor)
        self.file = file
        self.fileno = file.fileno
    def writeSomeData(self, data):
        return os.write(self.file.fileno(), data)
    def connectionLost(self, reason):
        print(os.pread(self.file.fileno(), 9, 0), reason.type.__name__)
        reactor.stop()
import tempfile
file = tempfile.TemporaryFile()
def go():
    output = Output(file)
    output.connected = 1
    output.write(b"written")
    output.loseConnection()
reactor.callLater(0, go)
reactor.run()
"""

#: how often the reactor checks for due calls while a hundred calls come due at odd times
TIMERS = """
turns, left = [0], [100]
look = reactor.runUntilCurrent
def counted():
    turns[0] += 1
    look()
reactor.runUntilCurrent = counted
def call(due):
    assert reactor.seconds() >= due
    left[0] -= 1
    if left[0]:
        plan()
    else:
        print(turns[0] < 150)
        reactor.stop()
def plan():
    seconds = 0.003 + left[0] % 10 * 0.00013
    reactor.callLater(seconds, call, reactor.seconds() + seconds)
reactor.callLater(0, plan)
reactor.run()
"""

#: uvloop cannot be imported
WITHOUT = """
import sys
sys.modules["uvloop"] = None
from notify.errors import StartError
from notify.service import reactor as reactors
for wanted in ("uvloop", "auto"):
    try:
        reactors.install(wanted)
    except StartError as error:
        print(error)
from twisted.internet import reactor
print(reactors.running_on(reactor))
"""

#: as with twistd's --reactor=asyncio
GIVEN = """
import sys
from twisted.internet import asyncioreactor
asyncioreactor.install()
from notify.errors import StartError
from notify.service import reactor as reactors
for wanted in ("uvloop", "auto"):
    try:
        reactors.install(wanted)
    except StartError as error:
        print(error)
from twisted.internet import reactor
print(reactors.running_on(reactor))
"""


class Alike(TestCase):
    timeout = 240

    def alike(self, program: str, printed: str) -> Any:
        """Check that the program prints this on each loop, and nothing to stderr."""

        def run_each() -> None:
            for loop in LOOPS if INSTALLED else LOOPS[1:]:
                done = subprocess.run(
                    [sys.executable, "-c", f"{BEGIN}{program}", loop],
                    capture_output=True,
                    text=True,
                    timeout=100,
                )
                self.assertEqual((done.stdout, done.stderr, done.returncode), (printed, "", 0), loop)

        return deferToThread(run_each)

    def test_what_was_sent_before_a_reset_is_read_and_then_the_end_is_seen(self) -> Any:
        return self.alike(RESET, "True ConnectionLost\n")

    def test_the_same_of_a_socket_pair(self) -> Any:
        return self.alike(GONE, "True ConnectionLost\n")

    def test_a_descriptor_may_be_closed_before_it_is_let_go_of(self) -> Any:
        return self.alike(CLOSED, "True\nb'x'\n")

    def test_what_a_descriptor_raises_is_logged_and_ends_nothing_else(self) -> Any:
        return self.alike(RAISES, "b'x' 2\n")

    def test_that_a_child_has_ended_is_seen(self) -> Any:
        return self.alike(CHILD, "ended with 3\n")

    def test_a_daemon_has_timers_sockets_threads_and_children(self) -> Any:
        return self.alike(FORKED, "timer\nb'hello'\nended with 3\n")

    def test_what_epoll_does_not_take_is_written_to(self) -> Any:
        return self.alike(FILE, "b'written' ConnectionDone\n")

    def test_a_timer_that_is_not_due_is_not_looked_for_over_and_over(self) -> Any:
        return self.alike(TIMERS, "True\n")


class Chosen(SynchronousTestCase):
    def test_without_uvloop_it_is_asyncio_s_unless_uvloop_is_asked_for(self) -> None:
        said = run(sys.executable, "-c", WITHOUT)
        self.assertRegex(
            said, r"\Aserver.event_loop: uvloop cannot be used here \(.*\): install it, or .*\nasyncio\n\Z"
        )

    def test_the_reactor_of_twistd_s_option_has_asyncio_s(self) -> None:
        said = run(sys.executable, "-c", GIVEN)
        self.assertRegex(
            said,
            r"\Aserver.event_loop: the reactor chosen by twistd's --reactor has its own event loop: .*\nasyncio\n\Z",
        )

    def test_the_key_takes_three_words(self) -> None:
        self.assertEqual(load(None, {}).server.event_loop, "auto")
        for word in ("auto", "uvloop", "asyncio"):
            self.assertEqual(load(None, {"NOTIFY_SERVER__EVENT_LOOP": word}).server.event_loop, word)
        self.assertRaises(ConfigError, load, None, {"NOTIFY_SERVER__EVENT_LOOP": "gevent"})

    def test_a_reactor_of_another_kind_is_said_to_run_on_asyncio(self) -> None:
        self.assertEqual(reactors.running_on(object()), "asyncio")


class Started(TestCase):
    timeout = 120

    def loops(self, extra: str, wanted: str) -> tuple[list[str], str]:
        """The event loops that a server's processes report in the log, and that of the first process's metrics."""
        with Server(extra, environ={"NOTIFY_SERVER__EVENT_LOOP": wanted}) as server:
            server.logged("event loop")
            (told,) = re.findall(r'notify_build_info{event_loop="(\w+)"', server.http("GET", "/metrics")[1])
            return re.findall(r"event loop (\w+)", server.log()), told

    def test_a_server_says_which_loop_it_has(self) -> Any:
        def both() -> None:
            self.assertEqual(self.loops("", "asyncio"), (["asyncio"], "asyncio"))
            loop = "uvloop" if INSTALLED else "asyncio"
            self.assertEqual(self.loops("", "auto"), ([loop], loop))

        return deferToThread(both)

    def test_workers_have_the_loop_of_the_first_process(self) -> Any:
        def both() -> None:
            for loop in LOOPS if INSTALLED else LOOPS[1:]:
                self.assertEqual(self.loops("[server]\nworkers = 2\n", loop), ([loop] * 3, loop))

        return deferToThread(both)

    def test_a_configuration_that_asks_for_what_is_not_there_is_refused(self) -> Any:
        program = "import sys; sys.modules['uvloop'] = None; sys.argv[0] = 'notify'\nfrom notify.cli.main import main; sys.exit(main())"

        def check() -> None:
            done = subprocess.run(
                [sys.executable, "-c", program, "check-config"],
                env={**os.environ, "NOTIFY_SERVER__EVENT_LOOP": "uvloop", "NOTIFY_AUTH__JWT__SECRET": SECRET},
                capture_output=True,
                text=True,
                timeout=60,
            )
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn("server.event_loop: uvloop cannot be used here", done.stdout + done.stderr)

        return deferToThread(check)
