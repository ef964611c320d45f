"""Plugins: loaded or refused by name, asked in order, and never able to spoil a picture quietly."""

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import pixels, request_for
from webui import hookspecs
from webui.errors import InvalidField, PluginError, Unsupported
from webui.hookspecs import Setting
from webui.library import Library
from webui.plugins import schema
from webui.plugins.host import Host
from webui.plugins.loading import HOOKS, TOUCHING

HEAD = "from webui.hookspecs import *\nfrom webui.hookspecs import hookimpl\n"
AMOUNT = """
@hookimpl
def settings():
    return [Setting("amount", 0.0, "Amount", minimum=0, maximum=1)]
"""


def write(folder: Path, code: str, toml: str = "", id: str = "") -> Path:
    """A plugin of this name, with this code; ``toml`` is added to its plugin.toml."""
    folder.mkdir(parents=True)
    head = f'id = "{id or folder.name}"\nversion = "1.0"\napi = "1"\ndescription = "For a test."\n'
    lines = [line for line in head.splitlines() if line.split(" ")[0] not in toml.split()]
    (folder / "plugin.toml").write_text("\n".join([*lines, toml]))
    (folder / "plugin.py").write_text(HEAD + textwrap.dedent(code))
    return folder


@pytest.fixture
def host_of(tmp_path):
    """Load what was written below tmp_path / "plugins"."""
    return lambda: Host(tmp_path, [tmp_path / "plugins"])


@pytest.fixture
def plugins(tmp_path):
    return tmp_path / "plugins"


def state(host: Host, id: str) -> str:
    (plugin,) = [plugin for plugin in host.plugins if plugin.id == id]
    return plugin.state


# The contract


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_when_where_what_and_what_for(name):
    text = getattr(hookspecs, name).__doc__ or ""
    for word in ("When: ", "Thread: ", "Gets: ", "Returns: "):
        assert word in text, f"{name} does not say “{word.strip()}”"
    thread = text.split("Thread: ")[1].split(".")[0]
    assert thread.startswith(("start", "request", "worker", "the one that saves"))


def test_a_hook_takes_only_the_arguments_it_wants(plugins, host_of):
    write(plugins / "few", "@hookimpl\ndef prepare_prompt(prompt): return prompt.upper()")
    (request,) = host_of().prepare(request_for(prompt="a fox"))
    assert (request.prompt, request.template) == ("A FOX", "a fox")
    assert dict(request.prepared) == {"few": "1.0"}


def test_an_old_plugin_goes_on_working_when_a_hook_gains_an_argument(plugins, host_of, monkeypatch):
    write(plugins / "old", "@hookimpl\ndef model_loaded(name): print(name)")

    @hookspecs.hookspec
    def model_loaded(name, seconds, newer): ...

    monkeypatch.setattr(hookspecs, "model_loaded", model_loaded)
    write(plugins / "young", "@hookimpl\ndef model_loaded(name, newer): print(name, newer)")
    host = host_of()
    assert (state(host, "old"), state(host, "young")) == ("On", "On")
    host.notify("model_loaded", name="m", seconds=1.0, newer=2)
    assert [plugin.trace for plugin in host.plugins] == ["", ""]


def test_plugins_are_asked_by_id_unless_they_say_first_or_last(plugins, host_of):
    say = "@hookimpl({})\ndef prepare_prompt(prompt): return prompt + '{}'"
    for id, options in (("c", ""), ("a", ""), ("b", "tryfirst=True"), ("aa", "trylast=True")):
        write(plugins / id, say.format(options, f" {id}"))
    (request,) = host_of().prepare(request_for(prompt="fox"))
    assert request.prompt == "fox b a c aa"


# Loading

FAULTS = {
    "raises": ("1 / 0", "", "ZeroDivisionError"),
    "exits": ("raise SystemExit(3)", "", "SystemExit: 3"),
    "unfinished": ("def (", "", "SyntaxError"),
    "unknown-hook": (
        "@hookimpl\ndef guid(prediction): ...",
        "",
        "there is no hook guid; did you mean guide?",
    ),
    "unknown-argument": ("@hookimpl\ndef guide(prediction, cfg): ...", "", "asks for 'cfg'"),
    "unmarked": ("def guide(prediction): ...", "", "not marked @hookimpl"),
    "wrapper": ("@hookimpl(wrapper=True)\ndef guide(prediction): yield", "", "is a wrapper"),
    "later-api": ("", 'api = "2"', "written for api '2'"),
    "needs": ("", 'requires = ["no-such-thing>=2"]', "pip install 'no-such-thing>=2'"),
    "needs-newer": ("", 'requires = ["pillow>=999"]', "it needs pillow>=999"),
    "misspelt": ("", 'requirements = ["x"]', "plugin.toml is wrong at requirements"),
    "upper": ("", 'id = "Upper"', "plugin.toml is wrong at id"),
    "outside": ("", 'id = "../outside"', "plugin.toml is wrong at id"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_plugin_is_refused_with_the_reason_and_the_others_load(plugins, host_of, name):
    code, toml, reason = FAULTS[name]
    write(plugins / name, code, toml)
    write(plugins / "good", "@hookimpl\ndef prepare_prompt(prompt): return 'good'")
    host = host_of()
    (faulty,) = [plugin for plugin in host.plugins if plugin.folder.name == name]
    assert faulty.state.startswith("Not loaded: ")
    assert reason in faulty.refused
    assert host.prepare(request_for())[0].prompt == "good"


def test_what_is_no_text_or_not_there_is_refused(plugins, host_of):
    write(plugins / "latin", "")
    (plugins / "latin" / "plugin.toml").write_bytes(b'id = "\xe9"')
    write(plugins / "code", "")
    (plugins / "code" / "plugin.py").write_bytes(b"WORD = '\xe9'\n")
    (plugins / "empty").mkdir()
    write(plugins / "headless", "")
    (plugins / "headless" / "plugin.py").unlink()
    (plugins / "link").symlink_to(write(plugins.parent / "elsewhere" / "link", ""))
    reasons = {plugin.folder.name: plugin.refused for plugin in host_of().plugins}
    assert reasons["latin"] == "its plugin.toml is not UTF-8"
    assert "SyntaxError" in reasons["code"]
    assert reasons["empty"] == "it has no plugin.toml"
    assert reasons["headless"] == "it has no plugin.py"
    assert "is a link" in reasons["link"]


def test_of_two_with_one_id_the_first_is_kept(plugins, host_of):
    write(plugins / "a", "", id="twin")
    write(plugins / "b", "", id="twin")
    assert [plugin.state for plugin in host_of().plugins] == [
        "On",
        "Not loaded: there is another plugin with the id twin",
    ]


def test_a_plugin_that_is_slow_to_import_is_named_with_its_time(plugins, host_of, caplog):
    write(plugins / "slow", "import time\ntime.sleep(2.1)")
    write(plugins / "quick", "")
    assert state(host_of(), "slow") == "On"
    assert [record.getMessage() for record in caplog.records] == ["plugin slow took 2.1 s to load"]


def test_a_plugin_cannot_stand_in_for_a_real_module(plugins, host_of):
    code = """
    from .json import WORDS
    import json
    assert json.dumps
    @hookimpl
    def prepare_prompt(): return WORDS
    """
    write(plugins / "json", code)
    (plugins / "json" / "json.py").write_text("WORDS = 'own words'")
    import json

    host = host_of()
    assert state(host, "json") == "On"
    assert host.prepare(request_for())[0].prompt == "own words"
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    "code",
    [
        "@hookimpl\ndef settings(): return [1]",
        "@hookimpl\ndef settings(): return [Setting('No Name', 1, '')]",
        "@hookimpl\ndef settings(): return [Setting('x', 1, ''), Setting('x', 2, '')]",
        "@hookimpl\ndef settings(): return [Setting('x', 5, 'X', maximum=1)]",
        "@hookimpl\ndef settings(): return [Setting('x', None, 'X')]",
        "@hookimpl\ndef settings(): raise RuntimeError('no')",
        "@hookimpl\ndef upscalers(): return ['Lanczos']",
        "@hookimpl\ndef schedulers(): return 7",
        "@hookimpl\ndef model_folders(): return 7",
        "@hookimpl\ndef schedulers(): return [Scheduler('Euler', print)]",
        "@hookimpl\ndef upscalers(): return [Upscaler('Lanczos', print)]",
    ],
)
def test_a_plugin_that_offers_nonsense_is_disabled_by_name(plugins, host_of, code):
    write(plugins / "bad", code)
    write(plugins / "good", AMOUNT)
    host = host_of()
    assert state(host, "bad").startswith("Disabled: ")
    assert state(host, "good") == "On"


# Settings

SETTINGS = {
    "on": Setting("on", False, "On"),
    "count": Setting("count", 3, "Count", minimum=1, maximum=9),
    "share": Setting("share", 0.5, "Share", minimum=0, maximum=1),
    "way": Setting("way", "a", "Way", choices=("a", "b")),
    "words": Setting("words", "", "Words"),
}


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("on", True, True),
        ("count", 4.0, 4),
        ("share", 1, 1.0),
        ("way", "b", "b"),
        ("words", "x", "x"),
    ],
)
def test_a_value_gets_its_settings_own_type(name, given, kept):
    value = schema.value(SETTINGS[name], given, name)
    assert (value, type(value)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("on", 1),
        ("on", "true"),
        ("count", 0),
        ("count", 10),
        ("count", 1.5),
        ("count", True),
        ("share", float("nan")),
        ("share", float("inf")),
        ("share", "0.5"),
        ("way", "c"),
        ("words", 3),
        ("words", "x" * 20_001),
    ],
)
def test_a_wrong_value_is_refused_and_names_the_setting(name, given):
    with pytest.raises(InvalidField) as refusal:
        schema.value(SETTINGS[name], given, f"id.{name}")
    assert refusal.value.field == f"id.{name}"
    assert str(refusal.value).startswith(SETTINGS[name].label)


def test_neutral_values_are_left_out_and_unknown_ones_refused(plugins, host_of):
    write(plugins / "mine", AMOUNT)
    host = host_of()
    assert host.settled(request_for(plugins={"mine.amount": 0})).plugins == ()
    assert host.settled(request_for(plugins={"mine.amount": 1})).plugins == (("mine.amount", 1.0),)
    for name in ("mine.other", "other.amount", "other", "mine."):
        with pytest.raises(InvalidField):
            host.settled(request_for(plugins={name: 1}))
    host.switch("mine", on=False)
    host.settled(request_for(plugins={"mine.amount": 0.0}))
    with pytest.raises(InvalidField, match="is not on"):
        host.settled(request_for(plugins={"mine.amount": 1}))


# Switching


def test_what_a_person_switched_off_stays_off(plugins, host_of):
    write(plugins / "shout", "@hookimpl\ndef prepare_prompt(prompt): return prompt.upper()")
    host = host_of()
    host.switch("shout", on=False)
    assert host.prepare(request_for(prompt="fox"))[0].prompt == "fox"
    again = host_of()
    assert state(again, "shout") == "Off"
    again.switch("shout", on=True)
    assert again.prepare(request_for(prompt="fox"))[0].prompt == "FOX"
    assert state(host_of(), "shout") == "On"


def test_a_damaged_file_of_switches_stops_nothing(plugins, host_of, tmp_path):
    write(plugins / "a", "")
    (tmp_path / "plugins.json").write_text("{")
    assert state(host_of(), "a") == "On"


def test_three_failures_in_a_row_disable_until_a_person_enables(plugins, host_of):
    write(plugins / "shaky", "@hookimpl\ndef prepare_prompt(prompt): assert prompt != 'bad', 'no'")
    host = host_of()
    plugin = host["shaky"]
    for k in range(3):
        assert plugin.on, k
        with pytest.raises(PluginError, match="plugin shaky failed: AssertionError: no"):
            host.prepare(request_for(prompt="bad"))
    assert plugin.state.startswith("Disabled: it failed 3 times in a row")
    assert "in prepare_prompt" in plugin.trace
    assert host.prepare(request_for(prompt="bad"))[0].prompt == "bad"
    host.switch("shaky", on=True)
    with pytest.raises(PluginError):
        host.prepare(request_for(prompt="bad"))


def test_a_success_between_starts_the_count_anew(plugins, host_of):
    write(plugins / "shaky", "@hookimpl\ndef prepare_prompt(prompt): assert prompt != 'bad'")
    host = host_of()
    for _ in range(5):
        with pytest.raises(PluginError):
            host.prepare(request_for(prompt="bad"))
        host.prepare(request_for(prompt="good"))
    assert host["shaky"].on


# Preparing


def test_prompts_are_prepared_for_each_picture_and_a_batch_is_split_where_they_differ(plugins, host_of):
    write(plugins / "dice", "@hookimpl\ndef prepare_prompt(prompt, seed): return f'{prompt} {seed}'")
    requests = host_of().prepare(request_for(prompt="a fox", seed=5, num_images_per_prompt=3))
    assert [each.prompt for each in requests] == ["a fox 5", "a fox 6", "a fox 7"]
    assert {each.template for each in requests} == {"a fox"}
    assert [each.seed for each in requests] == [5, 6, 7]


def test_the_settings_of_a_plugin_that_only_prepares_are_spent(plugins, host_of):
    code = (
        AMOUNT + "@hookimpl\ndef prepare_prompt(prompt, settings): return prompt + '!' * int(settings.amount)"
    )
    write(plugins / "loud", code)
    host = host_of()
    (once,) = host.prepare(request_for(prompt="fox", plugins={"loud.amount": 1.0}))
    assert (once.prompt, once.plugins) == ("fox!", ())
    assert dict(once.prepared) == {"loud": "1.0", "loud.amount": 1.0}
    (twice,) = host.prepare(once)
    assert twice == once


def test_one_request_may_become_several_but_not_where_one_is_wanted(plugins, make_engine):
    write(
        plugins / "seeds",
        """
        @hookimpl
        def prepare_request(request): return [request, request.replace(seed=request.seed + 1)]
        """,
    )
    engine = make_engine(plugins=[plugins])
    assert len(engine.submit([request_for()], "me").wait().saved) == 2
    with pytest.raises(Unsupported, match="2 pictures of one"):
        engine.submit([request_for()], "me", reuse=True, persevere=True)


@pytest.mark.parametrize(
    "code",
    [
        "@hookimpl\ndef prepare_prompt(): return 5",
        "@hookimpl\ndef prepare_request(): return []",
        "@hookimpl\ndef prepare_request(): return 'x'",
        "@hookimpl\ndef prepare_request(): raise SystemExit",
        "@hookimpl\ndef prepare_prompt(prompt): return 1 / 0",
    ],
)
def test_what_fails_before_the_queue_is_told_by_name(plugins, host_of, code):
    write(plugins / "bad", code)
    with pytest.raises(PluginError, match="The plugin bad failed") as failure:
        host_of().prepare(request_for())
    assert failure.value.plugin == "bad"


# Pictures

ZERO = "torch.zeros_like"
TOUCHES = {
    "patch": """
import contextlib
@hookimpl
def patch(parts, settings):
    @contextlib.contextmanager
    def patched():
        hook = parts.unet.conv_out.register_forward_hook(lambda m, i, out: out * (1 - settings.amount / 2))
        try:
            yield
        finally:
            hook.remove()
    return patched()
""",
    "attention": """
@hookimpl
def attention(name, original, settings):
    if name.endswith("attn1"):
        rest = 1 - settings.amount
        return lambda attn, x, *a, **k: original(attn, x, *a, **k) * rest
""",
    "start": "@hookimpl\ndef start(noise, settings): return noise * (1 - settings.amount / 2)",
    "guide": "@hookimpl\ndef guide(prediction, settings): return prediction.cond * settings.amount",
    "step_end": "@hookimpl\ndef step_end(step, settings): return step.latents * (1 - settings.amount / 20)",
    "postprocess": """
from PIL import ImageOps
@hookimpl
def postprocess(image): return ImageOps.invert(image)
""",
}


def test_every_hook_about_pictures_is_tried_here():
    assert set(TOUCHES) == set(TOUCHING)


def result(engine, **changes):
    view = engine.submit([request_for(**changes)], "me").wait()
    assert view.state == "done", view.error
    return view


@pytest.fixture(scope="module")
def touching(make_engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("touching")
    for hook, code in TOUCHES.items():
        write(folder / hook.replace("_", "-"), AMOUNT + code)
    return make_engine(plugins=[folder])


@pytest.mark.parametrize("hook", TOUCHES)
def test_each_kind_changes_the_picture_and_the_next_one_is_as_before(touching, engine, hook):
    id = hook.replace("_", "-")
    plain = pixels(result(engine, seed=41).saved[0].path)
    view = result(touching, seed=41, plugins={f"{id}.amount": 0.5})
    assert not np.array_equal(pixels(view.saved[0].path), plain)
    assert f"{id} 1.0" in view.saved[0].infotext
    assert touching.plugins[id].trace == ""
    assert np.array_equal(pixels(result(touching, seed=41).saved[0].path), plain)
    assert np.array_equal(
        pixels(result(touching, seed=41, plugins={f"{id}.amount": 0.0}).saved[0].path), plain
    )


def test_a_guided_prediction_put_back_unchanged_gives_the_picture_but_for_rounding(
    make_engine, plugins, engine
):
    """The host then guides itself, by the formula of the pipeline: uncond + scale (cond - uncond)."""
    write(
        plugins / "same",
        "@hookimpl\ndef guide(prediction):\n"
        "    p = prediction\n"
        "    assert p.guided.equal(p.uncond + p.scale * (p.cond - p.uncond))\n"
        "    assert p.predict().allclose(p.cond, atol=1e-4)\n"
        "    return p.guided",
    )
    ours = result(make_engine(plugins=[plugins]), seed=42)
    plain = result(engine, seed=42)
    difference = pixels(ours.saved[0].path).astype(int) - pixels(plain.saved[0].path)
    assert abs(difference).max() <= 1
    assert ours.net_calls == 2 * plain.net_calls  # each was predicted once more, and that is counted


def test_two_plugins_that_patch_the_same_module_nest_and_both_are_undone(make_engine, plugins, engine):
    code = """
    import contextlib
    @hookimpl
    def patch(parts):
        @contextlib.contextmanager
        def patched():
            conv, before = parts.unet.conv_in, parts.unet.conv_in.forward
            conv.forward = lambda x: before(x) NUMBER
            LOG.append("+NAME")
            yield
            LOG.append("-NAME")
            del conv.forward
            if "forward" in OLD: conv.forward = OLD["forward"]
        OLD = {k: v for k, v in vars(parts.unet.conv_in).items() if k == "forward"}
        return patched()
    """
    log: list[str] = []
    for name, number in (("alpha", "* 2"), ("beta", "+ 1")):
        own = textwrap.dedent(code).replace("NUMBER", number).replace("NAME", name)
        write(plugins / name, "import sys\nLOG = sys.modules['tests.test_plugins'].LOG\n" + own)
    sys.modules[__name__].LOG = log
    sys.modules["tests.test_plugins"].LOG = log
    patched = make_engine(plugins=[plugins])
    view = result(patched, seed=43)
    assert log == ["+alpha", "+beta", "-beta", "-alpha"]
    assert [plugin.trace for plugin in patched.plugins.plugins] == ["", ""]
    assert not np.array_equal(pixels(view.saved[0].path), pixels(result(engine, seed=43).saved[0].path))
    assert "forward" not in vars(patched.manager.resident.net.conv_in)


LEAKS = {
    "hook": "parts.unet.conv_in.register_forward_hook(lambda *a: None)",
    "pre-hook": "parts.vae.decoder.register_forward_pre_hook(lambda *a: None)",
    "processor": "m = parts.unet.mid_block.attentions[0].transformer_blocks[0].attn1; m.processor = object()",
    "forward": "parts.text_encoder.forward = lambda *a, **k: None",
    "weight": "parts.unet.conv_in.weight.data = parts.unet.conv_in.weight.data * 2",
    "in-place": "import torch\n    with torch.no_grad(): parts.unet.conv_in.weight.mul_(2)",
    "attribute": "parts.unet.conv_in.padding_mode = 'circular'",
    "module": "import torch; parts.unet.conv_in = torch.nn.Identity()",
    "training": "parts.vae.train()",
}


@pytest.fixture(scope="module")
def leaking(make_engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaking")
    for name, code in LEAKS.items():
        head = "import contextlib\n@hookimpl\ndef patch(parts, settings):\n    "
        write(folder / name, f"{AMOUNT}{head}{code}\n    return contextlib.nullcontext()")
    return make_engine(plugins=[folder])


@pytest.mark.parametrize("name", LEAKS)
def test_what_a_plugin_leaves_in_the_model_is_told_by_name_and_the_next_picture_is_unharmed(
    leaking, engine, name
):
    plain = pixels(result(engine, seed=44).saved[0].path)
    leaking.submit([request_for(seed=44, plugins={f"{name}.amount": 1.0})], "me").wait()
    assert "it left changes in the model" in leaking.plugins[name].trace
    others = [plugin for plugin in leaking.plugins.plugins if plugin.id != name and plugin.failures]
    assert not [plugin.id for plugin in others if "left changes" not in plugin.trace]
    assert np.array_equal(pixels(result(leaking, seed=44).saved[0].path), plain)


def test_a_plugin_that_leaves_changes_three_times_in_a_row_is_disabled(make_engine, tmp_path):
    head = "import contextlib\n@hookimpl\ndef patch(parts):\n    "
    write(tmp_path / "toy", f"{AMOUNT}{head}{LEAKS['training']}\n    return contextlib.nullcontext()")
    leaking = make_engine(plugins=[tmp_path])
    states = []
    for seed in range(4):
        states.append(leaking.plugins["toy"].on)
        if states[-1]:
            leaking.submit([request_for(seed=seed, plugins={"toy.amount": 1.0})], "me").wait()
    assert states == [True, True, True, False]


BREAKS = {
    "guide": "@hookimpl\ndef guide(prediction): raise ValueError('in the middle')",
    "exits": "@hookimpl\ndef guide(prediction): raise SystemExit",
    "start": "@hookimpl\ndef start(noise): return noise[:, :2]",
    "guide-type": "@hookimpl\ndef guide(prediction): return 'a tensor'",
    "step-end": "@hookimpl\ndef step_end(step): return 1 / 0",
    "patch": "@hookimpl\ndef patch(): return 5",
    "attention": "@hookimpl\ndef attention(): return 5",
    "postprocess": "@hookimpl\ndef postprocess(): return 'a picture'",
    "cell-key": "@hookimpl\ndef cell_key(): return object()\n@hookimpl\ndef start(noise): return noise",
    "entering": """
import contextlib
@hookimpl
def patch():
    @contextlib.contextmanager
    def patched():
        1 / 0
        yield
    return patched()
""",
    "leaving": """
import contextlib
@hookimpl
def patch():
    @contextlib.contextmanager
    def patched():
        yield
        1 / 0
    return patched()
""",
}


@pytest.fixture(scope="module")
def breaking(make_engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("breaking")
    for name, code in BREAKS.items():
        write(folder / name, AMOUNT + code)
    return make_engine(plugins=[folder])


@pytest.mark.parametrize("name", BREAKS)
def test_a_plugin_that_fails_while_a_picture_is_made_fails_that_job_by_name(breaking, engine, name):
    view = breaking.submit([request_for(seed=45, plugins={f"{name}.amount": 1.0})], "me").wait()
    assert (view.state, view.saved) == ("failed", ())
    assert isinstance(view.error, PluginError)
    assert view.error.plugin == name
    assert breaking.plugins[name].trace
    plain = pixels(result(engine, seed=45).saved[0].path)
    assert np.array_equal(pixels(result(breaking, seed=45).saved[0].path), plain)


def test_a_patch_is_undone_after_a_cancel_and_cannot_swallow_it(make_engine, plugins, engine):
    write(
        plugins / "greedy",
        AMOUNT
        + """
        class Greedy:
            def __enter__(self): ...
            def __exit__(self, *error): return True
        @hookimpl
        def patch(): return Greedy()
        """.replace("\n        ", "\n"),
    )
    greedy = make_engine(plugins=[plugins])
    job = greedy.submit([request_for(num_inference_steps=200, plugins={"greedy.amount": 1.0})], "me")
    for view in job.watch():
        if view.net_calls > 3:
            job.cancel()
    assert job.view.state == "cancelled"
    assert np.array_equal(
        pixels(result(greedy, seed=46).saved[0].path), pixels(result(engine, seed=46).saved[0].path)
    )


def test_a_notice_that_fails_harms_no_picture(make_engine, plugins):
    write(
        plugins / "nosy", "@hookimpl\ndef picture_saved(picture): 1 / 0\n@hookimpl\ndef model_loaded(): 1 / 0"
    )
    engine = make_engine(plugins=[plugins])
    assert result(engine).saved
    assert "ZeroDivisionError" in engine.plugins["nosy"].trace


def test_pictures_kept_beside_are_saved_too_but_are_no_cells(make_engine, plugins):
    write(plugins / "twice", "@hookimpl\ndef postprocess(image): return [image, image.rotate(180)]")
    engine = make_engine(plugins=[plugins])
    first, beside = result(engine, seed=47).saved
    assert np.array_equal(pixels(first.path)[::-1, ::-1], pixels(beside.path))
    view = engine.submit([request_for(seed=47)], "me", reuse=True, persevere=True).wait()
    assert (view.reused, [saved.id for saved in view.saved]) == (1, [first.id])


# Never twice


def test_a_plugins_settings_version_and_key_are_part_of_what_a_cell_is_known_by(make_engine, tmp_path):
    code = (
        AMOUNT + TOUCHES["start"] + "\n@hookimpl\ndef cell_key(data_dir): return (data_dir / 'k').read_text()"
    )
    write(tmp_path / "p" / "mine", code)
    data = tmp_path / "data"
    data.mkdir()
    (data / "k").write_text("1")

    def known(version="1.0", amount=0.5):
        toml = tmp_path / "p" / "mine" / "plugin.toml"
        toml.write_text(toml.read_text().replace('"1.0"', f'"{version}"').replace('"1.1"', f'"{version}"'))
        engine = make_engine(plugins=[tmp_path / "p"], data_dir=data)
        request = request_for(seed=48, plugins={"mine.amount": amount})
        return engine.submit([request], "me", reuse=True, persevere=True).wait().reused

    assert known() == 0
    assert known() == 1
    assert known(amount=0.25) == 0
    assert known(version="1.1") == 0
    assert known() == 1
    (data / "k").write_text("2")
    assert known() == 0
    assert known(amount=0.0) == 0


def test_what_a_plugin_calls_not_deterministic_is_never_taken_from_the_library(make_engine, plugins):
    write(plugins / "dice", AMOUNT + TOUCHES["start"], "deterministic = false")
    engine = make_engine(plugins=[plugins])
    for amount, reused in ((0.5, 0), (0.0, 1)):
        request = request_for(seed=49, plugins={"dice.amount": amount})
        engine.submit([request], "me", reuse=True, persevere=True).wait()
        view = engine.submit([request], "me", reuse=True, persevere=True).wait()
        assert view.reused == reused


# What is offered


def test_a_plugins_scheduler_upscaler_and_models_are_used(make_engine, plugins, engine, tmp_path):
    (tmp_path / "more").mkdir()
    from tests.conftest import POCKET

    (tmp_path / "more" / "twin").symlink_to(POCKET)
    write(
        plugins / "offers",
        f"""
        from pathlib import Path
        def build(config):
            from diffusers import EulerDiscreteScheduler
            return EulerDiscreteScheduler.from_config(config)
        @hookimpl
        def schedulers(): return [Scheduler("Mine", build)]
        @hookimpl
        def upscalers(): return [Upscaler("Blocks", lambda image, size: image.resize(size, 0))]
        @hookimpl
        def model_folders(): return [Path({str(tmp_path / "more")!r})]
        """,
    )
    offering = make_engine(plugins=[plugins])
    hires = {"seed": 50, "hires_scale": 2.0}
    for ours, theirs in (
        ({"scheduler": "Mine", "seed": 50}, {"scheduler": "Euler", "seed": 50}),
        ({"hires_upscaler": "Blocks", **hires}, {"hires_upscaler": "Nearest", **hires}),
        ({"model": "twin", "seed": 50}, {"seed": 50}),
    ):
        mine, same = result(offering, **ours).saved[0], result(engine, **theirs).saved[0]
        assert np.array_equal(pixels(mine.path), pixels(same.path)), ours
    assert "Mine" in [info.name for info in offering.schedulers()]
    offering.plugins.switch("offers", on=False)
    for field, value in (("scheduler", "Mine"), ("hires_upscaler", "Blocks"), ("model", "twin")):
        with pytest.raises(InvalidField) as refusal:
            offering.submit([request_for(**{field: value, "hires_scale": 2.0})], "me")
        assert refusal.value.field == field


def test_without_plugins_there_is_nothing_to_ask(tmp_path):
    host = Host(tmp_path)
    request = request_for()
    assert (host.plugins, host.prepare(request), host.identity(request)) == ((), [request], [])
    Library(tmp_path)
