"""Messages: each protocol survives the way through JSON, and its decoder refuses everything else with one sentence."""

import ast
import json
import math
import os
import pickle
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from alexnet.config import ConfigError, load_config
from alexnet.config.schema import Config
from alexnet.training.loop import Position
from alexnet.training.timing import TIMES, Lap
from multigpu import communicator
from multigpu.communicator import BufferHandle, DesyncError, Ready, StateDigest, TimingReport, WorkerInfo
from multigpu.device.handles import CudaHandle, HostHandle
from multigpu.failure.protocol import HEARTBEATS, ORDERS, EndJob, Failure, Heartbeat, JobSettings, RankDropped, Released
from multigpu.launch.rendezvous import ANSWERS, ARRIVALS, Arrival, Rejected, Welcome
from multigpu.messages import MAX_MESSAGE, Decoder, MessageError, UnknownMessage, decoder, encode
from multigpu.mpi.supervisor_link import ANSWERS as SETTINGS
from multigpu.mpi.supervisor_link import REPORTS, JobEnded, SettingsRequest, StartSettings
from multigpu.rules.gosgd import GossipPush
from multigpu.rules.gossip import GossipTiming, Stop
from multigpu.rules.parameter_server.center import GrantMeta, PushMeta
from multigpu.rules.parameter_server.protocol import (
    Fetch,
    Grant,
    Join,
    Joined,
    Leave,
    LeaveAck,
    Push,
    message_decoder,
    pack_records,
    unpack_records,
)
from multigpu.rules.recovery import LastStep
from multigpu.worker import FolderCreated, Present

LAP = Lap(7, 1.5, 5120, 3.25, 1.0, 0.5, 0.25, 0.125, 0.0)
RECORD = {"iteration": 7, "epoch": 1.5, "images": 64, "cost": 2.5, "error": 0.75, "learning_rate": 0.01,
          "times": dict.fromkeys(TIMES, 0.1)}
INFO = WorkerInfo(7, "cpu", 4711, {"batch_size": 4, "lr_step": [20, 40]}, {"conv1.W": 2**32 - 1})
SERVER = message_decoder(PushMeta, GrantMeta)
GOSSIP = Decoder([Stop, GossipTiming, GossipPush])

# the messages of each decoder that reads what other processes send over a network or a socket
PROTOCOLS = {
    "heartbeats": (HEARTBEATS, [
        Heartbeat(3, 4711, "node-1"),
        Heartbeat(0, 1, "ü", 5, False, True, True, 143, Failure("\x00", 2), JobSettings(3.0, "/log", True), True),
    ]),
    "orders": (ORDERS, [RankDropped(3), EndJob(1, True), Released(143, False)]),
    "rendezvous of rank 0": (ARRIVALS, [Arrival(1, 2, "cuda0", 4711)]),
    "rendezvous": (ANSWERS, [Welcome(None), Welcome("run"), Rejected("rank 1 was started twice")]),
    "supervisor": (REPORTS, [SettingsRequest(), StartSettings({"values": {}}), JobEnded(1, "died", True, "/log.txt")]),
    "supervised rank 0": (SETTINGS, [StartSettings(None)]),
    "parameter server": (SERVER, [
        Push(7, 1, pack_records([RECORD]), [LAP], PushMeta(3, True, 0.5)),
        Fetch(7, 1, b"", [], PushMeta(3, False, 0.0)),
        Leave(7, 1, b"", [LAP], True, PushMeta(3, True, 0.0)),
        Grant(7, 0, False, GrantMeta(4, True)), LeaveAck(7, 0, True), Join(7, 1, INFO),
        Joined(7, 0, Position(1, 2, 3, (0.5, 0.25)), True, False),
    ]),
    "gossip": (GOSSIP, [Stop(7, 1), GossipTiming(7, 1, LAP), GossipPush(7, 1, 0.0625)]),
    "Ready with digest": (decoder(Ready), [Ready(7, 2.5, 0.75, False, StateDigest(6, 1 << 31))]),
    **{type(message).__name__: (decoder(type(message)), [message]) for message in (
        Ready(7, 2.5, 0.75, False), INFO, TimingReport(7, LAP), Present(),
        FolderCreated(Path("/runs/gr\udcfcn")), LastStep(None, Position(), 3, {"iteration": 3, "cost": None}),
    )},
    "handles": (decoder(BufferHandle), [
        BufferHandle(7, HostHandle(4711, 5, 2**63, 4096)),
        BufferHandle(7, CudaHandle(4711, "0000:01:00.0", bytes(range(64)), 4096)),
    ]),
}
CASES = [(decode, message) for decode, messages in PROTOCOLS.values() for message in messages]


@pytest.mark.parametrize(("decode", "message"), CASES, ids=lambda each: type(each).__name__)
def test_message_survives_the_way(decode, message):
    found = decode(encode(message, decode.limit))
    assert found == message and type(found) is type(message)


def test_costs_that_are_not_finite_survive():
    found = decoder(Ready)(encode(Ready(1, math.nan, math.inf, True)))
    assert math.isnan(found.cost) and found.error == math.inf


def test_numbers_of_numpy_are_sent_as_numbers():
    sent = Ready(np.int64(3), np.float32(0.1), np.float64(0.5), np.bool_(True))
    assert decoder(Ready)(encode(sent)) == Ready(3, float(np.float32(0.1)), 0.5, True)


def values_of(content):
    """Yield every place (container, key) of a value of JSON."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(items):
        yield content, key
        if isinstance(value, list | dict):
            yield from values_of(value)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_decoder_refuses_or_returns_a_message_of_its_protocol(name):
    """Each value of each message is replaced by each of some others; the text is cut, and its bytes are changed."""
    decode, messages = PROTOCOLS[name]
    kinds = tuple({type(message) for message in messages})
    others = [None, True, -1, 2**64, 10**400, 0.5, "x", "\0", [], [1], {}, {"x": 1}, [[]] * 5, "\ud800"]
    rng = random.Random(0)
    texts = []
    for message in messages:
        data = encode(message, decode.limit)
        for other in others:
            content = json.loads(data)
            for container, key in list(values_of(content)):
                before, container[key] = container[key], other
                texts.append(json.dumps(content).encode())
                container[key] = before
        texts += [data[:end] for end in range(len(data))]
        for _ in range(300):
            changed = bytearray(data)
            changed[rng.randrange(len(data))] = rng.randrange(256)
            texts.append(bytes(changed))
    refused = 0
    for text in texts:
        try:
            assert isinstance(decode(text), kinds)
        except MessageError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500
    assert refused > len(texts) / 3


class Code:
    """Its pickle creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (os.fspath(self.path),)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_pickles_and_nested_texts_are_refused(name, tmp_path):
    decode = PROTOCOLS[name][0]
    for data in (
        pickle.dumps(Code(tmp_path / "made")), b"[" * 60_000, b"[[" * 20_000 + b"]]" * 20_000, b"", b"[]", b"{}",
        b'["os.system","true"]', b"\xff\xfe[\0", b"1" * 60_000, b'["' + b"x" * 60_000 + b'"]',
    ):
        with pytest.raises(MessageError):
            decode(data)
    assert not (tmp_path / "made").exists()


def test_length_is_checked_before_parsing():
    with pytest.raises(MessageError, match="a message has at most 65536 bytes, got 65537"):
        decoder(Ready)(b" " * (MAX_MESSAGE + 1))
    with pytest.raises(ValueError, match="a message has at most 100 bytes, got Welcome with 214"):
        encode(Welcome("x" * 200), 100)


def test_other_message_is_named_with_its_step():
    with pytest.raises(UnknownMessage, match="a message must be Ready, got 'Done'") as caught:
        decoder(Ready)(encode(communicator.Done(3)))
    assert (caught.value.name, caught.value.step) == ("Done", 3)


@pytest.mark.parametrize(("text", "sentence"), [
    ('["Ready",1,2.5,"x",false,null]', "error of Ready: it must be a number, got 'x'"),
    ('["Ready",1,2.5]', "Ready must be an array of step, cost, error, stop, state, got .*"),
    ('["Ready",true,2.5,0.5,false,null]', "step of Ready: it must be an integer of 64 bits, got True"),
    (f'["Ready",{2**64},2.5,0.5,false,null]', f"step of Ready: it must be an integer of 64 bits, got {2**64}"),
    ('["Ready",1,2.5,0.5,false,null] ', "a message must be one array that begins with a name, got .*"),
])
def test_refusal_names_the_field(text, sentence):
    with pytest.raises(MessageError, match=f"^{sentence}$"):
        decoder(Ready)(text.encode())


def test_records_of_steps_survive_the_way():
    records = [RECORD, RECORD | {"iteration": 8, "cost": math.inf}]
    push = Push(8, 1, pack_records(records), [], PushMeta(3, True, 0.5))
    assert unpack_records(SERVER(encode(push, SERVER.limit))) == records
    with pytest.raises(DesyncError, match=r"rank 1 sends records of 191 bytes, which must be a multiple of 96"):
        unpack_records(push._replace(records=push.records[:-1]))


def test_class_with_another_type_of_field_is_refused():
    class Unsuitable(NamedTuple):
        step: int
        anything: object

    @dataclass
    class Suitable:
        step: int
        anything: Any

    with pytest.raises(TypeError, match="a message cannot have a field of type <class 'object'>"):
        decoder(Unsuitable)
    assert decoder(Suitable)(encode(Suitable(1, [1, {"x": None}]))) == Suitable(1, [1, {"x": None}])
    with pytest.raises(TypeError, match="a message cannot contain a object"):
        encode(Suitable(1, object()))


def test_settings_survive_the_way():
    given = "data=x", "lr_step=2,4", "layer_rates=fc8:10", "weights=w", "devices=cpu,cuda1", "rule=easgd"
    config = load_config(given)
    config = config.with_notes("a note").as_restart(run_name="run")
    found = Config.from_message(json.loads(json.dumps(config.as_message())))
    assert found == config and found.as_dict() == config.as_dict()
    assert (found.given, found.notes, found.is_restart) == (config.given, config.notes, True)


@pytest.mark.parametrize("change", [
    {"values": {}}, {"values": []}, {"others": None}, {"given": {}}, {"more": 1}, {"is_restart": 1},
])
def test_incomplete_settings_are_refused(change):
    with pytest.raises(ConfigError):
        Config.from_message(load_config(["data=x"]).as_message() | change)


# ---- what the source contains

INHERITED = {                                    # files that unpickle, from a pipe between a parent and its own child
    "multigpu/launch/link.py", "multigpu/launch/workers.py", "multigpu/loader.py", "multigpu/device/ipc.py",
    "preprocess/workers.py",
}
TYPED = {                                        # files whose recv() is that of a TcpConnection, a Channel or a socket
    "multigpu/failure/heartbeat.py", "multigpu/failure/monitor.py", "multigpu/mpi/supervisor.py",
    "multigpu/mpi/supervisor_link.py", "multigpu/mpi/tcp.py", "multigpu/launch/signals.py",
    "multigpu/rules/parameter_server/client.py",
}
MPI_PICKLES = {"bcast", "gather", "scatter", "allgather", "alltoall", "reduce", "allreduce", "scan", "exscan", "send",
               "ssend", "isend", "issend", "recv", "irecv", "sendrecv", "mrecv", "pickle"}


@pytest.fixture(scope="module")
def methods():
    """Return (file, method, text of what it belongs to) of each use of a method of MPI_PICKLES in the sources."""
    top = Path(__file__).parents[2]
    return [
        (path.relative_to(top).as_posix(), node.attr, ast.unparse(node.value))
        for package in ("alexnet", "multigpu", "preprocess") for path in sorted((top / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in MPI_PICKLES
    ]


def test_only_pipes_to_own_children_unpickle(methods):
    assert {file for file, attribute, _ in methods if attribute == "recv"} == INHERITED | TYPED


def test_no_method_of_mpi_that_pickles_is_called(methods):
    """mpi4py's methods in lower case pickle; those that begin with a capital send buffers."""
    mpi = [(file, attribute, owner) for file, attribute, owner in methods
           if owner.split(".")[-1] in ("mpi", "_mpi", "_messages", "MPI", "COMM_WORLD", "envelope", "on_this_machine")
           or (file.startswith("multigpu/mpi/") and owner == "comm" and attribute != "allgather")]
    assert mpi == []
