"""The keys that edit a prompt, typed by a person."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_page import PROMPT

UP, DOWN, LEFT, RIGHT = "Control+ArrowUp", "Control+ArrowDown", "Alt+ArrowLeft", "Alt+ArrowRight"


def typed(page: Page, marked: str, *keys: str) -> str:
    """What is there after these keys. In both, ``{`` and ``}`` are where the selection begins and ends."""
    before, selected, after = marked.replace("}", "{").split("{")
    box = page.locator(PROMPT)
    box.fill(before + selected + after)
    at = [len(before), len(before) + len(selected)]
    box.evaluate("(area, at) => area.setSelectionRange(...at)", at)
    for key in keys:
        box.press(key)
    text = box.input_value()
    start, end = box.evaluate("area => [area.selectionStart, area.selectionEnd]")
    return f"{text[:start]}{{{text[start:end]}}}{text[end:]}"


@pytest.mark.parametrize(
    ("before", "keys", "after"),
    [
        ("a {red} fox", [UP], "a ({red}:1.1) fox"),
        ("a {red} fox", [UP, UP, UP], "a ({red}:1.3) fox"),
        ("a {red} fox", [DOWN], "a ({red}:0.9) fox"),
        ("a r{}ed fox", [UP], "a ({red}:1.1) fox"),
        ("a{ red }fox", [UP], "a ({red}:1.1) fox"),
        ("a ({red}:1.1) fox", [DOWN], "a {red} fox"),
        ("a ({red}:1.1) fox", [DOWN, DOWN], "a ({red}:0.9) fox"),
        ("a {(red:1.25)} fox", [UP], "a ({red}:1.35) fox"),
        ("a (very r{}ed:1.2) fox", [UP], "a ({very red}:1.3) fox"),
        ("(a (r{}ed:1.2) fox:1.5)", [DOWN], "(a ({red}:1.1) fox:1.5)"),
        (r"smile \({face}\)", [UP], r"smile \(({face}:1.1)\)"),
        ("[{day}:night:0.5]", [UP], "[({day}:1.1):night:0.5]"),
        ("a ({red}:0.05) fox", [DOWN], "a ({red}:0.05) fox"),
        ("a fox, {}", [UP], "a fox, {}"),
        ("ink <lora:i{}nk:0.8>", [UP], "ink {<lora:ink:0.85>}"),
        ("ink {<lora:ink:0.05>}", [DOWN, DOWN], "ink {<lora:ink:-0.05>}"),
        ("<lora:i{}nk>", [DOWN], "{<lora:ink:0.95>}"),
        ("<lyco:ink:1{}:0.5>", [UP], "{<lyco:ink:1.05:0.55>}"),
        ("a fox, r{}ed,  big", [LEFT], "{red}, a fox,  big"),
        ("a fox, r{}ed,  big", [RIGHT], "a fox, big,  {red}"),
        ("a{} fox, red, big", [RIGHT, RIGHT], "red, big, {a fox}"),
        ("a{} fox, red", [LEFT], "a{} fox, red"),
        ("a fox, (red, {}big:1.2), tree", [LEFT], "{(red, big:1.2)}, a fox, tree"),
        ("a fox, [red, {}big:tree, 3:0.5]", [LEFT], "{[red, big:tree, 3:0.5]}, a fox"),
    ],
)
def test_keys_weigh_and_move_what_is_meant(page, before, keys, after):
    assert typed(page, before, *keys) == after


def test_a_weight_can_be_undone_and_is_counted_by_the_page(page):
    assert typed(page, "a {red} fox", UP) == "a ({red}:1.1) fox"
    page.keyboard.press("Control+z")
    expect(page.locator(PROMPT)).to_have_value("a red fox")


def test_the_keys_leave_other_fields_alone(page):
    page.fill(PROMPT, "red")
    seed = page.locator("#field-seed input")
    seed.fill("5")
    seed.press(LEFT)
    expect(page.locator(PROMPT)).to_have_value("red")
    expect(seed).to_have_value("5")


@pytest.fixture(scope="module")
def page(browser, address):
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(address)
    expect(opened.locator(PROMPT)).to_be_editable()
    yield opened
    context.close()
