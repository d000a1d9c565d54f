"""The dashboard in a real browser, before a real server with the embedded model (5 layers of 16 experts, top-2)."""

import json

import pytest

from tests.browser.conftest import KEY, open_with_key, say

HEAT = "document.querySelector('#heat').toDataURL()"
TOKENS = "document.querySelectorAll('.token').length"
COLOURED = "[...document.querySelectorAll('.token')].filter((t) => t.style.backgroundColor && t.dataset.expert).length"
CARD = "document.querySelector('#card')"
EXPERTS_OF_CARD = f"[...{CARD}.querySelectorAll('.weights li')].map((li) => li.textContent)"


def test_chat_colours_tokens_and_moves_the_heat_map(ready, server):
    ready.wait("document.querySelector('#heat').height > 100")
    before = ready.run(HEAT)
    say(ready, "Explain MoE architecture")
    assert "experts" in ready.text(".message.assistant")
    tokens = ready.run(TOKENS)
    assert tokens > 30 and ready.run(COLOURED) == tokens  # the last token of all ends the answer and has no text
    assert ready.run("new Set([...document.querySelectorAll('.token')].map((t) => t.dataset.expert)).size") > 3
    ready.wait(f"{HEAT} !== {json.dumps(before)}", 15)
    ready.wait("/routed tokens a layer/.test(document.querySelector('#heat-note').textContent)")
    assert ready.errors == []
    assert all(url.startswith(server.url) for url in ready.requests)
    assert {url.removeprefix(server.url).split("?")[0] for url in ready.requests} >= {
        "/v1/moe/status",
        "/v1/moe/experts",
        "/v1/chat/completions",
        "/dashboard/app.js",
    }


def test_routes_show_under_the_pointer_and_by_keyboard(ready):
    say(ready, "What is 47 + 38?")
    ready.point(*ready.centre(".token"))
    ready.wait(f"!{CARD}.hidden")
    shown = ready.run(EXPERTS_OF_CARD)
    assert len(shown) == 2 and all(text.startswith("expert ") for text in shown)
    assert "position" in ready.text("#card") and ready.text(".card-token strong") == ready.text(".token")
    heaviest = ready.run("document.querySelector('.token').dataset.expert")
    assert shown[0].startswith(f"expert {heaviest}")
    ready.point(1, 1)
    ready.wait(f"{CARD}.hidden")
    ready.run("document.querySelector('.message.assistant').focus()")
    for key in ("ArrowRight", "ArrowRight"):
        ready.press(key)
    assert ready.run(f"!{CARD}.hidden && document.querySelectorAll('.token')[1].classList.contains('current')")
    ready.press("Escape")
    assert ready.run(f"{CARD}.hidden")
    assert ready.errors == []


def test_another_layer_colours_anew(ready):
    say(ready, "What is 12 + 30?")
    colours = "[...document.querySelectorAll('.token')].map((t) => t.dataset.expert).join()"
    last = ready.run(colours)
    ready.choose("#chat-layer", "0")
    assert ready.run(colours) != last
    assert ready.run("document.querySelector('#heat-layer').value") == "0"


def test_tags_are_counted_apart_and_time_goes_by(ready):
    ready.run("document.querySelector('[name=tags]').value = 'sums'")
    say(ready, "What is 1 + 2?")
    ready.wait("[...document.querySelector('#heat-tag').options].some((o) => o.value === 'sums')")
    rows = "[...document.querySelectorAll('#layer-rows td:nth-child(2)')].map((td) => Number(td.textContent))"
    ready.choose("#heat-view", "start")
    ready.choose("#heat-tag", "sums")
    tagged = ready.wait(f"new Set({rows}).size === 1 && {rows}[0] > 0 && {rows}[0]")
    ready.choose("#heat-tag", "")
    ready.wait(f"{rows}[0] >= {tagged}")
    ready.choose("#heat-view", "time")
    ready.wait("/a column is 2 s/.test(document.querySelector('#heat-note').textContent)")
    empty = ready.run(HEAT)
    say(ready, "What is 3 + 4?")
    ready.wait(f"{HEAT} !== {json.dumps(empty)}", 15)
    assert ready.errors == []


def test_two_settings_side_by_side(ready):
    ready.click("#compare")
    ready.run("document.querySelectorAll('[name=top_k]')[1].value = '1'")
    ready.run("document.querySelectorAll('[name=tags]')[1].value = 'finance, sums'")
    say(ready, "What is 47 + 38?")
    assert ready.text("#verdict")
    boxes = ready.run("[...document.querySelectorAll('.pane')].map((p) => p.getBoundingClientRect().left)")
    assert boxes[0] < boxes[1]
    experts = []
    for pane in (1, 2):
        ready.point(*ready.centre(f".pane:nth-child({pane}) .token"))
        ready.wait(f"!{CARD}.hidden")
        experts.append(len(ready.run(EXPERTS_OF_CARD)))
        ready.point(1, 1)
        ready.wait(f"{CARD}.hidden")
    assert experts == [2, 1]
    facts = ready.run("[...document.querySelectorAll('.facts')].map((p) => p.textContent)")
    assert "finance+sums" in facts[1] and "finance" not in facts[0]
    assert ready.errors == []


def test_what_the_server_refuses_is_said_and_may_be_sent_again(ready):
    ready.run("document.querySelector('[name=ban]').value = Array.from({length: 16}, (_, i) => i).join()")
    say(ready, "hello")
    assert "expert" in ready.text(".message.error")
    assert ready.run("document.querySelector('#text').value") == "hello"
    ready.run("document.querySelector('[name=ban]').value = ''")
    say(ready, "")
    assert ready.run(TOKENS) > 0
    ready.run("document.querySelector('[name=top_k]').value = '17'")
    ready.click("#text")
    ready.type("again")
    ready.press("Enter")
    assert ready.run("document.activeElement.name") == "top_k"  # the browser says why


def test_a_wrong_key_is_said_and_a_right_one_taken(page, server):
    page.open(server.url)
    page.wait("document.querySelector('#state').textContent === 'API key needed'")
    assert page.run("document.querySelector('#key-box').open")
    for key, state in (("wrong", "wrong API key"), (KEY, "ready")):
        page.run("document.querySelector('#key').value = ''")
        page.click("#key")
        page.type(key)
        page.press("Enter")
        page.wait(f"document.querySelector('#state').textContent === '{state}'")
    assert not page.run("document.querySelector('#key-box').open")
    assert page.run("sessionStorage.getItem('moesaic-key')") == KEY and page.run("localStorage.length") == 0
    page.open(server.url)  # the tab keeps it
    page.wait("document.querySelector('#state').textContent === 'ready'")


def test_the_policy_holds(ready):
    ready.run(
        "document.head.append(Object.assign(document.createElement('style'), {textContent: 'body {color: red}'}))"
    )
    assert ready.run("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
    with pytest.raises(AssertionError, match="TrustedHTML|Trusted"):
        ready.run("document.body.innerHTML = '<b>x</b>'")
    assert ready.run("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'blocked')") == "blocked"
    assert any("Content Security Policy" in error for error in ready.errors)


@pytest.mark.parametrize("dark", [False, True])
def test_fits_a_phone(page, server, dark):
    page.show_as(375, 812, dark=dark, phone=True)
    open_with_key(page, server)
    page.click("#compare")
    say(page, "What is 47 + 38?")
    assert page.run("document.documentElement.scrollWidth") == 375
    beyond = "(e) => e.getBoundingClientRect().right > 376 && !e.closest('pre, .scroll, [hidden]')"
    assert page.run(f"[...document.querySelectorAll('main *')].filter({beyond}).map((e) => e.outerHTML)") == []
    assert (page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)") == dark
    assert page.errors == []


CONTRAST = """(async () => {
  const { expertColour, ink } = await import('./dashboard/colours.js');
  const pen = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const light = (colour) => {
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const pairs = [['ink', 'card'], ['ink', 'ground'], ['quiet', 'card'], ['quiet', 'ground'], ['accent', 'card'],
    ['on-accent', 'accent'], ['warn', 'card']];
  const texts = pairs.map(([a, b]) => contrast(ink(a), ink(b)));
  const tokens = Array.from({ length: 64 }, (_, id) => contrast(ink('ink'), expertColour(id)));
  return Math.min(...texts, ...tokens);
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_that_of_wcag_aa(page, server, dark):
    page.show_as(1360, 900, dark=dark)
    open_with_key(page, server)
    assert page.run(CONTRAST) >= 4.5


FOCUS = """(() => {
  const e = document.activeElement;
  const box = e.getBoundingClientRect();
  const style = getComputedStyle(e);
  return { what: e.id || e.name || e.className || e.tagName, top: box.top + scrollY, seen: box.width > 0,
           ring: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1 };
})()"""


def test_everything_is_reached_by_tab_in_the_order_seen(ready):
    say(ready, "What is 47 + 38?")
    ready.run("document.querySelector('.skip').focus()")
    stops = []
    while (stop := ready.run(FOCUS))["what"] != "BODY" and len(stops) < 60:
        stops.append(stop)
        ready.press("Tab")
    names = [stop["what"] for stop in stops]
    wanted = ["skip", "compare", "clear", "tags", "top_k", "log", "text", "send", "colour", "chat-layer", "numbers"]
    wanted += ["heat-view", "heat", "copy", "curl"]
    assert [name for name in names if name in wanted] == wanted
    assert any("assistant" in name for name in names)  # each answer is one stop
    assert [stop["what"] for stop in stops if not stop["seen"] or not stop["ring"]] == []


def test_all_controls_have_names(ready):
    ready.send("Accessibility.enable")
    nodes = ready.send("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "textbox", "checkbox", "combobox", "spinbutton", "link", "application", "figure"}
    found = [n for n in nodes if n.get("role", {}).get("value") in named and not n.get("ignored")]
    assert len(found) > 15
    assert [n["role"]["value"] for n in found if not n.get("name", {}).get("value", "").strip()] == []
