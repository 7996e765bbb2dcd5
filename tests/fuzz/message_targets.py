"""Targets: messages of the failure detector, of the supervisor of an MPI job, of the rendezvous and of the server."""

from collections.abc import Callable, Iterator
from pathlib import Path

from alexnet.training.loop import Position
from alexnet.training.timing import Lap
from multigpu.communicator import WorkerInfo
from multigpu.failure import protocol
from multigpu.launch import rendezvous
from multigpu.launch.link import LogOpened
from multigpu.messages import Decoder, MessageError, encode
from multigpu.mpi import supervisor_link
from multigpu.rules.parameter_server.protocol import Fetch, Grant, Join, Joined, Leave, LeaveAck, Push, message_decoder
from tests.fuzz import mutation
from tests.fuzz.target import Target

MESSAGES = "multigpu.messages:__call__,check,int_check,float_check,bytes_check,path_check,shown"         # not encoding
FAILURE = protocol.Failure("rank 1 has died", 3, caused_by_peer=True)
STATE = protocol.Heartbeat(1, 42, "node", 7, False, True, finished=0, failure=FAILURE,
                           settings=protocol.JobSettings(300, "log.txt", True))
FAILURE_DETECTOR = (
    protocol.Heartbeat(0, 41, "node"), STATE, protocol.RankDropped(2), protocol.EndJob(1, True),
    protocol.Released(0, False), supervisor_link.SettingsRequest(), supervisor_link.StartSettings({"a": [1, None]}),
    supervisor_link.StartSettings(None), LogOpened(Path("log.txt")), supervisor_link.JobEnded(1, "rank 1 has died"),
)
RENDEZVOUS = (
    rendezvous.Arrival(1, 2, "cuda0", 42), rendezvous.Welcome("run"), rendezvous.Welcome(None),
    rendezvous.Rejected("rank 1 was started twice"),
)
LAPS = [Lap(1, 0.5, 16, 1.0, 0.5, 0.0, 0.25, 0.25, 0.0)]
INFO = WorkerInfo(0, "cpu", 42, {"rule": "asgd", "lr_step": [20, 40]}, {"conv1.W": 7})
SERVER = (
    Push(1, 2, b"\0" * 88, LAPS), Fetch(1, 2, b"", []), Grant(1, 0, True), Leave(3, 1, b"\1", LAPS, False),
    LeaveAck(1, 0), Join(0, 1, INFO), Joined(0, 0, Position(1, 2, 3, (0.5, 0.25)), False, True),
)
BROKEN = (
    b"", b"[]", b"{}", b"[1]", b'["Arrival"]', b'["Welcome",1]', b'["Welcome",null] ', b'["Welcome",null][]',
    b'["RankDropped",1e400]', b'["RankDropped",18446744073709551616]', b'["RankDropped",NaN]', b'["RankDropped",true]',
    b'["EndJob",1,1]', b'["Heartbeat",1,2,"a",3,true,true,false,null,[],[],true]', b"\xff", b"[" * mutation.DEPTH,
    b'["StartSettings",[1]]', b'["StartSettings",{"a":{"b":[[]]}}]', b'["LogOpened","\\u0000"]', b'["Unknown",1]',
    b'["Rejected","\\ud800"]', b"x" * (protocol.MAX_BYTES + 1),
)


def reader(*decoders: Decoder) -> Callable[[Path], object]:
    """Return a function that decodes a file by each of these Decoders, and checks that encoding is its inverse."""
    def read(path: Path) -> object:
        data = path.read_bytes()
        error = None
        for decode in decoders:
            try:
                message = decode(data)
            except MessageError as refused:
                error = refused
            else:
                again = decode(encode(message, decode.limit))
                assert repr(again) == repr(message), f"{again} from the encoding of {message}"
                return message
        raise error or AssertionError("no decoder")

    return read


def seeds_of(messages: tuple) -> Callable[[], Iterator[bytes]]:
    def seeds() -> Iterator[bytes]:
        yield from map(encode, messages)
        yield from BROKEN

    return seeds


def target(messages: tuple, *decoders: Decoder) -> Target:
    return Target("message", reader(*decoders), (MessageError,), seeds_of(messages), (MESSAGES,),
                  structure=mutation.json_mutated, longest=600)


TARGETS = {
    "failure_detector": target(
        FAILURE_DETECTOR, protocol.HEARTBEATS, protocol.ORDERS, supervisor_link.REPORTS, supervisor_link.ANSWERS
    ),
    "parameter_server": target(SERVER, message_decoder()),
    "rendezvous": target(RENDEZVOUS, rendezvous.ARRIVALS, rendezvous.ANSWERS),
}
