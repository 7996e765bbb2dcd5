"""Settings: precedence of their sources, YAML 1.2 scalars, and one-sentence errors."""

import pickle

import pytest

from alexnet.config import DEFAULTS, Config, ConfigError, dump, load_config, read_settings
from alexnet.config.schema import sections
from alexnet.config.synonyms import SETTINGS
from alexnet.config.yaml_text import parse
from alexnet.training.update_settings import MomentumSettings, UpdateSettings
from alexnet.training.updates import UPDATE_RULES
from multigpu.exchange import STRATEGIES
from multigpu.rules import RULES


@pytest.fixture
def settings_file(tmp_path):
    def write(text):
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


def refusal(*arguments, path=None):
    with pytest.raises(ConfigError) as caught:
        load_config([*arguments, *([f"--config={path}"] if path else [])])
    message = str(caught.value)
    assert "\n" not in message
    return message


def all_settings():
    """Return the names of the settings of Config and of every section of the program."""
    assert RULES and STRATEGIES and UPDATE_RULES         # imports their modules, which declare sections
    kinds = [Config, *(kind for kind in sections() if not kind.__module__.startswith("tests"))]
    return {name for kind in kinds for name in kind.model_fields}


def test_defaults_are_the_papers():
    config = load_config(["data=/batches"])
    assert (config.batch_size, config.n_epochs, config.learning_rate) == (256, 60, 0.01)
    update = config.section(UpdateSettings)
    assert (config.section(MomentumSettings).momentum, update.weight_decay, config.dropout_rate) == (0.9, 0.0005, 0.5)
    assert (config.lr_policy, config.lr_step, config.lr_factor) == ("step", (20, 40), 0.1)
    assert update.use_momentum and not update.use_nesterov_momentum
    assert config.para_load and config.random_seed == 23455


def test_config_yaml_documents_exactly_the_settings():
    text = DEFAULTS.read_text(encoding="utf-8")
    settings = parse(text, "config.yaml")
    first_run = settings.pop("first_run")
    assert set(settings) == all_settings()
    assert set(first_run) < all_settings()
    for key in settings:
        line = next(line for line in text.splitlines() if line.startswith(f"{key}:"))
        assert "#" in line, f"{key} has no comment"


def test_later_sources_take_precedence(settings_file):
    first_run = parse(DEFAULTS.read_text(encoding="utf-8"), "config.yaml")["first_run"]
    path = settings_file("batch_size: 7\nmomentum: 0.5\n")
    config = load_config(["momentum=0.25", "--config", str(path)])
    assert config.n_epochs == first_run["n_epochs"]
    assert (config.batch_size, config.section(MomentumSettings).momentum) == (7, 0.25)
    assert load_config([f"--config={path}"]).as_dict() == load_config([], read_settings(path), path).as_dict()


def test_first_run_settings_apply_only_without_data(settings_file):
    first_run = parse(DEFAULTS.read_text(encoding="utf-8"), "config.yaml")["first_run"]
    assert load_config([]).batch_size == first_run["batch_size"] != 256
    assert load_config(["data=/batches"]).batch_size == 256
    assert load_config([f"--config={settings_file('data: /batches')}"]).batch_size == 256
    assert load_config(["data=null", f"--config={settings_file('data: /batches')}"]).batch_size != 256


def test_dumped_config_round_trips(settings_file):
    tuned = "weights=w", "new_layers=none", "layer_rates=fc8:10", "frozen_layers=conv1,conv2"
    config = load_config([*tuned, "data=/a: b #c", "lr_step=3,5", "run_name=true story", "weight_decay=1e-7"])
    assert load_config([f"--config={settings_file(dump(config))}"]).as_dict() == config.as_dict()


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_dumped_config_is_reported(bit, settings_file, capsys):
    data = dump(load_config(["data=/a", "run_name=true story"])).encode()
    path = settings_file("")
    settings = parse(data, "config.yaml")
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1:])
        try:
            same = read_settings(path) == settings
        except ConfigError:
            continue
        assert f"note: {path} has changed since a run wrote it" in capsys.readouterr().err or same, place


def test_config_is_frozen_and_pickles():
    config = load_config(["lr_step=[3, 5]"])
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ValueError, match="frozen"):
        config.batch_size = 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-2", 0.01), ("1E+3", 1000.0), (".5", 0.5), ("-2.", -2.0), ("3", 3), ("010", 10), ("+7", 7),
        ("1_000", "1_000"), ("0x10", "0x10"), ("1:30", "1:30"), ("2014-12-07", "2014-12-07"), ("=", "="),
        ("on", "on"), ("yes", "yes"), ("No", "No"), ("true", True), ("False", False), ("null", None), ("~", None),
        (".inf", float("inf")), ("-.INF", -float("inf")), ("'3'", "3"), ("[1, a]", [1, "a"]),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    parsed = parse(text, "text")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("learning_rate=1e-2", "learning_rate", 0.01),
        ("learning_rate=1", "learning_rate", 1.0),
        ("data=42", "data", "42"),
        ("data=[old] a: b", "data", "[old] a: b"),
        ("run_name=1e3", "run_name", "1e3"),
        ("lr_step=3,5", "lr_step", (3, 5)),
        ("lr_step=3", "lr_step", (3,)),
        ("lr_step=[]", "lr_step", ()),
        ("devices=[cpu]", "devices", ("cpu",)),
        ("devices=cuda0, cuda12", "devices", ("cuda0", "cuda12")),
        ("resume_train=true", "resume_train", "latest"),
        ("resume_train=false", "resume_train", None),
        ("resume_train=runs/a", "resume_train", "runs/a"),
        ("data=a=b", "data", "a=b"),
        ("weights=42", "weights", "42"),
        ("layer_rates=fc8:10, conv1:.1", "layer_rates", {"fc8": 10.0, "conv1": 0.1}),
        ("layer_rates={fc8: 1e1}", "layer_rates", {"fc8": 10.0}),
        ("layer_rates={}", "layer_rates", {}),
        ("new_layers=auto", "new_layers", ("auto",)),
    ],
)
def test_arguments_are_parsed(argument, field, value):
    assert getattr(load_config([argument]), field) == value


def test_every_synonym_suggests_a_setting():
    names = [name for synonyms in SETTINGS.values() for name in synonyms.split()]
    settings = set(read_settings(DEFAULTS))
    assert SETTINGS.keys() <= settings and len(names) == len(set(names)) and not settings & set(names)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("batchsize=3", "there is no setting 'batchsize'; did you mean batch_size?"),
        ("lr=0.1", "there is no setting 'lr'; did you mean learning_rate?"),
        ("Learning-Rate=0.1", "there is no setting 'Learning-Rate'; did you mean learning_rate?"),
        ("--epochs=3", "an argument must be key=value, perhaps n_epochs=3, got '--epochs=3'"),
        ("batch_size", "an argument must be key=value, perhaps batch_size=..., got 'batch_size'"),
        ("zzz=3", "there is no setting 'zzz'; `python train.py --help` lists all settings"),
        ("batch_size=1e2", "batch_size must be an integer, got 100.0"),
        ("batch_size=0", "batch_size must be greater than 0, got 0"),
        ("batch_size=true", "batch_size must be an integer, got true"),
        ("batch_size=a", "batch_size must be an integer, got the text 'a'"),
        ("batch_size={a", "batch_size={a is not valid YAML in line 1: expected ',' or '}', but got '<stream end>'"),
        ("n_iterations=0", "n_iterations must be greater than 0 or null, got 0"),
        ("shuffle=on", "shuffle must be true or false, got the text 'on'"),
        ("shuffle=1", "shuffle must be true or false, got 1"),
        ("learning_rate=0", "learning_rate must be greater than 0, got 0"),
        ("learning_rate=.nan", "learning_rate must be a finite number, got .nan"),
        ("weight_decay=.inf", "weight_decay must be a finite number, got .inf"),
        ("momentum=1", "momentum must be less than 1, got 1"),
        ("momentum=true", "momentum must be a number, got true"),
        ("dropout_rate=1.0", "dropout_rate must be less than 1, got 1.0"),
        ("lr_policy=stepp", "lr_policy must be 'step', 'auto', 'poly', 'linear', 'cosine' or 'constant', got "
         "the text 'stepp'"),
        ("random_resized_crop=0", "random_resized_crop must be greater than 0 or null, got 0"),
        ("pca_colour=-0.1", "pca_colour must be greater than or equal to 0, got -0.1"),
        ("clip_norm=0", "clip_norm must be greater than 0 or null, got 0"),
        ("lr_step=20,10", "lr_step must be rising epochs, got [20, 10]"),
        ("lr_step=5,5", "lr_step must be rising epochs, got [5, 5]"),
        ("lr_step=5,x", "lr_step must be an integer, got the text '5,x'"),
        ("lr_step=null", "lr_step must be a list, got null"),
        ("threads=100000", "threads must be less than or equal to 1024 or null, got 100000"),
        ("slots=1", "slots must be greater than or equal to 2, got 1"),
        ("devices=gpu", "devices must be auto, cpu, or cuda and a number, as cuda0, got the text 'gpu'"),
        ("devices=cuda:1", "devices must be auto, cpu, or cuda and a number, as cuda1, got the text 'cuda:1'"),
        ("devices=2", "devices must be auto, cpu, or cuda and a number, as cuda2, got 2"),
        ("devices=cpu,auto", "devices must be only auto, or name each worker's device, got ['cpu', 'auto']"),
        ("rank=-1", "rank must be greater than or equal to 0 or null, got -1"),
        ("rank=0", "a worker started by hand needs rank, size and device together, got only rank=0"),
        ("devices=[]", "devices must have at least 1 item, got []"),
        ("run_name=a/b", "run_name must be a folder's plain name (no slash, no dot first) or null, got the text 'a/b'"),
        ("output=null", "output must be a string, got null"),
        ("data=", "data= has no value; data=null means none"),
        ("--batch_size=3", "an argument must be key=value, perhaps batch_size=3, got '--batch_size=3'"),
        ("3", "an argument must be key=value, got '3'"),
        ("--config", "--config needs a file, got none"),
        ("--config=/nowhere", "the settings file /nowhere cannot be read: No such file or directory"),
        ("layer_rates=fc8", "layer_rates must be layers and factors, as fc8:10,conv1:0.1, got the text 'fc8'"),
        ("layer_rates=fc8:x", "layer_rates must be layers and factors, as fc8:10,conv1:0.1, got the text 'fc8:x'"),
        ("layer_rates=fc8:1,fc8:2", "layer_rates must name each layer once, got the text 'fc8:1,fc8:2'"),
        ("layer_rates=fc8:0", "layer_rates must be greater than 0, got the text 'fc8:0'"),
        ("layer_rates={fc8: .inf}", "layer_rates must be a finite number, got {fc8: .inf}"),
        ("layer_rates=3", "layer_rates must be layers and factors, as {fc8: 10}, got 3"),
        ("frozen_layers=null", "frozen_layers must be a list, got null"),
        ("frozen_layers=a", "frozen_layers and new_layers are about trained weights, so they need weights=, got null"),
        ("heartbeat_timeout=0", "heartbeat_timeout must be greater than 0, got 0"),
        ("first_run=3", "there is no setting 'first_run'; `python train.py --help` lists all settings"),
    ],
)
def test_invalid_argument_is_refused(argument, message):
    assert refusal(argument) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["weights=w", "layer_rates=conv1:2", "frozen_layers=conv1,conv2"],
            "conv1 is one of frozen_layers, so it has no learning rate and begins with no new weights: "
            "take it from layer_rates, new_layers or frozen_layers",
        ),
        (["weights=w", "new_layers=auto,a"], "new_layers must be only auto, or name the layers, got ['auto', 'a']"),
        (["rank=2", "size=2", "device=cpu"], "rank must be 0 to 1 for size=2, got 2"),
        (
            ["rank=0", "size=2"],
            "a worker started by hand needs rank, size and device together, got only rank=0, size=2",
        ),
        (
            ["rank=0", "size=2", "device=auto"],
            "device must be cpu, or cuda and a number, for a worker started by hand, got auto",
        ),
        (["batch_size=1", "batch_size=2"], "batch_size is given twice, the second time as '2'; give it once"),
        (
            ["random_resized_crop=0.08"],
            "use_data_layer must be false with random_resized_crop=0.08, because the loader resizes the crops, got "
            "true",
        ),
        (
            ["random_resized_crop=0.08", "use_data_layer=false", "rand_crop=false"],
            "rand_crop must be true with random_resized_crop=0.08, or random_resized_crop null for center crops, got "
            "false",
        ),
        (["n_epochs=3", "warmup_epochs=3"], "warmup_epochs must be less than n_epochs = 3, got 3"),
        (
            ["use_nesterov_momentum=true", "use_momentum=false"],
            "use_nesterov_momentum is true but use_momentum is false: set both or neither",
        ),
        (
            ["use_nesterov_momentum=true", "update=adagrad"],
            "update is adagrad, but use_nesterov_momentum=true means nesterov: set one of the two",
        ),
        (
            ["use_momentum=false", "update=momentum"],
            "update is momentum, but use_momentum=false means sgd: set one of the two",
        ),
        (
            ["lr_policy=auto", "validation=false"],
            "lr_policy auto follows the validation error, so validation must be true, got false",
        ),
    ],
)
def test_contradictory_settings_are_refused(arguments, message):
    assert refusal(*arguments) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size: 1\nmomentum: 0\nbatch_size: 2\n", " line 3: batch_size is given twice, first in line 1"),
        ("momentun: 1", ": there is no setting 'momentun'; did you mean momentum?"),
        ("batch_size: a", ": batch_size must be an integer, got the text 'a'"),
        ("- 3", " must hold lines of `key: value`, got [3]"),
        ("", " must hold lines of `key: value`, got None"),
        ("a: [", " is not valid YAML in line 1: expected the node content, but found '<stream end>'"),
        ("3: 4", " line 1: a setting's name must be a word, got 3"),
        ("data: &a [1]\nmodel: *a", " line 2: write the value of *a out; aliases are not read"),
        ("momentum: !!float [1]", " is not valid YAML in line 1: expected a scalar node, but found sequence"),
        ("data:\n " + "[" * 5000, " line 2: values are nested more than 10 deep"),
        ("data: !!python/x []", " is not valid YAML in line 1: could not determine a constructor "
         + "for the tag 'tag:yaml.org,2002:python/x'"),
    ],
)
def test_invalid_settings_file_is_refused(settings_file, text, message):
    path = settings_file(text)
    assert refusal(path=path) == f"{path}{message}"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x80abc\x01", b"batch_size: \xb0"], ids=["UTF-16", "ASCII"])
def test_settings_file_of_arbitrary_bytes_is_refused(content, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    assert str(path) in refusal(path=path)


def test_help_prints_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        load_config(["batch_size=nonsense", "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"\n{key}: " in printed for key in all_settings())
