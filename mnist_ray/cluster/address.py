"""Finds out which service answers at an address: the cluster, or one of the ports that are mistaken for it.

A Ray head listens on three ports: jobs join the cluster at its GCS (6379); `ray job submit` and browsers use the dashboard
(8265); Ray Client (10001) serves `ray://`. Each probe has a time limit, unlike `ray.init`, which tries for a minute.
"""

import http.client
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

PROBE_S = 10.0
"""Seconds to wait for one answer."""

Service = Literal["GCS", "Ray Client", "dashboard", "other", "nothing"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What answers at an address."""

    service: Service
    detail: str = ""
    """Of `other` and `nothing`: what was seen instead."""
    accepted: bool = True
    """Whether the service takes the token of this process, or asks for none."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of a GCS that accepts us: the versions of Ray and Python that the cluster was started with."""
    dashboard: str = ""
    """Of a GCS that accepts us: HOST:PORT of the cluster's dashboard; empty if it has none."""
    nodes: frozenset[str] = frozenset()
    """Of a GCS that accepts us: the ids of the living nodes."""


def sends_token() -> bool:
    """Whether the calls of this process carry a token."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def token_source() -> str:
    """Where Ray takes the token from: `RAY_AUTH_TOKEN` or a file's path; empty if there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    return path if os.path.isfile(path) and os.path.getsize(path) else ""


def probe(address: str) -> Answer:
    """Ask at HOST:PORT, with the token if token authentication is on. Takes at most three times `PROBE_S`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
    except (OSError, ValueError, OverflowError) as error:
        why = "no answer" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
        return Answer("nothing", why)
    return _grpc(address) or _http(address) or Answer("other", "a server that speaks neither gRPC nor HTTP")


def asks_for_token(address: str) -> bool:
    """Whether the GCS at HOST:PORT refuses a caller without a token."""
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            _look_up(channel, b"cluster", b"CLUSTER_METADATA")
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def _look_up(channel: Any, namespace: bytes, key: bytes) -> bytes:
    """A value of the GCS's key-value store; empty if there is none. Raises grpc.RpcError."""
    from ray.core.generated.gcs_service_pb2 import InternalKVGetRequest  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub

    request = InternalKVGetRequest(key=key, namespace=namespace)
    return bytes(InternalKVGcsServiceStub(channel).InternalKVGet(request, timeout=PROBE_S).value)


def _grpc(address: str) -> Answer | None:
    """The answer of a gRPC server; None if there is none."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.exceptions import AuthenticationError

    options = [("grpc.enable_http_proxy", 0)]
    try:
        with init_grpc_channel(address, options) as channel:
            return _ask(channel)
    except AuthenticationError:  # there is no token to send
        with grpc.insecure_channel(address, options) as channel:
            return _ask(channel)


def _ask(channel: Any) -> Answer | None:
    import grpc

    try:
        return _gcs(channel)
    except grpc.RpcError as error:
        code = error.code()
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return Answer("GCS", accepted=False)
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return Answer("Ray Client") if _is_client_server(channel) else Answer("other", "a gRPC server, but not Ray's GCS")
    return None


def _gcs(channel: Any) -> Answer:
    from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    metadata = json.loads(_look_up(channel, b"cluster", b"CLUSTER_METADATA"))
    listed = NodeInfoGcsServiceStub(channel).GetAllNodeInfo(GetAllNodeInfoRequest(), timeout=PROBE_S).node_info_list
    return Answer(
        "GCS",
        versions={"Ray": metadata["ray_version"], "Python": metadata["python_version"]},
        dashboard=_look_up(channel, b"dashboard", b"webui:url").decode(),
        nodes=frozenset(node.node_id.hex() for node in listed if node.state == node.ALIVE),
    )


def _is_client_server(channel: Any) -> bool:
    import grpc
    from ray.core.generated.ray_client_pb2 import ClusterInfoRequest, ClusterInfoType  # type: ignore[attr-defined]
    from ray.core.generated.ray_client_pb2_grpc import RayletDriverStub

    try:
        RayletDriverStub(channel).ClusterInfo(ClusterInfoRequest(type=ClusterInfoType.PING), timeout=PROBE_S)
    except grpc.RpcError as error:
        return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return True


def _http(address: str) -> Answer | None:
    """The answer of an HTTP server; None if there is none."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray.exceptions import AuthenticationError

    headers: dict[str, str] = {}
    with suppress(AuthenticationError):
        headers = get_auth_headers_if_auth_enabled({})
    connection = http.client.HTTPConnection(address, timeout=PROBE_S)
    try:
        connection.request("GET", "/api/version", headers=headers)
        reply = connection.getresponse()
        status, body = reply.status, reply.read(10_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if status in (401, 403) and "authentication token" in body:
        return Answer("dashboard", accepted=False)
    if status == 200 and '"ray_version"' in body:
        return Answer("dashboard")
    return Answer("other", f"an HTTP server (status {status}), but not Ray's dashboard")
