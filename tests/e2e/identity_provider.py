"""A small OpenID provider for the login of the pages: discovery, authorization code with PKCE, and refresh."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from tests.api.test_oidc import Issuer

CLIENT = "rlvo-page"


@dataclass
class Provider(Issuer):
    """An issuer at which ``person`` is always signed in; ``grants`` has the grant type of each token request."""

    person: str = "dr-ana"
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    refresh_tokens: set[str] = field(default_factory=set)
    grants: list[str] = field(default_factory=list)

    def document(self, path: str) -> dict[str, Any] | None:
        found = super().document(path)
        if path == "/.well-known/openid-configuration" and found:
            found |= {"authorization_endpoint": f"{self.url}/authorize", "token_endpoint": f"{self.url}/token"}
        return found

    def authorize(self, asked: dict[str, str]) -> str:
        """The address to which the browser returns, with a code."""
        assert (asked["response_type"], asked["client_id"]) == ("code", CLIENT)
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe()
        self.codes[code] = asked
        answer = {"code": code, "state": asked["state"], "iss": self.url}
        return f"{asked['redirect_uri']}?{urlencode(answer)}"

    def tokens(self, form: dict[str, str]) -> dict[str, Any] | None:
        """The answer of the token endpoint; None refuses the request. A code and a refresh token are valid once."""
        self.grants.append(form["grant_type"])
        if form["grant_type"] == "refresh_token":
            if form["refresh_token"] not in self.refresh_tokens:
                return None
            self.refresh_tokens.remove(form["refresh_token"])
        else:
            asked = self.codes.pop(form["code"], None)
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            challenge = urlsafe_b64encode(digest).rstrip(b"=").decode()
            if asked is None or (asked["code_challenge"], asked["redirect_uri"]) != (challenge, form["redirect_uri"]):
                return None
        refresh = secrets.token_urlsafe()
        self.refresh_tokens.add(refresh)
        access = self.token(sub="f3b1", tenant="ward", preferred_username=self.person)
        return {"access_token": access, "token_type": "Bearer", "expires_in": 300, "refresh_token": refresh}


@contextmanager
def run_provider() -> Iterator[Provider]:
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            if address.path == "/authorize":
                self.send_response(302)
                self.send_header("Location", provider.authorize(dict(parse_qsl(address.query))))
                self.end_headers()
                return
            self.answer(provider.document(address.path))

        def do_POST(self) -> None:
            form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self.answer(provider.tokens(form))

        def answer(self, document: dict[str, Any] | None) -> None:
            self.send_response(200 if document else 400)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(document or {"error": "invalid_grant"}).encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
