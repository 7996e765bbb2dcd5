"""Targets: settings, and the records and the report of a run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from alexnet.commands.diagnose import findings_of
from alexnet.config import DEFAULTS, Config, ConfigError, check_sections, dump, load, load_config, read_settings
from alexnet.config.yaml_text import sealed
from alexnet.native.untrusted import InputError
from alexnet.plots import records
from alexnet.plots.report import history
from alexnet.plots.report.predictions import Example
from alexnet.run import checkpoint_format, recorder
from multigpu.exchange import STRATEGIES
from multigpu.messages import MessageError, encode
from multigpu.mpi.supervisor_link import ANSWERS, StartSettings
from multigpu.rules import RULES
from tests.fuzz import mutation
from tests.fuzz.target import Target
from tests.fuzz.weights_files import checkpoint_mutated, checkpoint_repaired, temporary


@contextmanager
def no_extensions() -> Iterator[None]:
    """Refuse model=module:Class within a with block, because such a setting imports code, as documented."""

    def refused(name: str, setting: str) -> None:
        raise ConfigError(f"{setting}: imports are switched off")

    def read(path: Path) -> dict:
        return dict(defaults) if path == DEFAULTS else read_settings(path)

    len(RULES), len(STRATEGIES)                  # imports the modules that declare settings
    defaults = read_settings(DEFAULTS)           # once, because it takes 20 ms
    with patch.object(load, "import_attribute", refused), patch.object(load, "read_settings", read):
        yield


# ---- settings


def read_file(path: Path) -> object:
    return load_config([f"--config={path}", "data=batches"]).as_dict()


def settings_seeds() -> Iterator[bytes]:
    yield b"# comment\n%s" % DEFAULTS.read_bytes().partition(b"\nbatch_size:")[2][:400]
    yield b"batch_size: 128\nlearning_rate: 1e-2\nlr_step: [20, 40]\nlayer_rates: {fc8: 10}\ndevices: [cpu, cpu]\n"
    yield sealed("batch_size: 8\n").encode()
    yield sealed("batch_size: 8\n").encode().replace(b"8", b"9", 1)
    yield b"model: os:system\n"
    yield b"momentum: !!float '0.9'\nbatch_size: !!int 8\nmodel: !!str alexnet\n"
    yield b"!!python/object/apply:os.system [ls]\n"
    yield b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
    yield b"a: &a [*a]\n"
    yield b"- 1\n- 2\n"
    for tagged in ("binary aGVsbG8=", "set {a, b}", "timestamp 2001-12-14", "bool x", "int x", "map x"):
        yield f"run_name: !!{tagged}\n".encode()
    yield b"batch_size: " + b"9" * 4400 + b"\n"
    yield b"batch_size: .nan\nclasses: .inf\nlearning_rate: -.inf\n"
    yield b"[" * 900
    yield b"? [a]\n: b\n"
    yield b"? - - a\n"
    yield b"batch_size: 8\nbatch_size: 9\n"
    yield "model: \u202e\nn_epochs: |\n  a\n  b\n".encode()
    yield b"\xff\xfea\0:\0 \0b\0"
    yield b"%YAML 1.1\n---\na: b\n--- \nc\n...\n"


def read_arguments(path: Path) -> object:
    arguments = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    return load_config(argument for argument in arguments if not argument.startswith("--config")).as_dict()


def argument_seeds() -> Iterator[bytes]:
    yield b"data=batches\nbatch_size=128\nlearning_rate=1e-2\nlr_step=20,40\nlayer_rates=fc8:10,conv1:0.1\nweights=w"
    yield b"devices=cpu,cpu\nrule=easgd\nresume_train=true\nfrozen_layers=none\nnew_layers=auto\nmodel=caffenet"
    yield b"rank=0\nsize=2\ndevice=cuda0\nlr_policy=poly\nrandom_resized_crop=0.08\nprecision=bfloat16"
    yield b"--lr\n0.1"
    yield b"lr=0.1"
    yield b"gpus=1\nepochs=3"
    yield b"devices=gpu:1"
    yield b"batch_size=8\nbatch_size=9"
    yield b"batch_size="
    yield b"batch_size=[1, [2, {a: b}]]\nlr_step={a: 1}\nlayer_rates=[x]\nnew_layers={a: b}"
    yield b"model=os:system"
    yield b"batch_size=&a [*a]"
    yield b"run_name=../x\ndevices="
    yield b"batch_size=" + b"9" * 5000
    yield b"learning_rate=1" + b"0" * 400
    yield b"lr_step=" + b"9" * 5000
    for contradiction in (
        "lr_step=40,20", "warmup_epochs=100", "lr_policy=auto validation=false", "batch_size=8 micro_batch_size=3",
        "random_resized_crop=0.5 use_data_layer=true", "random_resized_crop=0.5 use_data_layer=false rand_crop=false",
        "new_layers=auto,fc8", "weights=w frozen_layers=fc8 layer_rates=fc8:2", "frozen_layers=fc8", "devices=auto,cpu",
        "rank=0", "rank=0 size=2 device=cpu max_restarts=2", "rank=3 size=2 device=cpu", "rank=0 size=1 device=auto",
        "layer_rates=fc8:x", "layer_rates=fc8:1,fc8:2", "rule=bsp exchange=x", "momentum=2", "resume_train=false",
    ):
        yield contradiction.replace(" ", "\n").encode()


# ---- records


RECORDS = (
    {"kind": "train", "iteration": 1, "epoch": 0.25, "cost": 2.3, "top1_error": 0.9, "learning_rate": 0.01, "images": 4,
     "seconds": 0.5, "calc": 0.4, "sync": 0.0, "comm": 0.0, "wait": 0.1, "worker": None, "at": "2020-01-01 00:00:00"},
    {"kind": "validation", "iteration": 4, "epoch": 1, "cost": 2.2, "top1_error": 0.8, "top5_error": 0.1, "seconds": 1,
     "at": "2020-01-01 00:00:01"},
    {"kind": "speed", "iteration": 4, "epoch": 1, "images": 16, "workers": 1, "seconds": 2.0, "calc": 1.5, "sync": 0.0,
     "comm": 0.1, "wait": 0.2, "slowest": 0, "at": "2020-01-01 00:00:02"},
    {"kind": "statistics", "iteration": 4, "epoch": 1, "conv1.gradient": 0.1, "conv1.update": 0.001, "conv1.dead": 0.5,
     "confidence": 0.9},
)


def prepare_run(folder: Path) -> None:
    (folder / "config.yaml").write_text("model: alexnet\ndata: /x/y\nclasses: 10\nn_epochs: 2\nrule: bsp\nsync: avg\n")


def read_run(path: Path) -> object:
    run = records.read_run(path.parent)
    names = records.rule_of(run), records.strategy_of(run), records.workers_of(run), run.workers, run.shows_top5
    titles = records.title_of(run), records.what_is_common([run, run]), records.what_differs([run])
    return run.records, run.settings, names, titles, findings_of(path.parent)


def record_seeds() -> Iterator[bytes]:
    yield b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)
    yield b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS[:1] * 40)
    lines = [*map(recorder.line_of, RECORDS)]
    yield "".join(lines).encode()
    yield lines[0].replace("0.9", "0.8").encode()
    yield f"{lines[0][:-1]}\v".encode()
    yield f"{lines[0]}{json.dumps(RECORDS[1])}\n".encode()
    yield json.dumps(RECORDS[0]).encode()
    yield b'{"kind": "train"}\n'
    yield b'{"kind": []}\n{"kind": {}}\n'
    yield b'{"kind": "x", "iteration": 1e999, "epoch": ' + b"9" * 400 + b"}\n"
    yield b"[" * mutation.DEPTH + b"\n"
    yield b"5\n"
    yield b"\xff\n"
    yield b'{"kind": "train\\n\\u001b", "worker": [], "seconds": "x", "hours": 5}\n'


def read_settings_of(path: Path) -> object:
    run = records.read_run(path.parent)
    titles = records.title_of(run), records.what_is_common([run, run]), records.what_differs([run])
    return run.settings, records.rule_of(run), records.strategy_of(run), titles, findings_of(path.parent)


def restart_seeds() -> Iterator[bytes]:
    """Yield messages of a supervisor to rank 0 of a restarted job."""
    config = load_config(["data=x", "micro_batch_size=32"]).with_notes("a note").as_restart(run_name="run")
    message = config.as_message()
    for settings in (
        message, None, {}, message | {"is_restart": 1}, message | {"values": message["values"] | {"batch_size": "x"}},
        message | {"others": {"rule": [], "sync": 3, "no": None}}, message | {"given": [1, None], "notes": [{}]},
    ):
        yield encode(StartSettings(settings))


def read_restart(path: Path) -> object:
    """Read the settings of a restart as rank 0 does; check that sending them again changes nothing."""
    settings = ANSWERS(path.read_bytes()).settings
    if not settings:
        return None
    config = Config.from_message(settings)
    check_sections(config)
    message = config.as_message()
    assert Config.from_message(message).as_message() == message
    return dump(config), message, config.given, config.notes, config.is_restart, config.micro_batches


def prepare_records(folder: Path) -> None:
    (folder / recorder.LINES).write_bytes(next(record_seeds()))


def run_settings_seeds() -> Iterator[bytes]:
    yield b"model: alexnet\ndata: /x/y\nclasses: 10\nn_epochs: 2\nrule: bsp\nsync: avg\n"
    yield b"model: [a]\ndata: {a: b}\nclasses: true\nn_epochs: x\nrule: []\nsync: {}\nexchange: [auto]\n"
    yield from settings_seeds()


# ---- report


def history_seeds() -> Iterator[bytes]:
    filters = np.random.default_rng(0).standard_normal((3, 2, 2, 2)).astype(np.float32)
    example = Example("aGVsbG8=", 1, [(1, 0.5), (0, 0.25)], 0.7)
    validated = history.Validated(2, 8, 3, 3, np.array([[1, 0], [1, 1]]), [example], [example])
    for found in (
        history.History(), history.History(2, ["a", "b"], {0: filters, 1.5: filters}),
        history.History(2, None, {0: filters}, validated),
    ):
        history.save(found, temporary())
        yield (temporary() / records.REPORT).read_bytes()


def prepare_checkpoints(folder: Path) -> None:
    """Write a checkpoint, and a later one that is damaged."""
    arrays = {history.FILTERS: np.zeros((3, 2, 2, 2), np.float32)}
    metadata = {"position": {"epoch": 1, "iteration": 4}, "classes": 2}
    for iteration in (4, 8):
        checkpoint_format.save(checkpoint_format.snapshot_path(folder, iteration), arrays, metadata)
    path = checkpoint_format.snapshot_path(folder, 8)
    path.write_bytes(path.read_bytes()[:-1])


def read_history(path: Path) -> object:
    found = history.load_or_rebuild(path.parent)
    found.truncate(1, 5)
    return found, found.initial, records.classes_of(path.parent)


RECORDS_READ = (
    "alexnet.plots.records:read_run,append,asynchronous_workers,settings_of,classes_of,title_of,what_is_common,"
    "what_differs,rule_of,strategy_of,workers_of,number"
)
TARGETS = {
    "settings": Target(
        "settings.yaml", read_file, (ConfigError,), settings_seeds,
        ("alexnet.config.load", "alexnet.config.yaml_text", "alexnet.config.fields", "alexnet.config.schema"),
        longest=400,
    ),
    "arguments": Target(
        "arguments", read_arguments, (ConfigError,), argument_seeds,
        ("alexnet.config.load", "alexnet.config.fields", "alexnet.config.schema", "alexnet.config.synonyms"),
        longest=400,
    ),
    "restart_settings": Target(
        "message", read_restart, (MessageError, ConfigError), restart_seeds,
        ("alexnet.config.fields", "alexnet.config.schema"), structure=mutation.json_mutated,
    ),
    "records": Target(
        recorder.LINES, read_run, (FileNotFoundError, InputError), record_seeds,
        (RECORDS_READ, "alexnet.commands.diagnose:findings_of",
         "alexnet.run.recorder:each_record,checked,parsed,is_number"),
        prepare_run, mutation.json_lines_mutated, longest=2000,
    ),
    "run_settings": Target(
        "config.yaml", read_settings_of, (FileNotFoundError, InputError), run_settings_seeds,
        (RECORDS_READ,), prepare_records, longest=400,
    ),
    "history": Target(
        "report.safetensors", read_history, (), history_seeds,
        ("alexnet.plots.report.history", "alexnet.run.checkpoint_format"), prepare_checkpoints,
        structure=checkpoint_mutated, repair=checkpoint_repaired,
    ),
}
