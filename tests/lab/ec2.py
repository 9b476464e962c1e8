"""An AWS API whose instances are SSH hosts of the lab: moto behind a record of its calls, and with a shortage of spot machines.

Run as a program it is the server. It prints one JSON line for each instance that starts or ends.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

NO_CAPACITY = (
    "<Response><Errors><Error><Code>InsufficientInstanceCapacity</Code><Message>There is no Spot capacity available that "
    "matches your request.</Message></Error></Errors><RequestID>0</RequestID></Response>"
)


class Recorded:
    """A WSGI application that records each call, and refuses spot instances while the file `shortage` exists."""

    def __init__(self, app: Callable[..., Iterable[bytes]], folder: Path) -> None:
        self.app, self.calls, self.shortage = app, folder / "calls.jsonl", folder / "shortage"

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(body)
        call = dict(parse_qsl(body.decode(errors="replace")))
        spot = call.get("InstanceMarketOptions.MarketType") == "spot"
        refused = call.get("Action") == "RunInstances" and spot and self.shortage.exists()
        if "Action" in call:
            with self.calls.open("a") as file:
                file.write(json.dumps({**call, "refused": refused, "time": time.time()}) + "\n")
        if refused:
            start_response("500 Internal Server Error", [("Content-Type", "text/xml")])
            return [NO_CAPACITY.encode()]
        return self.app(environ, start_response)


def serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    parser = argparse.ArgumentParser()
    parser.add_argument("-H", "--host")
    parser.add_argument("-p", "--port", type=int)
    parser.add_argument("--folder", type=Path, default=Path("."))
    options = parser.parse_args()
    app = Recorded(DomainDispatcherApplication(create_backend_app), options.folder)
    run_simple(options.host, options.port, app, threaded=True)


if __name__ == "__main__":
    serve()
