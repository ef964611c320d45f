"""Settings and the command line: flags, variables and the file say the same things in the same way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from webui.errors import SettingsError
from webui.filenames import DEFAULT_PATTERN
from webui.flags import load
from webui.settings import EXTENSIONS, SHIPPED_MODELS, Settings

SECRET = "correct horse"


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """An empty working folder, and no variable that means something to us."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("WEBUI_", "SPACE_")) or name == "SYSTEM":
            monkeypatch.delenv(name)


# Flag(s), the variable with its value, the same in TOML.
SAME = [
    ("--host ::1", "WEBUI_HOST=::1", 'host = "::1"'),
    ("--listen --open", "WEBUI_LISTEN=1 WEBUI_OPEN=true", "listen = true\nopen = true"),
    ("--port 7999", "WEBUI_PORT=7999", "port = 7999"),
    ("--root-path studio/", "WEBUI_ROOT_PATH=studio/", 'root_path = "studio/"'),
    (
        "--allow-host A.example --allow-host .b.example",
        "WEBUI_ALLOW_HOST=A.example,.b.example",
        'allowed_hosts = ["A.example", ".b.example"]',
    ),
    ("--auth ann:a,b:c", "WEBUI_AUTH=ann:a,b:c", 'auth = ["ann:a,b:c"]'),
    ("--auth-file people", "WEBUI_AUTH_FILE=people", 'auth_file = "people"'),
    ("--admin ann --admin bob", "WEBUI_ADMIN=ann,bob", 'admin = ["ann", "bob"]'),
    ("--plugins-dir a --plugins-dir b", f"WEBUI_PLUGINS_DIR=a{os.pathsep}b", 'plugins_dir = ["a", "b"]'),
    ("--no-extensions", "WEBUI_NO_EXTENSIONS=1", "no_extensions = true"),
    ("--models-dir a --models-dir b", f"WEBUI_MODELS_DIR=a{os.pathsep}b", 'models_dir = ["a", "b"]'),
    ("--model big", "WEBUI_MODEL=big", 'model = "big"'),
    ("--device cuda:1", "WEBUI_DEVICE=cuda:1", 'device = "cuda:1"'),
    ("--dtype float32", "WEBUI_DTYPE=float32", 'dtype = "float32"'),
    ("--attention sliced", "WEBUI_ATTENTION=sliced", 'attention = "sliced"'),
    ("--offload group", "WEBUI_OFFLOAD=group", 'offload = "group"'),
    ("--vram-budget 7.5", "WEBUI_VRAM_BUDGET=7.5", "vram_budget = 7.5"),
    ("--ram-budget 12", "WEBUI_RAM_BUDGET=12", "ram_budget = 12"),
    ("--idle-release 5", "WEBUI_IDLE_RELEASE=5", "idle_release = 5"),
    ("--speed plain", "WEBUI_SPEED=plain", 'speed = "plain"'),
    ("--allow-pickle", "WEBUI_ALLOW_PICKLE=1", "allow_pickle = true"),
    ("--cells exact", "WEBUI_CELLS=exact", 'cells = "exact"'),
    ("--share --open", "WEBUI_SHARE=1 WEBUI_OPEN=1", "share = true\nopen = true"),
    ("--queue-size 3", "WEBUI_QUEUE_SIZE=3", "queue_size = 3"),
    ("--queue-per-owner 2", "WEBUI_QUEUE_PER_OWNER=2", "queue_per_owner = 2"),
    ("--patience 1.5", "WEBUI_PATIENCE=1.5", "patience = 1.5"),
    ("--filename-pattern [date]", "WEBUI_FILENAME_PATTERN=[date]", 'filename_pattern = "[date]"'),
    ("--log-level debug", "WEBUI_LOG_LEVEL=debug", 'log_level = "debug"'),
]


def fields(settings: Settings) -> dict[str, object]:
    return settings.model_dump()


@pytest.mark.parametrize(("flags", "variables", "toml"), SAME, ids=lambda value: value.split()[0])
def test_a_flag_a_variable_and_a_key_mean_the_same(flags, variables, toml, monkeypatch, tmp_path):
    by_flag = fields(load(flags.split()))
    assert by_flag != fields(load([]))
    with monkeypatch.context() as variable:
        for pair in variables.split():
            variable.setenv(*pair.split("=", 1))
        assert fields(load([])) == by_flag
    (tmp_path / "webui.toml").write_text(toml)
    assert fields(load([])) == by_flag


def test_every_setting_is_among_those_compared():
    compared = {line.split(" = ")[0] for *_, toml in SAME for line in toml.splitlines()}
    assert compared == set(Settings.model_fields) - {"on_space", "data_dir"}


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(monkeypatch, tmp_path):
    (tmp_path / "webui.toml").write_text('port = 7001\nqueue_size = 1\nmodel = "file"\nallowed_hosts = ["c"]')
    monkeypatch.setenv("WEBUI_PORT", "7002")
    monkeypatch.setenv("WEBUI_QUEUE_SIZE", "2")
    monkeypatch.setenv("WEBUI_ALLOW_HOST", "b")
    settings = load(["--port", "7003", "--allow-host", "a"])
    assert (settings.port, settings.queue_size, settings.model) == (7003, 2, "file")
    assert settings.allowed_hosts == ("a",)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("--server-name ::1", "--host ::1"),
        ("--gradio-auth ann:x,bob:y", "--auth ann:x --auth bob:y"),
        ("--gradio-auth-path people", "--auth-file people"),
        ("--subpath sd", "--root-path /sd"),
        ("--ckpt-dir a --models-dir b", "--models-dir a --models-dir b"),
        ("--lora-dir a --vae-dir b --embeddings-dir c", "--models-dir a --models-dir b --models-dir c"),
        ("--ckpt models/dreams", "--model dreams"),
        ("--ckpt models/dreams-1.5", "--model dreams-1.5"),
        ("--ckpt models/dreams-1.5.safetensors", "--model dreams-1.5"),
        ("--use-cpu all", "--device cpu"),
        ("--device-id 1", "--device cuda:1"),
        ("--no-half", "--dtype float32"),
        ("--precision full", "--dtype float32"),
        ("--xformers", "--attention xformers"),
        ("--opt-sdp-attention", "--attention sdpa"),
        ("--opt-split-attention", "--attention sliced"),
        ("--loglevel INFO", "--log-level info"),
        ("--disable-all-extensions", "--no-extensions"),
    ],
)
def test_flags_of_automatic1111_that_mean_the_same_are_understood(theirs, ours):
    assert fields(load(theirs.split())) == fields(load(ours.split()))


def test_the_defaults_answer_only_this_computer_and_find_the_shipped_model(tmp_path):
    settings = load([])
    assert (settings.host, settings.port, settings.loopback) == ("127.0.0.1", 7860, True)
    assert (settings.open, settings.share, settings.auth) == (False, False, ())
    assert settings.models_dir == (SHIPPED_MODELS,)
    assert settings.data_dir == tmp_path
    assert settings.filename_pattern == DEFAULT_PATTERN


def test_the_shipped_model_is_found_beside_folders_of_ones_own(tmp_path):
    assert load(["--models-dir", "mine"]).models_dir == (tmp_path / "mine", SHIPPED_MODELS)


def test_plugins_are_the_programs_own_and_ones_own_or_none(tmp_path):
    assert load([]).plugin_folders == (EXTENSIONS,)
    assert load(["--plugins-dir", "mine"]).plugin_folders == (EXTENSIONS, tmp_path / "mine")
    assert load(["--plugins-dir", "mine", "--no-extensions"]).plugin_folders == ()


@pytest.mark.parametrize(
    ("flags", "admins", "others"),
    [
        ("", [None], []),
        ("--listen --open", [], [None]),
        ("--share --open", [], [None]),
        ("--auth ann:pw", [], [None, "ann"]),
        ("--auth ann:pw --auth bob:pw --admin ann", ["ann"], [None, "bob", ""]),
        ("--auth-file people --admin ann --admin bob", ["ann", "bob"], [None, "eve"]),
        ("--admin ann", [None], []),
    ],
)
def test_who_may_change_the_program(flags, admins, others):
    settings = load(flags.split())
    assert all(settings.is_admin(user) for user in admins)
    assert not any(settings.is_admin(user) for user in others)


@pytest.mark.parametrize("flags", ["--listen", "--host 0.0.0.0", "--host 10.0.0.5", "--host ::", "--share"])
def test_reaching_the_server_from_outside_wants_an_account_or_open(flags):
    with pytest.raises(SettingsError, match=r"--auth.*--open"):
        load(flags.split())
    assert load([*flags.split(), "--open"]).open
    assert load([*flags.split(), "--auth", "ann:pw"]).auth


def test_a_space_answers_everybody_under_its_own_name(monkeypatch):
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    monkeypatch.setenv("SPACE_HOST", "ann-studio.hf.space")
    settings = load([])
    assert (settings.host, settings.port, settings.open) == ("0.0.0.0", 7860, True)
    assert settings.allowed_hosts == ("ann-studio.hf.space",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--port x", "--port: must be a whole number"),
        ("--port 0", "--port: must be greater than or equal to 1"),
        ("--port 65536", "--port: must be less than or equal to 65535"),
        ("--port", "--port: expected one argument"),
        ("--prot 1", r"There is no flag --prot. Did you mean --port\?"),
        ("picture.png", "There is no flag picture.png"),
        ("--device tpu", "--device: must be auto, cpu, cuda"),
        ("--device cuda:x", "--device: must be auto, cpu, cuda"),
        ("--dtype int8", "--dtype: must be 'auto', 'float32'"),
        ("--attention flash", "--attention: must be 'auto', 'sdpa'"),
        ("--use-cpu vae", "--use-cpu: only 'all'"),
        ("--precision half", "--precision: use --dtype"),
        ("--auth ann", "--auth: must look like USER:PASSWORD"),
        ("--auth :pw", "--auth: must look like USER:PASSWORD"),
        ("--allow-host http://x.example", "--allow-host: must be a name alone"),
        ("--allow-host *", "--allow-host: must be a name alone"),
        ("--root-path http://x/y", "--root-path: must be a path"),
        ("--queue-size 0", "--queue-size: must be greater"),
        ("--patience nan", "--patience: must be "),
        ("--config missing.toml", "--config: there is no file missing.toml"),
    ],
)
def test_a_wrong_flag_is_named(flags, message):
    with pytest.raises(SettingsError, match=message):
        load(flags.split())


def test_a_wrong_variable_or_key_is_named_where_it_was_written(monkeypatch, tmp_path):
    with monkeypatch.context() as variable:
        variable.setenv("WEBUI_LISTEN", "perhaps")
        with pytest.raises(SettingsError, match=r"^WEBUI_LISTEN: must be"):
            load([])
    for text, message in (
        ("port = 0", "^port in .*webui.toml: must be greater"),
        ("prot = 1", "^prot in .*webui.toml: there is no such setting"),
        ("port 1", "webui.toml: Expected '='"),
    ):
        (tmp_path / "webui.toml").write_text(text)
        with pytest.raises(SettingsError, match=message):
            load([])


def test_the_file_lies_in_the_data_folder_or_where_config_says(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "webui.toml").write_text("queue_size = 5")
    (tmp_path / "other.toml").write_text("queue_size = 6")
    assert load(["--data-dir", "data"]).queue_size == 5
    assert load(["--data-dir", "data", "--config", "other.toml"]).queue_size == 6


def test_settings_cannot_be_changed_after_the_start():
    with pytest.raises(ValueError, match="frozen"):
        load([]).port = 1


@pytest.mark.parametrize("wrong", [["--listen", "--port", "0"], ["--auth", SECRET], ["--prot", "1"]])
def test_no_message_shows_a_secret(wrong):
    with pytest.raises(SettingsError) as caught:
        load(["--auth", f"ann:{SECRET}", *wrong])
    assert SECRET not in str(caught.value)


def test_no_picture_of_the_settings_shows_a_secret():
    settings = load(["--auth", f"ann:{SECRET}"])
    for picture in (repr(settings), str(settings), settings.model_dump_json()):
        assert SECRET not in picture


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    app = Path(__file__).parent.parent / "app.py"
    return subprocess.run(
        [sys.executable, str(app), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_setting_and_no_secret():
    done = run("--help", WEBUI_AUTH=f"ann:{SECRET}")
    assert done.returncode == 0
    for name in Settings.model_fields.keys() - {"allowed_hosts", "on_space"} | {"allow_host"}:
        assert f"--{name.replace('_', '-')} " in done.stdout
    assert "--xformers = --attention xformers" in " ".join(done.stdout.split())
    assert SECRET not in done.stdout


def test_a_wrong_flag_ends_with_status_2_and_one_plain_line():
    done = run("--port", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "--port: must be a whole number\n"


def test_reading_the_settings_imports_nothing_slow():
    code = "import sys, app; from webui.flags import load; load([]); print(*sys.modules)"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "gradio", "numpy", "fastapi", "uvicorn"}
