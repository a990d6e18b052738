"""Login of a person on the pages: what the page needs to know of the identity provider, and who the caller is.

Design notes:
- The page itself runs the authorization code flow with PKCE (RFC 6749, RFC 7636) as a public client: the service holds
  no client secret and no session. The access token is then sent as any other bearer token.
- The pages may connect to the origin of the issuer only, so its token endpoint must have the same origin.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from app.core.config import Settings


def provider(settings: Settings) -> dict[str, str]:
    """Returns issuer, client and scopes for the login of the pages; empty if the service offers none."""
    if not (settings.oidc_issuer and settings.oidc_client_id):
        return {}
    return {"issuer": settings.oidc_issuer, "client_id": settings.oidc_client_id, "scope": settings.oidc_scope}


def content_policy(settings: Settings | None = None) -> str:
    """Returns the Content-Security-Policy of a response; with ``settings``, that of a page with its login."""
    issuer = urlsplit(provider(settings).get("issuer", "")) if settings else None
    login = f" {issuer.scheme}://{issuer.netloc}" if issuer and issuer.netloc else ""
    return (
        f"default-src 'self'; img-src 'self' data: blob:; connect-src 'self' blob: data:{login}; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
