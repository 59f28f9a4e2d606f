"""The loopback S3 of `benchmarks.server`, to be written to: uploads take the line's time as downloads do.

Knows PUT, multipart uploads, deletions, and the checksums and metadata that S3 keeps with an object, which it takes
from the client's word: sums are not computed here, as the client's processor is what is measured. A line carries as
much each way at the same time. Runs in a process of its own; imports the standard library only.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import shutil
import sys
from base64 import b64decode, b64encode
from pathlib import Path
from typing import override
from urllib.parse import parse_qs
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from benchmarks.server import REASONS, FilePart, Line, Request, Response, Server, entity_tag, refusal, serve

REASONS[204] = "No Content"
SHA256 = "x-amz-checksum-sha256"
_KEPT = re.compile(r"x-amz-(meta-.+|checksum-.+|storage-class|server-side-encryption)")
_XML = {"Content-Type": "application/xml"}


class WritableServer(Server):
    """Serves and takes files under a root; what came in parts is put together at the end."""

    def __init__(self, root: Path, latency_seconds: float, line: Line, uplink: Line) -> None:
        super().__init__(root, latency_seconds, line)
        self._uplink, self._numbers = uplink, itertools.count(1)
        self._kept: dict[str, dict[str, str]] = {}
        self._parts: dict[str, dict[int, tuple[Path, str]]] = {}
        self._scratch = root / ".incoming"
        self._scratch.mkdir(exist_ok=True)

    @override
    async def respond(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Response:
        if request.method in ("GET", "HEAD"):
            answer = await super().respond(request, reader, writer)
            found = answer.status in (200, 206) and "/" in request.key
            return self._with_kept(request, answer) if found else answer
        if request.headers.get("expect") == "100-continue":
            await self.travel()
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._receive(reader, request.n_bytes)
        await self.travel()
        asked = {name: values[0] for name, values in parse_qs(request.query, keep_blank_values=True).items()}
        if ".." in Path(request.key).parts:
            return refusal(403, "AccessDenied", request.key)
        return await asyncio.to_thread(self._change, request, asked, body)

    async def _receive(self, reader: asyncio.StreamReader, n_bytes: int) -> Path:
        path = self._scratch / str(next(self._numbers))
        with path.open("wb") as file, self._uplink:
            while n_bytes:
                part = await reader.read(min(self._uplink.slice_bytes, n_bytes))
                if not part:
                    raise ConnectionAbortedError("the client broke off")
                await self._uplink.carry(len(part))
                file.write(part)
                self.counters.received_bytes += len(part)
                n_bytes -= len(part)
        return path

    def _with_kept(self, request: Request, answer: Response) -> Response:
        kept = self._kept.get(request.key, {})
        if request.method == "HEAD" and "partNumber=" in request.query and "x-amz-mp-parts-count" in kept:
            path = self.root / request.key
            answer = Response(206, answer.headers, FilePart(path, 0, int(kept["part-bytes"])))
        hidden = "x-amz-checksum-" if request.method == "GET" and answer.status == 206 else "part-bytes"
        shown = {name: value for name, value in kept.items() if name != "part-bytes" and not name.startswith(hidden)}
        return Response(answer.status, answer.headers | shown, answer.body)

    def _change(self, request: Request, asked: dict[str, str], body: Path) -> Response:
        target, upload = self.root / request.key, asked.get("uploadId")
        match request.method:
            case "PUT":
                summed = request.headers.get(SHA256, "")
                if upload is None:
                    kept = {name: value for name, value in request.headers.items() if _KEPT.fullmatch(name)}
                    return self._place(request.key, body, kept)
                self._parts[upload][int(asked["partNumber"])] = body, summed
                return Response(200, {"ETag": f'"{body.name}"'} | ({SHA256: summed} if summed else {}))
            case "POST" if "uploads" in asked:
                upload = body.name
                kept = {name: value for name, value in request.headers.items() if name.startswith("x-amz-meta-")}
                self._parts[upload], self._kept[upload] = {}, kept
                told = f"<Key>{escape(request.key)}</Key><UploadId>{upload}</UploadId>"
                return _xml(f"<InitiateMultipartUploadResult>{told}</InitiateMultipartUploadResult>")
            case "POST" if upload is not None:
                return self._join(request.key, upload)
            case "POST" if "delete" in asked:
                keys = [element.text or "" for element in ET.parse(body).iter() if element.tag.endswith("Key")]  # noqa: S314 - our own client's
                for key in keys:
                    (target / key).unlink(missing_ok=True)
                gone = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
                return _xml(f"<DeleteResult>{gone}</DeleteResult>")
            case _:  # DELETE
                self._parts.pop(upload or "", None)
                if upload is None:
                    target.unlink(missing_ok=True)
                return Response(204, {})

    def _place(self, key: str, body: Path, kept: dict[str, str]) -> Response:
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        body.replace(target)
        self._kept[key] = kept
        return Response(200, {"ETag": entity_tag(target.stat())})

    def _join(self, key: str, upload: str) -> Response:
        parts = [part for _, part in sorted(self._parts.pop(upload).items())]
        (first, _), *rest = parts
        kept = self._kept.pop(upload) | {
            "part-bytes": str(first.stat().st_size),
            "x-amz-mp-parts-count": str(len(parts)),
        }
        if all(summed for _, summed in parts):
            total = hashlib.sha256(b"".join(b64decode(summed) for _, summed in parts)).digest()
            kept |= {SHA256: f"{b64encode(total).decode()}-{len(parts)}", "x-amz-checksum-type": "COMPOSITE"}
        with first.open("ab") as whole:
            for path, _ in rest:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, whole, 1 << 20)
                path.unlink()
        tag = self._place(key, first, kept).headers["ETag"]
        told = f"<Key>{escape(key)}</Key><ETag>{escape(tag)}</ETag>"
        return _xml(f"<CompleteMultipartUploadResult>{told}</CompleteMultipartUploadResult>")


def _xml(text: str) -> Response:
    return Response(200, _XML, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode())


if __name__ == "__main__":
    lines = Line(float(sys.argv[3])), Line(float(sys.argv[3]))
    asyncio.run(serve(WritableServer(Path(sys.argv[1]), float(sys.argv[2]), *lines)))
