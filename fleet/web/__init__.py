"""The console and the HTTP API of the fleet, on Starlette.

``app`` puts everything together; ``settings`` is what it is told; ``identity`` says who asks, ``guard`` what is let
through (host, origin, CSRF, headers), ``sign_in`` begins and ends sessions, ``oidc`` with an OpenID provider; ``api``
is the JSON API with its OpenAPI document, ``stream`` the server-sent events, ``pages`` the console that people look at.
"""
