"""Plugins on the page, without a browser: their settings, axes and tabs, and the list that switches them."""

import json
from html import escape

import gradio as gr
import pytest
from starlette.requests import Request

from tests.conftest import pixels, request_for
from tests.test_plugins import write
from tests.test_ui import EVIL, Shape, values
from tests.test_ui_compare import asked, told
from webui import infotext
from webui.engine import Engine
from webui.errors import InvalidField
from webui.grid.axes import kinds
from webui.grid.plan import AxisSpec, Grid, from_infotext, pairs
from webui.library import Library
from webui.plugins import axes, facts
from webui.plugins.host import Host
from webui.request import GenerationRequest, SavedPicture
from webui.settings import Settings
from webui.ui import extensions, form, layout, show_extensions
from webui.ui.actions import Actions
from webui.ui.page import build
from webui.ui.presets import Preset

TOY = """
@hookimpl
def settings():
    return [
        Setting("dark", 0.0, "Darkness", "How much of the light goes", minimum=0, maximum=1),
        Setting("turned", False, "Turned"),
        Setting("tint", "None", "Tint", choices=("None", "Red", "Blue, deep")),
        Setting("count", 1, "Count", minimum=1, maximum=3),
        Setting("offset", 0.5, "Offset"),
        Setting("words", "", "Words", lines=2),
    ]

@hookimpl
def postprocess(image, settings):
    image = image.point(lambda value: int(value * (1 - settings.dark)))
    return image.rotate(180) if settings.turned else image

@hookimpl
def tab():
    def build():
        import gradio as gr

        def generate(text): return text.upper()
        said = gr.Textbox(label="Said")
        said.submit(generate, said, said, api_name="generate")
    return Tab("Toy's tab", build)

@hookimpl
def upscalers():
    return [Upscaler("Toy's blocks", lambda image, size: image.resize(size, 0))]

@hookimpl
def schedulers():
    def build(config):
        from diffusers import EulerDiscreteScheduler
        return EulerDiscreteScheduler.from_config(config)
    return [Scheduler("Toy's Euler", build)]
"""
WORDS = """
@hookimpl
def settings():
    return [Setting("loud", False, "Loud")]

@hookimpl
def prepare_prompt(prompt, settings):
    return prompt.upper() if settings.loud else None
"""
NAMES = [f"toy.{name}" for name in ("dark", "turned", "tint", "count", "offset", "words")]
NEUTRAL = dict(zip(NAMES, [0.0, False, "None", 1, 0.5, ""], strict=True))


@pytest.fixture(scope="module")
def plugged(make_engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    write(folder / "toy", TOY, 'name = "The toy"')
    write(folder / "words", WORDS)
    engine = make_engine(plugins=[folder])
    assert engine.submit([request_for()], "fixture").wait().state == "done"
    return engine


def opened(engine: Engine) -> Actions:
    """What the page does."""
    host = engine.plugins
    offered, tabs = axes.offered(host), extensions.panels(host)
    with gr.Blocks():
        parts = layout.build(
            engine.models(), engine.schedulers(), offered, engine.upscalers(), host.plugins, tabs
        )
    return Actions(engine, parts)


@pytest.fixture(scope="module")
def do(plugged) -> Actions:
    return opened(plugged)


@pytest.fixture
def idle(tmp_path):
    """An engine with the plugins written below tmp_path / "plugins"; it is not started."""

    def idle(**options: object) -> Engine:
        settings = Settings(data_dir=tmp_path, **options)
        folders = [] if settings.no_extensions else [tmp_path / "plugins"]
        return Engine(settings, Library(tmp_path), Host(tmp_path, folders))

    return idle


def asked_by(owner: str = "me", user: str | None = None) -> gr.Request:
    state = {"owner": owner} | ({"user": user} if user else {})
    return gr.Request(Request({"type": "http", "headers": [], "state": state}))


def made(do: Actions, owner: str, **changes: object) -> SavedPicture:
    """The picture of one press."""
    last: dict = {}
    for update in do.making.generate(
        asked_by(owner), **{**values(), **NEUTRAL, "words.loud": False, **changes}
    ):
        last |= update
    (saved,) = last[do.making.layout.saved]
    return saved


# Settings


def test_each_setting_has_the_control_that_suits_it(do):
    fields = do.making.layout.fields
    controls = [fields[name] for name in NAMES]
    kinds = [gr.Slider, gr.Checkbox, gr.Dropdown, gr.Slider, gr.Number, gr.Textbox]
    assert [type(control) for control in controls] == kinds
    assert [control.label for control in controls] == [
        "Darkness", "Turned", "Tint", "Count", "Offset", "Words",
    ]  # fmt: skip
    assert {name: control.value for name, control in zip(NAMES, controls, strict=True)} == NEUTRAL
    assert (controls[0].info, controls[0].maximum, controls[0].step) == (
        "How much of the light goes",
        1,
        0.01,
    )
    assert (controls[3].step, controls[4].precision, controls[5].lines) == (1, None, 2)
    assert [choice for choice, _ in controls[2].choices] == ["None", "Red", "Blue, deep"]
    assert set(fields) == {*form.FIELDS, *NAMES, "words.loud"}
    assert {control.elem_id for control in controls} == {f"field-toy-{name[4:]}" for name in NAMES}


def test_the_endpoint_takes_settings_by_their_names(plugged):
    demo, _ = build(plugged, plugged.settings)
    demo.config = demo.get_config_file()
    endpoints = demo.get_api_info()["named_endpoints"]
    assert list(endpoints) == ["/generate"]  # though a plugin calls something of its own so
    names = {parameter["parameter_name"] for parameter in endpoints["/generate"]["parameters"]}
    assert names == {*form.FIELDS, *NAMES, "words.loud"}


def test_a_setting_changes_the_picture_and_neutral_ones_are_no_part_of_the_request(do, plugged):
    plain, dark = made(do, "press"), made(do, "press", **{"toy.dark": 0.5, "toy.turned": True})
    straight = plugged.submit([request_for()], "script").wait().saved[0]
    assert plain.request.plugins == ()
    assert (pixels(plain.path) == pixels(straight.path)).all()
    assert dark.request.plugins == (("toy.dark", 0.5), ("toy.turned", True))
    assert (pixels(dark.path) == pixels(plain.path)[::-1, ::-1] // 2).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("toy.dark", 2, "Darkness: must be at most 1"),
        ("toy.dark", None, "Darkness: must be a number"),
        ("toy.count", 1.5, "Count: must be a whole number"),
        ("toy.turned", "yes", "Turned: must be on or off"),
        ("toy.tint", "Green", "Tint: must be one of None, Red, Blue, deep"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_label(do, plugged, field, value, message):
    with pytest.warns(UserWarning, match=f"^{message}"):
        (update,) = do.making.generate(asked_by("careless"), **{**values(), field: value})
    assert message in update[do.making.layout.stage]
    assert plugged.latest("careless") is None


def test_a_setting_of_a_plugin_that_was_switched_off_is_refused_and_neutral_ones_are_not(idle, tmp_path):
    write(tmp_path / "plugins" / "toy", TOY)
    host = idle().plugins
    host.switch("toy", False)
    assert form.with_plugins(NEUTRAL, host)["plugins"] == {}
    with pytest.raises(InvalidField, match="the plugin Toy is not on"):
        form.with_plugins({**NEUTRAL, "toy.dark": 0.5}, host)


def test_files_of_a_batch_are_changed_with_the_settings_too(do, plugged, tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        Image.new("RGB", (64, 64), "white").save(tmp_path / f"{name}.png")
    parts, files = do.making.layout.source, [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    *_, read = do.making.read_files(asked_by("batch"), files)
    wanted = {**values(strength=0.5), "toy.dark": 1.0, "task": "img2img"}
    *_, last = do.making.change_files(asked_by("batch"), batch=read[parts.batch], **wanted)
    assert len(last[do.making.layout.saved]) == 2
    assert all(not pixels(saved.path).any() for saved in last[do.making.layout.saved])


# Filling


def filled(do: Actions, update: dict) -> dict:
    """Field -> its new value."""
    fields = {component: name for name, component in do.making.layout.fields.items()}
    return {
        fields[part]: change["value"]
        for part, change in update.items()
        if part in fields and "value" in change
    }


def test_using_a_pictures_settings_again_fills_the_plugins_and_makes_it_once_more(do):
    dark = made(do, "again", **{"toy.dark": 0.25, "toy.tint": "Red"})
    new = filled(do, do.filling.again(asked_by("again"), (dark,), 0))
    assert {name: new[name] for name in NAMES} == NEUTRAL | {"toy.dark": 0.25, "toy.tint": "Red"}
    again = made(do, "again", **{**new, "seed": dark.request.seed})
    assert (pixels(again.path) == pixels(dark.path)).all()


def test_a_picture_without_plugins_makes_their_settings_neutral(do):
    text = infotext.write(request_for(prompt="x"), "pocket-model", "ab" * 32)
    new = filled(do, do.filling.fill_from_text(asked_by(), text, (), 0))
    assert {name: new[name] for name in NAMES} == NEUTRAL


def test_a_text_of_prompts_alone_leaves_the_plugins_alone(do):
    new = filled(do, do.filling.fill_from_text(asked_by(), "a fox\nNegative prompt: red", (), 0))
    assert set(new) == {"prompt", "negative_prompt"}


def test_what_cannot_be_used_of_a_picture_is_named_and_the_rest_is_filled(do):
    request = request_for(
        prompt="x",
        hires_scale=2.0,
        hires_upscaler="<i>Nobody's</i>",
        plugins={"toy.dark": 0.5, "toy.count": 99, "toy.gone": 1, "nobody.here": True},
    )
    text = infotext.write(request, "pocket-model", "ab" * 32, plugins={"toy": "0.9", "nobody": "3"})
    with pytest.warns(UserWarning, match="is not here|must be at most 3") as warned:
        new = filled(do, do.filling.fill_from_text(asked_by(), text, (), 0))
    said = " ".join(str(warning.message) for warning in warned)
    for part in (
        "Hires upscaler: <i>Nobody's</i> is not here",
        "toy.count “99”: must be at most 3",
        "toy.gone “1”: there is no such setting",
        "nobody.here “True”: there is no such plugin here",
    ):
        assert escape(part) in said
    assert (new["prompt"], new["toy.dark"], new["toy.count"]) == ("x", 0.5, 1)
    assert "hires_upscaler" not in new
    assert new["hires_scale"] == 2.0


def test_an_upscaler_of_a_plugin_is_offered_and_filled(do):
    upscaler = do.making.layout.fields["hires_upscaler"]
    assert [choice for choice, _ in upscaler.choices][-1] == "Toy's blocks"
    text = infotext.write(request_for(hires_scale=2.0, hires_upscaler="Toy's blocks"), "m", "ab" * 32)
    with pytest.warns(UserWarning, match="^Model: m is not here"):
        new = filled(do, do.filling.fill_from_text(asked_by(), text, (), 0))
    assert new["hires_upscaler"] == "Toy's blocks"


def test_a_picture_made_of_a_template_fills_the_exact_prompt_and_tells_the_template(do, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda message, title="": said.append(f"{title}: {message}"))
    loud = made(do, "loud", prompt="a <b>fox</b>", **{"words.loud": True})
    assert loud.request.prompt == "A <B>FOX</B>"
    new = filled(do, do.filling.fill_from_text(asked_by(), loud.infotext, (), 0))
    assert (new["prompt"], new["words.loud"]) == ("A <B>FOX</B>", False)
    assert said == ["Template: a &lt;b&gt;fox&lt;/b&gt;"]
    do.filling.again(asked_by("loud"), (loud,), 0)
    assert said[1:] == said[:1]


def test_a_page_that_opens_again_has_what_was_typed_and_not_what_became_of_it(do):
    made(do, "returner", prompt="a fox", batch_count=1, **{"words.loud": True, "toy.dark": 0.5})
    first, *_ = do.making.attach(asked_by("returner"))
    new = filled(do, first)
    assert (new["prompt"], new["words.loud"], new["toy.dark"]) == ("a fox", True, 0.5)


# Axes


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("toy.dark", "0-1 [3], 0.25", [0.0, 0.5, 1.0, 0.25]),
        ("toy.count", "1-3", [1, 2, 3]),
        ("toy.offset", "-1, 7.5", [-1.0, 7.5]),
        ("toy.turned", "on, off", [True, False]),
        ("toy.tint", 'red, "Blue, deep"', ["Red", "Blue, deep"]),
        ("toy.tint", "all", ["None", "Red", "Blue, deep"]),
        ("toy.words", "one, two\nthree", ["one, two", "three"]),
    ],
)
def test_every_setting_is_an_axis(do, name, text, expected):
    choosing = do.comparing.varying.choosing()
    kind = choosing.kinds[name]
    base = GenerationRequest(plugins={"toy.dark": 0.75})
    parsed = kind.parse(text, base, choosing.known)
    assert list(parsed) == expected
    assert [type(value) for value in parsed] == [type(value) for value in expected]
    for value in parsed:
        varied = {**dict(base.plugins), name: value}
        wanted = {each: v for each, v in varied.items() if v != NEUTRAL[each]}
        assert kind.apply(base, value) == base.replace(plugins=wanted)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("toy.dark", "0, 2", "“2” must be at most 1"),
        ("toy.dark", "much", "“much” is neither a number"),
        ("toy.count", "1.5", "“1.5” must be a whole number"),
        ("toy.turned", "maybe", "there is no “maybe”"),
        ("toy.tint", "rde", "did you mean Red"),
    ],
)
def test_a_wrong_value_of_such_an_axis_is_named(do, name, text, message):
    choosing = do.comparing.varying.choosing()
    with pytest.raises(InvalidField, match=message):
        choosing.kinds[name].parse(text, GenerationRequest(), choosing.known)


def test_such_an_axis_begins_with_its_whole_range_and_says_how_it_is_written(do):
    choosing = do.comparing.varying.choosing()
    starts = {name: choosing.started(name).text for name in NAMES}
    assert [starts[name] for name in NAMES] == [
        "0-1 [5]",
        "on, off",
        'None, Red, "Blue, deep"',
        "1-3",
        "",
        "",
    ]
    hint = choosing.properties(choosing.started("toy.words"))["text"]["placeholder"]
    assert hint == axes.ONE_A_LINE


def test_a_grid_varies_a_setting_beside_others_of_the_form(do):
    varying, runs = do.comparing.varying, do.comparing.runs
    wanted = asked(varying.choosing(), ("toy.dark", "0, 0.5"), ("toy.turned", "off, on"))
    wanted = {**NEUTRAL, **wanted, "toy.count": 2, "toy.dark": 0.75}
    *_, last = told(do.comparing, do.comparing.run(asked_by("grid"), **wanted))
    assert last["status"]["headline"] == "Done: 4 of 4 pictures"
    run = runs.latest("grid")
    assert run.requests[1, 1, 0, 0].plugins == (("toy.count", 2), ("toy.dark", 0.5), ("toy.turned", True))
    plain, both = (pixels(run.picture([*at, 0, 0]).path) for at in ((0, 0), (1, 1)))
    assert (both == plain[::-1, ::-1] // 2).all()
    assert ("toy.count", "2") in run.results().settings()
    assert "toy.dark" not in dict(run.results().settings())
    filled_again = filled(do, do.comparing._filled(run))
    assert (filled_again["toy.count"], filled_again["toy.dark"]) == (2, 0.75)


def test_a_grid_with_plugins_is_saved_and_found_again_in_all_ways(do):
    base = request_for(plugins={"toy.count": 2, "toy.tint": "Blue, deep"})
    grid = Grid(base, AxisSpec("toy.dark", "0, 0.5"), AxisSpec("toy.offset", "1, 2"))
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid
    sheet = infotext.write(base, "pocket-model", "ab" * 32, extra=pairs(grid))
    restored = from_infotext(sheet)
    assert (restored.x, restored.y, restored.base.plugins) == (grid.x, grid.y, base.plugins)

    presets, varying = do.comparing.presets, do.comparing.varying
    presets.save("Dark", Preset.of(grid), "saver")
    presets.remember(grid, "saver")
    update = varying.chosen(presets.get("Dark", "saver"))
    assert update[varying.parts.axes["x"].text]["value"] == "0, 0.5"
    *_, last = told(do.comparing, do.comparing.resume(asked_by("saver")))
    assert last["status"]["headline"] == "Done: 4 of 4 pictures"


def test_a_saved_grid_whose_plugin_is_gone_says_so(do):
    gone = Preset(AxisSpec("nobody.here", "1, 2"), AxisSpec("toy.tint", "Green, Red"))
    with pytest.warns(UserWarning, match="left out: (nobody.here|Green)"):
        update = do.comparing.varying.chosen(gone)
    assert update[do.comparing.parts.axes["x"].kind]["value"] == ""
    assert update[do.comparing.parts.axes["y"].pick]["value"] == ["Red"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("7", "not iterable"),
        ("['mood']", "must give AxisKind objects, not str"),
        ("[kinds()['seed']]", "there is an axis named 'seed' already"),
        ("1 / 0", "division by zero"),
    ],
)
def test_a_faulty_hook_of_axes_disables_its_plugin_and_the_page_works(idle, tmp_path, given, reason):
    code = f"from webui.grid.axes import kinds\n@hookimpl\ndef axes(): return {given}"
    write(tmp_path / "plugins" / "odd", code)
    write(tmp_path / "plugins" / "toy", TOY)
    engine = idle()
    do = opened(engine)
    assert reason in engine.plugins["odd"].state
    assert "toy.dark" in do.comparing.parts.kinds
    update = do.switching.list(asked_by())
    assert any(escape(reason) in str(part) for part in update.values())


def test_an_axis_that_fails_is_told_by_the_plugins_name(idle, tmp_path):
    code = """
    from dataclasses import replace
    from webui.grid.axes import kinds
    @hookimpl
    def axes(): return [replace(kinds()["seed"], name="odd-seed", label="Odd", parse=lambda *a: 1 / 0)]
    """
    write(tmp_path / "plugins" / "odd", code)
    do = opened(idle()).comparing
    update = do.look(asked_by(), **asked(do.varying.choosing(), ("odd-seed", "1, 2")))
    assert "The plugin odd failed: ZeroDivisionError" in update[do.parts.plan]


def test_an_axis_of_a_plugin_that_is_off_is_on_no_list_and_makes_no_cell(idle, tmp_path):
    write(tmp_path / "plugins" / "toy", TOY)
    engine = idle()
    do = opened(engine)
    engine.plugins.switch("toy", False)
    choosing = do.comparing.varying.choosing()
    assert sorted(name for _, name in choosing.kinds_by_label() if name) == sorted(kinds())
    update = do.comparing.look(asked_by(), **asked(choosing, ("toy.dark", "0.5, 1")))
    assert "the plugin Toy is not on" in update[do.comparing.parts.plan]


# Tabs


def labels(demo: gr.Blocks) -> list[str]:
    return [block.label for block in demo.blocks.values() if isinstance(block, gr.Tab)]


def test_a_plugins_tab_is_a_tab_of_the_page_whose_events_are_no_endpoints(plugged):
    demo, _ = build(plugged, plugged.settings)
    assert labels(demo)[-4:] == ["Illustrated", "Models", "Toy's tab", "Extensions"]
    (said,) = (block for block in demo.blocks.values() if getattr(block, "label", "") == "Said")
    (event,) = (fn for fn in demo.fns.values() if (said._id, "submit") in fn.targets)
    assert event.fn("hello") == "HELLO"
    assert (event.api_name, event.api_visibility) == ("toy_0", "private")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("Tab('Odd', build)", "division by zero"),
        ("Tab(7, build)", "must return a Tab with a label"),
        ("build", "must return a Tab with a label"),
        ("exit()", "SystemExit"),
    ],
)
def test_a_tab_that_fails_disables_its_plugin_and_leaves_nothing_on_the_page(idle, tmp_path, code, reason):
    code = f"""
    def build():
        import gradio as gr
        gr.Textbox(label="Left behind")
        1 / 0
    @hookimpl
    def tab(): return {code}
    """
    write(tmp_path / "plugins" / "odd", code)
    write(tmp_path / "plugins" / "toy", TOY)
    engine = idle()
    demo, _ = build(engine, engine.settings)
    assert reason in engine.plugins["odd"].state
    assert labels(demo)[-2:] == ["Toy's tab", "Extensions"]
    assert not [block for block in demo.blocks.values() if getattr(block, "label", "") == "Left behind"]


# The list


def card(do: Actions, request: gr.Request, id: str) -> str:
    (entry,) = (entry for entry in do.switching.parts.entries if entry.plugin.id == id)
    return do.switching.list(request)[entry.card]


def summary(do: Actions, request: gr.Request | None = None) -> str:
    return do.switching.list(request or asked_by())[do.switching.parts.summary]


def switch(do: Actions, id: str) -> tuple[object, object]:
    """(the switch of a plugin, its handler)."""
    (entry,) = (entry for entry in do.switching.parts.entries if entry.plugin.id == id)
    return entry.switch, do.switching.switch(entry.plugin)


def test_the_list_says_what_is_known_of_a_plugin(do, plugged):
    made(do, "list", **{"toy.dark": 0.5})
    plugin = plugged.plugins["toy"]
    told = Shape(card(do, asked_by(), "toy")).text
    for part in (
        "The toy",
        "toy 1.0",
        "On",
        "For a test.",
        "settings, schedulers, upscalers, tab, postprocess",
        f"{plugin.pictures} pictures",
        " ms per picture",
        "6 settings",
        "a number from 0 to 1; neutral: 0",
        "one of None, Red, Blue, deep; neutral: None",
    ):
        assert part in told
    assert Shape(summary(do)).text == "2 plugins, 2 on."


def test_the_terminal_says_the_same(plugged):
    text = facts.listing(plugged.plugins, safe_mode=False)
    for plugin in plugged.plugins.plugins:
        told = Shape(show_extensions.card(plugged.plugins, plugin, admin=True)).text
        for label, words in facts.facts(plugged.plugins, plugin):
            assert f"{label}: {words}" in text
            assert words in told
        assert plugin.state in text
    assert "\x1b" not in facts.listing(plugged.plugins, safe_mode=False)


def test_nothing_that_a_plugin_says_becomes_markup(idle, tmp_path):
    toml = f"name = {json.dumps(EVIL)}\ndescription = {json.dumps(EVIL)}"
    code = f"""
    @hookimpl
    def settings(): return [Setting("x", 0, {EVIL!r}, {EVIL!r})]
    @hookimpl
    def router(): raise ValueError({EVIL!r})
    @hookimpl
    def tab(): raise ValueError({EVIL!r})
    """
    write(tmp_path / "plugins" / "evil", code, toml)
    engine = idle()
    do = opened(engine)
    html = [card(do, asked_by(), "evil"), show_extensions.note(engine.plugins["evil"])]
    engine.plugins["evil"].broken, engine.plugins["evil"].incomplete = "", True
    html.append(summary(do))
    for each in html:
        assert "<img" not in each
        assert EVIL in Shape(each).text


def test_only_an_administrator_sees_switches_and_tracebacks_and_may_switch(idle, tmp_path):
    write(tmp_path / "plugins" / "toy", TOY)
    write(tmp_path / "plugins" / "odd", "@hookimpl\ndef tab(): 1 / 0")
    engine = idle(auth=["ann:pw", "bob:pw"], admin=["ann"])
    do = opened(engine)
    button, press = switch(do, "toy")
    ann, bob = asked_by("user:ann", "ann"), asked_by("user:bob", "bob")
    assert do.switching.list(ann)[button]["visible"]
    assert not do.switching.list(bob)[button]["visible"]
    assert "--admin" in summary(do, bob)
    assert "--admin" not in summary(do, ann)
    assert "Traceback" in card(do, ann, "odd")
    assert "Traceback" not in card(do, bob, "odd")
    assert "ZeroDivisionError" in card(do, bob, "odd")
    with pytest.warns(UserWarning, match="Only an administrator"):
        press(bob)
    assert engine.plugins["toy"].on
    press(ann)
    assert not engine.plugins["toy"].on


def test_switching_off_hides_what_the_plugin_brings_and_is_remembered(idle, tmp_path):
    write(tmp_path / "plugins" / "toy", TOY)
    engine = idle()
    do = opened(engine)
    parts, fields = do.switching.parts, do.making.layout.fields
    button, press = switch(do, "toy")
    update = press(asked_by())
    assert not update[parts.sections["toy"].accordion]["visible"]
    assert "#tab-plugin-toy-button" in update[parts.hidden]
    assert not update[parts.heading]["visible"]
    assert update[button]["value"] == "Switch on"
    for field, name in (("hires_upscaler", "Toy's blocks"), ("scheduler", "Toy's Euler")):
        assert name not in update[fields[field]]["choices"]
    assert {name: update[fields[name]] for name in NAMES} == NEUTRAL
    assert "#tab-plugin-toy-button" in do.switching.show(asked_by("another"))[parts.hidden]

    update = press(asked_by())
    assert update[parts.sections["toy"].accordion]["visible"]
    assert "toy" not in update[parts.hidden]
    for field, name in (("hires_upscaler", "Toy's blocks"), ("scheduler", "Toy's Euler")):
        assert name in update[fields[field]]["choices"]
    assert update[button]["value"] == "Switch off"
    press(asked_by())
    assert not idle().plugins["toy"].on


def test_a_plugin_that_was_off_at_the_start_waits_for_the_next(idle, tmp_path):
    write(tmp_path / "plugins" / "toy", TOY)
    idle().plugins.switch("toy", False)
    engine = idle()
    do = opened(engine)
    button, press = switch(do, "toy")
    assert do.switching.parts.tabs == {}
    assert do.switching.list(asked_by())[button]["value"] == "Switch on"
    update = press(asked_by())
    assert "On after a restart" in card(do, asked_by(), "toy")
    assert "Restart the program to have: Toy." in Shape(summary(do)).text
    assert update[button]["value"] == "Switch off"
    assert engine.plugins.taking_part(request_for()) == []
    assert idle().plugins["toy"].on


def test_one_that_was_disabled_by_its_failures_is_enabled_again(idle, tmp_path):
    write(tmp_path / "plugins" / "toy", TOY)
    engine = idle()
    do = opened(engine)
    for _ in range(3):
        engine.plugins.failed(engine.plugins["toy"], "oh")
    button, press = switch(do, "toy")
    assert do.switching.list(asked_by())[button]["value"] == "Enable again"
    press(asked_by())
    assert engine.plugins["toy"].on


def test_a_switch_that_cannot_be_remembered_says_so(idle, tmp_path):
    write(tmp_path / "plugins" / "toy", TOY)
    engine = idle()
    do = opened(engine)
    (tmp_path / "plugins.json").mkdir()
    with pytest.warns(UserWarning, match="not for the next start"):
        switch(do, "toy")[1](asked_by())
    assert not engine.plugins["toy"].on


def test_without_plugins_the_list_says_how_to_have_some_or_that_it_is_safe_mode(idle):
    assert "--plugins-dir" in summary(opened(idle()))
    assert "Safe mode" in summary(opened(idle(no_extensions=True)))
