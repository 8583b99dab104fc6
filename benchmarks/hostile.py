"""Requests that a server must refuse: HTTP, JSON, fields and pictures by which others have been brought down.

Each is the bytes of one connection, with the statuses of which the server gives one. 200 stands where the request is
odd and yet has an answer, and 0 where the connection may be closed without one.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL import Image

PATH = "/v1/chat/completions"
MAX_BODY_BYTES = 64 << 20  # of the server
BAD, FINE = (400,), (200,)
KIND = "Content-Type: application/json\r\n"


class Attack(NamedTuple):
    """The bytes of a connection, and the statuses that are right for them."""

    name: str
    data: bytes
    statuses: tuple[int, ...] = BAD


def attacks() -> list[Attack]:
    """Return all of them but the ones of many megabytes."""
    return [*broken_http(), *broken_json(), *wrong_fields(), *wrong_pictures()]


def large_attacks() -> list[Attack]:
    """Return those of many megabytes."""
    long = json.dumps(fields(content="a" * (5 << 20))).encode()
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    chunked = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n{KIND}Transfer-Encoding: chunked\r\n\r\n".encode()
    return [
        Attack("body of 64 MiB and a byte", posted(b" " * (MAX_BODY_BYTES + 1)), (413,)),
        Attack("chunks of 65 MiB", chunked + chunk * 65 + b"0\r\n\r\n", (413,)),
        Attack("body of 5 million values", posted(b'{"messages": [' + b"{}," * 5_000_000 + b"{}]}"), (413,)),
        Attack("text of 5 MiB", posted(long)),
        Attack("text of 4 million characters", posted(json.dumps(fields(content="Aa b" * 1_000_000)).encode())),
        Attack("name of 5 MiB", posted(json.dumps(fields(model="m" * (5 << 20))).encode()), FINE),
        Attack("field of 5 MiB that is unknown", posted(json.dumps(fields(unknown="m" * (5 << 20))).encode()), FINE),
    ]


def fields(content: object = "Select OK", **more: object) -> dict[str, Any]:
    """Return the fields of a request for one token."""
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0, **more}


def posted(body: bytes, kind: str = "application/json", path: str = PATH) -> bytes:
    """Return a request with a body on a connection of its own."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def broken_http() -> Iterator[Attack]:
    """Yield what is no HTTP, or HTTP that two readers may read otherwise."""
    body = json.dumps(fields()).encode()
    second = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n{KIND}".encode()
    length = f"Content-Length: {len(body)}\r\n".encode()
    chunked = b"Transfer-Encoding: chunked\r\n"
    for name, lines in {
        "two lengths": length + b"Content-Length: 3\r\n",
        "length with a sign": b"Content-Length: +3\r\n",
        "length below zero": b"Content-Length: -1\r\n",
        "length in hexadecimal": b"Content-Length: 0x10\r\n",
        "length with a list": b"Content-Length: 3, 4\r\n",
        "unknown encoding": b"Transfer-Encoding: xchunked\r\n",
        "encoding with a tab": b"Transfer-Encoding:\tidentity, chunked\r\n",
        "space before a colon": b"Content-Length : 3\r\n",
        "line that is folded": b"X-A: b\r\n c\r\nContent-Length : 3\r\n",
        "zero byte in a field": b"X-A: b\0c\r\n" + length,
        "field without a name": b": x\r\n" + length,
        "huge field": b"X-A: " + b"a" * (1 << 17) + b"\r\n" + length,
        "many fields": b"X-A: b\r\n" * 20000 + length,
    }.items():
        yield Attack(name, head + lines + b"\r\n" + body + second)
    yield Attack("length and chunks", head + length + chunked + b"\r\n0\r\n\r\n" + second)
    yield Attack("chunks and length", head + chunked + length + b"\r\n0\r\n\r\n" + second)
    yield Attack("chunk of no size", head + chunked + b"\r\nzz\r\n\r\n", (400, 0))
    yield Attack("chunk below zero", head + chunked + b"\r\n-1\r\n\r\n", (400, 0))
    yield Attack("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300))
    yield Attack("HTTP/0.9", b"GET /v1/models\r\n\r\n")
    yield Attack("no host", b"GET /v1/models HTTP/1.1\r\n\r\n")
    yield Attack("method that is none", b"G\0T /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    for name, path in {"zero byte": "%00", "two dots": "../../etc/passwd", "bytes of no UTF-8": "%ff%fe"}.items():
        get = f"GET /v1/models/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        yield Attack(f"path with {name}", get.encode(), (404,))
    yield Attack("body that ends early", head + b"Content-Length: 99999\r\n\r\n" + body, (400, 0))
    yield Attack("head that ends early", head[:-9], (400, 0))
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "a" * 5000):
        yield Attack(f"content type {kind[:24]}", posted(body, kind), (415,))
    yield Attack("wrong method", b"DELETE /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (405,))
    yield Attack("no such address", posted(body, path="/v1/chat/completions/x"), (404,))


def broken_json() -> Iterator[Attack]:
    """Yield bodies that are no JSON, or JSON at its limits."""
    start = b'{"messages": [{"role": "user", "content": "Select OK"}], "max_tokens": 1, '
    for name, body in {
        "nothing": b"",
        "cut off": b"{",
        "a list": b"[]",
        "a text": b'"x"',
        "a number": b"1.0",
        "a fraction in a list": b'{"messages": [1.0]}',
        "no messages": b"{}",
        "no UTF-8": b"\xff\xfe",
        "UTF-16": json.dumps(fields()).encode("utf-16"),
        "mark of byte order": b"\xef\xbb\xbf" + json.dumps(fields()).encode(),
        "something behind": json.dumps(fields()).encode() + b"{}",
        "NaN": start + b'"temperature": NaN}',
        "infinity": start + b'"temperature": -Infinity}',
        "number without end": start + b'"temperature": 1e999}',
        "integer of 5,000 digits": start + b'"max_tokens": ' + b"9" * 5000 + b"}",
        "seed of 5,000 digits": start + b'"seed": -' + b"9" * 5000 + b"}",
        "zero bytes": b"\0" * 1000,
        "deep list": b'{"messages": ' + b"[" * 100_000,
        "deep list that ends": b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "deep objects": b'{"messages": [' + b'{"a":' * 1200 + b"1" + b"}" * 1200 + b"]}",
        "deep unknown field": start + b'"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "half a character": start[:-2] + rb', "stop": "\ud800"}',
        "half a character in a key": rb'{"\udfff": 1, "messages": [{"role": "user", "content": "\udc00\ud800"}]}',
        "escape that is none": start + rb'"x": "\x"}',
    }.items():
        yield Attack(name, posted(body))
    yield Attack("key twice", posted(start + b'"max_tokens": 1}'), FINE)
    yield Attack("messages twice", posted(start + b'"messages": 1}'))
    yield Attack("zero in a text", posted(json.dumps(fields(content="a\0b")).encode()), FINE)
    yield Attack("huge seed", posted(json.dumps(fields(seed=-(2**63))).encode()), FINE)


def wrong_fields() -> Iterator[Attack]:
    """Yield fields whose values nothing can have, or that would take for ever."""
    many: list[dict[str, Any]] = [{"role": "user", "content": "x"}] * 20_000
    deep: Any = "x"
    for _ in range(200):
        deep = {"a": [deep]}
    bomb = {"type": "object", "properties": {str(number): {"$ref": "#"} for number in range(600)}}
    values: dict[str, dict[str, Any]] = {
        "huge number": {"max_tokens": 10**40},
        "fraction of a token": {"max_tokens": 1.5},
        "tokens below zero": {"max_tokens": -1},
        "temperature": {"temperature": 1e300},
        "hundred answers": {"n": 100},
        "text for a list": {"messages": "x"},
        "number for a message": {"messages": [1]},
        "no content": {"messages": [{"role": "user"}]},
        "no role": {"messages": [{"content": "x"}]},
        "role of an object": {"messages": [{"role": {}, "content": "x"}]},
        "many messages": {"messages": many},
        "token of the images": {"messages": [{"role": "user", "content": "<|image|>"}]},
        "deep part": {"messages": [{"role": "user", "content": "x", "a": deep}]},
        "deep names": {"chat_template_kwargs": deep, "messages": []},
        "many stops": {"stop": ["x"] * 99},
        "empty stop": {"stop": [""]},
        "schema of no type": _schema({"type": "word"}),
        "schema of itself": _schema({"$ref": "#"}),
        "schema from a network": _schema({"$ref": "http://127.0.0.1:9/x"}),
        "schema from a file": _schema({"$ref": "file:///etc/passwd"}),
        "schema of a bomb": _schema(bomb),
        "pattern of a bomb": _schema({"type": "string", "pattern": "(" * 500 + "a+" + ")+" * 500}),
        "pattern of repeats": _schema({"type": "string", "pattern": "((((a{99}){99}){99}){99}){99}"}),
    }
    for name, more in values.items():
        statuses = (200, 400) if name in MAY_WORK else BAD
        yield Attack(name, posted(json.dumps({**fields(), **more}).encode()), statuses)


# What llguidance can make something of, or a template.
MAY_WORK = ("schema of itself", "schema of a bomb", "pattern of a bomb", "pattern of repeats")


def _schema(schema: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def wrong_pictures() -> Iterator[Attack]:
    """Yield pictures that are none, or that are far larger than their bytes."""
    image = Image.effect_noise((64, 96), 32).convert("RGB")
    png, jpeg, webp = (_encoded(image, form) for form in ("PNG", "JPEG", "WEBP"))
    frames = [Image.new("RGB", (96, 160), (number, 0, 0)) for number in range(40)]
    moving = {"save_all": True, "append_images": frames[1:], "duration": 20}
    for name, data in {
        "PNG of 65,536 x 65,536": _png(1 << 16, 1 << 16, b""),
        "PNG of 30,000 x 30,000 in full": _png(30_000, 30_000, bytes(3751 * 30_000)),
        "PNG without a side": _png(0, 5, b""),
        "PNG that is cut off": png[: len(png) // 2],
        "PNG's head": png[:33],
        "JPEG that is cut off": jpeg[: len(jpeg) // 2],
        "JPEG of 65,500 x 65,500": _resized_jpeg(jpeg),
        "WebP that is cut off": webp[: len(webp) // 2],
        "WebP of 16,384 x 16,384": _resized_webp(_encoded(frames[0], "WEBP", **moving)),
        "GIF": _encoded(image, "GIF"),
        "BMP": _encoded(image, "BMP"),
        "TIFF": _encoded(image, "TIFF"),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "text": b"not a picture",
        "nothing": b"",
        "zero bytes": bytes(100),
    }.items():
        yield Attack(f"picture: {name}", posted(_asking(_url(data))))
    for name, data in {
        "animated WebP": _encoded(frames[0], "WEBP", **moving),
        "animated PNG": _encoded(frames[0], "PNG", **moving),
        "PNG with 100 MB of text": png[:33] + _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000))) + png[33:],
        "one pixel": _encoded(Image.new("RGB", (1, 1)), "PNG"),
    }.items():
        yield Attack(f"picture: {name}", posted(_asking(_url(data))), (200, 400))
    files = ("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/x.png")
    for url in (*files, "data:,x", "data:image/png;base64,%%%", "\0"):
        yield Attack(f"picture at {url!r}", posted(_asking(url)))
    yield Attack("picture twelve times", posted(_asking(*[_url(png)] * 12)), (200, 400))


def _asking(*urls: str) -> bytes:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return json.dumps(fields(content=[*pictures, {"type": "text", "text": "Select OK"}])).encode()


def _url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _png(width: int, height: int, rows: bytes) -> bytes:
    """Return a PNG of one bit a pixel."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _resized_jpeg(data: bytes) -> bytes:
    """Return a JPEG whose header says another size."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", 65_500, 65_500) + data[at + 4 :]


def _resized_webp(data: bytes) -> bytes:
    """Return an animated WebP whose header says another size."""
    at = data.index(b"VP8X") + 12
    return data[:at] + (16_383).to_bytes(3, "little") * 2 + data[at + 6 :]
