"""Chat templates: the same text as transformers', and none that takes time or memory without end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.sidecars import Sidecars
from edgeglm.runtimes.text.templates import ChatTemplate, Template, read_templates

FILE = Path("chat_template.jinja")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "查询天气 <now> & 'later'",
        "parameters": {"b": [1, 2.5], "a": None},
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "北京", "days": 2}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "You are <b>.", "tools": [WEATHER]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "你好 <b>"}]},
    {"role": "assistant", "content": "<think>\nAh. </think>\nYes.", "reasoning_content": "Ah."},
    {"role": "user", "content": " go on "},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "{}"},
]
TOKENS = {"bos_token": "[gMASK]", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
# Members of the kinds that checkpoints' templates are made of.
TEMPLATES = {
    "special tokens": "{{ bos_token }}{{ eos_token + '<sop>' }}{{ unk_token }}",
    "tools are none": "{% if tools is not none %}tools{% endif %}{{ documents is none }}",
    "tools": "x{% for tool in tools or [] %}{{ tool.function | tojson(indent=4) }}\n{% endfor %}",
    "tools in a message": "{% for m in messages if m['tools'] is defined %}{{ m.tools | tojson }}{% endfor %}",
    "tojson": "{{ messages | tojson }}",
    "tojson, ascii": "{{ messages[1] | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}",
    "tojson, positional": "{{ messages[0].tools[0] | tojson(False, '--') }}",
    "generation": "{% for m in messages %}{% generation %}\n{{ m.role }}\n{% endgeneration %}\n{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
    "loop": "{% for m in messages %}{{ loop.index0 }}{{ loop.length }}{{ loop.revindex }}{{ loop.last }}"
    "{{ loop.previtem.role if loop.previtem else '' }}{{ loop.nextitem.role if not loop.last }}{{ loop.cycle('a', 'b') }}"
    "{{ loop.changed(m.role) }}{% else %}none{% endfor %}",
    "namespace": "{% set ns = namespace(last=-1, seen=[]) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% set ns.seen = ns.seen + [m.role] %}{% endif %}{% endfor %}{{ ns.last }}{{ ns.seen }}",
    "macros": "{%- macro visible(content) -%}{%- if content is string -%}{{ content }}{%- elif content is iterable and "
    "content is not mapping -%}{%- for item in content -%}{%- if item is mapping and item.type == 'text' -%}"
    "{{ item.text }}{%- elif item is string -%}{{ item }}{%- endif -%}{%- endfor -%}{%- else -%}{{ content }}{%- endif -%}"
    "{%- endmacro -%}{% for m in messages %}<|{{ m.role }}|>\n{{ visible(m.content) }}{% endfor %}",
    "a macro's caller": "{% macro box(x) %}[{{ x }}{{ caller(1) }}]{% endmacro %}{% call(n) box('a') %}{{ n }}{% endcall %}",
    "reasoning": "{% for m in messages %}{% if '</think>' in (m.content or '') and m.content is string %}"
    "{{ m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}|"
    "{{ m.content.split('</think>')[-1].strip() }}{% endif %}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}",
    "calls": "{% for m in messages %}{% for tc in m.tool_calls or [] %}{% if tc.function %}{% set tc = tc.function %}"
    "{% endif %}{{ '\\n<tool_call>' + tc.name }}{% for k, v in tc.arguments.items() %}<arg_key>{{ k }}</arg_key>"
    "{{ v | tojson(ensure_ascii=False) if v is not string else v }}{% endfor %}{% endfor %}{% endfor %}",
    "a picture": "{% for item in messages[1].content %}{% if item.type == 'image' or 'image' in item %}<|begin_of_image|>"
    "<|image|><|end_of_image|>{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}",
    "slices": "{% for m in messages[::-1] %}{{ m.role[:3] }}{% endfor %}{{ messages[1:][0].role }}{{ 'abc'[-2:] }}",
    "filters": "{{ messages | map(attribute='role') | unique | list }}{{ messages | selectattr('role', 'equalto', 'user') "
    "| list | length }}{{ '  a b ' | trim | upper | replace('A', 'ä') }}{{ [3, 1] | sort | join(', ') }}{{ nothing | default"
    "('x') }}{{ 'a' | center(5) }}|{{ 'a\nb' | indent(2, true) }}{{ [1, 2, 3] | batch(2) | list }}{{ '%s-%d' | format('a', 2) }}"
    "{{ {'b': 1, 'a': 2} | dictsort }}{{ {'a': 1} | items | list }}{{ [[1], [2]] | sum(start=[]) }}{{ 'x' | list }}"
    "{{ messages | rejectattr('role', 'in', ['user']) | map('length') | list }}{{ 3.14159 | round(2) }}{{ ' ' | e }}",
    "operators": "{{ 'a' * 3 ~ 1 ~ [1] }}{{ 7 // 2 + 7 % 4 - 2 ** 3 }}{{ '%05.1f|%s' % (2.5, 'é') }}{{ -1 if 1 < 2 <= 2 else 0 }}"
    "{{ [1] + [2] }}{{ 'a' in 'ab' and not ('c' in ['a']) }}{{ (1, 'b') == (1, 'b') }}{{ [1] * 2 }}{{ 2 ** 64 }}",
    "methods": "{{ 'a-b'.split('-') }}{{ '{}:{:>4}:{x}'.format('a', 7, x=[1]) }}{{ ','.join(['a', 'b']) }}{{ 'ab'.startswith('a') }}"
    "{{ {'a': 1}.get('b', 2) }}{{ 'a'.ljust(3) }}|{{ 'tab\t'.expandtabs(4) }}|{{ 'aXa'.replace('X', '--', 1) }}{{ (3).bit_length() }}",
    "blocks": "{% set text %}a{{ messages | length }}{% endset %}{{ text }}{% filter upper %}b{{ text }}{% endfilter %}"
    "{% with x = 1 %}{{ x }}{% endwith %}{% raw %}{{ no }}{% endraw %}{# a remark #}",
    "recursion": "{% for n in [[1, [2, 3]], 4] recursive %}{% if n is iterable %}({{ loop(n) }}){% else %}{{ n }}{% endif %}{% endfor %}",
    "globals": "{{ range(2, 8, 3) | list }}{{ dict(a=1, **{'b': 2}) }}{{ dict.fromkeys(['a']) }}{% set c = cycler('x', 'y') %}"
    "{{ c.next() }}{{ c.next() }}{% set j = joiner('|') %}{{ j() }}a{{ j() }}",
    "tests": "{{ messages is sequence }}{{ 1 is divisibleby 1 }}{{ none is none }}{{ 'a' is string }}{{ 5 is odd }}"
    "{{ nothing is undefined }}{{ {} is mapping }}{{ true is boolean }}{{ 1700000000 is ge 1699999999 }}{{ 2 is in [2] }}",
    "white space": "  {%- if true %}\n  {{ 1 }}\n  {% endif %}\n\n{% for x in [1] %}\n  {{ x }}  \n{% endfor %}\n  end",
    "prints of values": "{{ messages[0] }}{{ none }}{{ true }}{{ 1.0 }}{{ [none, 'ä\\n'] }}{{ nothing }}",
    "a generation prompt": "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined %}x{% endif %}{% endif %}",
}


def ours(text: str, tools: list[Any] | None = None) -> str:
    return ChatTemplate({"default": Template(FILE, text)}, TOKENS).render(MESSAGES, tools)


@pytest.mark.parametrize("tools", [None, [WEATHER]], ids=["without tools", "with tools"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(name: str, tools: list[Any] | None) -> None:
    said = [{key: value for key, value in message.items() if value is not None} for message in MESSAGES]
    names: Any = TOKENS
    texts: Any = render_jinja_template(
        conversations=[said], tools=tools, chat_template=TEMPLATES[name], add_generation_prompt=True, **names
    )[0]
    right = texts[0]
    if right:
        assert ours(TEMPLATES[name], tools) == right
    else:
        with pytest.raises(UnsupportedError, match="renders nothing"):
            ours(TEMPLATES[name], tools)


def test_a_long_conversation_is_within_the_limits() -> None:
    template = ChatTemplate({"default": Template(FILE, TEMPLATES["macros"])}, {})
    turns = [{"role": "user", "content": "word " * 400}, {"role": "assistant", "content": "answer " * 50}]
    assert len(template.render(turns * 200)) > 400_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    roles = ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|image|>"]
    words = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *roles]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", *roles])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


def write(folder: Path, name: str, value: object) -> None:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    if isinstance(value, dict) and file.exists():
        value = json.loads(file.read_text()) | value
    file.write_text(value if isinstance(value, str) else json.dumps(value))


NAMED = [
    {"name": "default", "template": "d{{ messages | length }}"},
    {"name": "tool_use", "template": "t{{ tools | length }}"},
]
# Files of a checkpoint, by name: all forms in which transformers finds templates and tokens.
PLACES: dict[str, dict[str, object]] = {
    "a file": {"chat_template.jinja": "file{{ bos_token }}{{ eos_token }}"},
    "a file's line ends": {"chat_template.jinja": "a\r\nb\r{{ eos_token }}\n\n"},
    "settings": {"tokenizer_config.json": {"chat_template": "settings{{ eos_token }}"}},
    "a list of names": {"tokenizer_config.json": {"chat_template": NAMED}},
    "a file before settings": {"chat_template.jinja": "file", "tokenizer_config.json": {"chat_template": "settings"}},
    "a folder": {"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "t{{ tools | length }}"},
    "a token of its own": {"chat_template.jinja": "{{ box_token }}", "tokenizer_config.json": {"box_token": "<|box|>"}},
    "a token as an object": {
        "chat_template.jinja": "{{ bos_token }}.",
        "tokenizer_config.json": {"bos_token": {"__type": "AddedToken", "content": "[gMASK]", "special": True}},
    },
    "extra tokens": {"chat_template.jinja": "{{ box_token }}", "tokenizer_config.json": {"extra_special_tokens": {"box_token": "<|b|>"}}},
    "a map of tokens": {"chat_template.jinja": "{{ bos_token }}{{ eos_token }}", "special_tokens_map.json": {"bos_token": {"content": "<sop>"}}},
    "a token that is none": {"chat_template.jinja": "{{ bos_token }}.", "tokenizer_config.json": {"bos_token": None}},
}  # fmt: skip


@pytest.mark.parametrize("tools", [None, [WEATHER]], ids=["without tools", "with tools"])
@pytest.mark.parametrize("name", PLACES)
def test_templates_and_tokens_are_found_where_transformers_finds_them(
    checkpoint: Path, tmp_path: Path, name: str, tools: list[Any] | None
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file_name, value in PLACES[name].items():
        write(tmp_path, file_name, value)
    messages = [{"role": "user", "content": "你好"}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    right = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    chat = Chat(Sidecars(tmp_path), None)
    assert chat.render(messages, tools) == right
    assert chat.encode(messages, tools) == tokenizer(right, add_special_tokens=False)["input_ids"]


def test_a_processors_template_goes_first_where_the_model_sees(tmp_path: Path) -> None:
    write(tmp_path, "chat_template.json", {"chat_template": "processor"})
    write(tmp_path, "tokenizer_config.json", {"chat_template": "settings"})
    for sees, right in ((True, "processor"), (False, "settings")):
        template = read_templates(Sidecars(tmp_path), sees=sees)
        assert template is not None
        assert template.render(MESSAGES) == right


def test_only_files_that_a_bundle_vouches_for_speak(tmp_path: Path) -> None:
    write(tmp_path, "chat_template.jinja", "right")
    write(tmp_path, "chat_template.json", {"chat_template": "smuggled in"})
    template = read_templates(Sidecars(tmp_path, frozenset(["chat_template.jinja"])), sees=True)
    assert template is not None
    assert template.render(MESSAGES) == "right"


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("chat_template.jinja", b"\xff\xfe", "is not UTF-8"),
        ("tokenizer_config.json", b"[]", "is not a JSON object"),
        ("tokenizer_config.json", b"{", "is not valid JSON"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "its chat_template is not valid"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "a"}]}', "its chat_template is not valid"),
    ],
)
def test_a_damaged_file_is_named_with_the_checkpoints(tmp_path: Path, name: str, data: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DamagedFileError, match=rf"{name}: {why}.*; correct {name} of the checkpoint"):
        read_templates(Sidecars(tmp_path), sees=False)


def test_several_templates_without_a_default_are_named(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": {"rag": "a", "tool_use": "b"}})
    template = read_templates(Sidecars(tmp_path), sees=False)
    assert template is not None
    with pytest.raises(UnsupportedError, match=r"one of several \(rag, tool_use\), and none of them is called default"):
        template.render(MESSAGES)
    assert template.render(MESSAGES, [WEATHER]) == "b"
