"""The two services of AWS that a cluster speaks with, as programs.

    aws_server.py api ADDRESS PORT FOLDER     the API: moto, with a record of its calls, and with shortages of spot machines
    aws_server.py metadata ADDRESS PORT FILE  the metadata service of one instance: FILE holds the notice, if there is one

The API writes FOLDER/calls.jsonl and FOLDER/instances.json, and has no spot machines while FOLDER/shortage exists.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

ACCOUNT, REGION = "123456789012", "us-west-2"
SHORTAGE = """<Response><Errors><Error><Code>InsufficientInstanceCapacity</Code>
<Message>There is no Spot capacity available that matches your request.</Message></Error></Errors></Response>"""
TOKEN = "a-session-token"


class RecordedApi:
    """A WSGI application around moto's. What is not a call of EC2's kind, such as an object of S3, passes through."""

    def __init__(self, moto: Callable[..., Iterable[bytes]], folder: Path) -> None:
        self.moto, self.folder = moto, folder

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if "x-www-form-urlencoded" not in environ.get("CONTENT_TYPE", ""):
            return self.moto(environ, start_response)
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        environ["wsgi.input"] = BytesIO(body)
        call = dict(parse_qsl(body.decode()))
        spot = call["Action"] == "RunInstances" and call.get("InstanceMarketOptions.MarketType") == "spot"
        refused = spot and (self.folder / "shortage").exists()
        with (self.folder / "calls.jsonl").open("a") as file:
            file.write(json.dumps({**call, "refused": refused, "seconds": time.time()}) + "\n")
        if not refused:
            return self.moto(environ, start_response)
        start_response("500 Internal Server Error", [("Content-Type", "text/xml")])
        return [SHORTAGE.encode()]


def write_instances(folder: Path) -> None:
    """Write the instances of the account to a file, again and again."""
    from moto.ec2.models import ec2_backends

    api: Any = ec2_backends[ACCOUNT][REGION]
    while True:
        instances = [
            {
                "id": instance.id,
                "state": instance.state,
                "private": instance.private_ip,
                "public": instance.public_ip,
                "spot": instance.lifecycle == "spot",
                "key": api.key_pairs[instance.key_name].public_key,
            }
            for instance in api.all_instances()
        ]
        (folder / "instances.new").write_text(json.dumps(instances))
        os.replace(folder / "instances.new", folder / "instances.json")
        time.sleep(0.2)


def serve_api(address: str, port: int, folder: Path) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    api = RecordedApi(DomainDispatcherApplication(create_backend_app), folder)
    threading.Thread(target=run_simple, args=[address, port, api], kwargs={"threaded": True}, daemon=True).start()
    write_instances(folder)  # an error in it must end the program


class Metadata(BaseHTTPRequestHandler):
    """Answers as version 2 of the metadata service does: only with a session token."""

    notice: Path

    def do_PUT(self) -> None:
        self.answer(200, TOKEN) if self.path == "/latest/api/token" else self.answer(404)

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
            self.answer(401)
        elif self.path == "/latest/meta-data/spot/instance-action" and self.notice.exists():
            self.answer(200, self.notice.read_text())
        else:
            self.answer(404)

    def answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def main() -> None:
    what, address, port, path = sys.argv[1:]
    if what == "api":
        serve_api(address, int(port), Path(path))
    else:
        Metadata.notice = Path(path)
        ThreadingHTTPServer((address, int(port)), Metadata).serve_forever()


if __name__ == "__main__":
    main()
