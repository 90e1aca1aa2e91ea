"""What a model's card takes from files stands in it as text, and what it gives to copy can be copied."""

from __future__ import annotations

import ast
import shlex

import pytest
import yaml

from mtlsi.model import card
from mtlsi.model.build import create_model
from mtlsi.model.card import code, front_matter, in_cell, own_card, printed, use_text

HOSTILE = (
    "<img src=x>",
    "a\n# Heading",
    "[b](//c)",
    "https://d.example",
    "www.e.example",
    "*f*",
    "g `h` ``",
    "`",
    "x" * 300,
)


@pytest.mark.parametrize(
    "text", ["adamw", "semseg.mIoU", "NYUDv2, official (a.mat; derived)", "night stand", "Tür/Tor", "%", ""]
)
def test_plain_words_stand_as_they_are(text):
    assert printed(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_anything_else_is_code_in_one_line(text):
    shown = printed(text)
    ticks = shown[: len(shown) - len(shown.lstrip("`"))]
    assert ticks
    assert shown.endswith(ticks)
    inside = shown[len(ticks) : -len(ticks)]
    assert ticks not in inside
    assert "\n" not in inside
    assert len(inside) <= 202
    if len(text) < 200:
        assert inside.strip() == " ".join(text.split())


def test_a_stroke_does_not_part_a_cell():
    assert in_cell("a|b") == r"`a\|b`"
    assert code("a") == "`a`"


@pytest.mark.parametrize("license", ["mit", "no", "other: [1", "x\nevil: [1", 'CC "BY"', "---"])
def test_the_front_matter_says_what_was_given(license):
    lines = front_matter(("semseg", "depth"), license).split("\n")
    assert (lines[0], lines[-1]) == ("---", "---")
    assert yaml.safe_load("\n".join(lines[1:-1])) == {
        "license": license,
        "library_name": "mtlsi",
        "pipeline_tag": "image-segmentation",
        "tags": ["multi-task-learning", "semantic-segmentation", "depth-estimation"],
    }


@pytest.mark.parametrize("name", ["rooms", 'my model; rm -rf "x"', "it's", "$(x)", "OWNER/rooms-0.5", "a\\b"])
def test_a_name_is_quoted_for_the_shell_and_for_python(name):
    command, _, python = use_text(name).partition("```python\n")
    assert shlex.split(command.split("\n")[2]) == ["mtlsi", "predict", "photo.jpg", "--model", name]
    (call,) = [node for node in ast.walk(ast.parse(python.partition("```")[0])) if isinstance(node, ast.Call)
               and getattr(node.func, "attr", "") == "from_pretrained"]  # fmt: skip
    assert ast.literal_eval(call.args[0]) == name


def test_a_folder_that_is_called_as_a_packaged_model_or_a_flag_is_given_as_a_path(monkeypatch):
    monkeypatch.setattr(card, "is_packaged", lambda name: name == "scenes")
    assert "--model ./scenes\n" in use_text("scenes")
    assert 'from_pretrained("./scenes")' in use_text("scenes")
    assert "--model ./-x\n" in use_text("-x")


def test_names_of_classes_are_text():
    classes = {"semseg": ("wall", "<script>", "[a](//b)")}
    text = own_card(create_model("tiny", tasks=("semseg",), classes=classes), "mine", license="mit")
    assert "wall, `<script>`, `[a](//b)`\n" in text
    assert "license: mit\n" in text
