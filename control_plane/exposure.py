"""What the settings leave open to others on the network. Pure.

Nothing of ours speaks TLS to partners or operators: that is a proxy's, on this host. So what listens beyond this host,
or goes to another one without TLS, is refused unless the settings say that it is meant (`insecure = true`).
"""

import ipaddress
from urllib.parse import urlsplit

from control_plane.errors import SettingsError
from control_plane.settings import MAIN_ACQUIRER, Settings

_MEANT = "insecure = true in the settings (or BULKHEAD_INSECURE=true) starts it all the same"


def require_secure(settings: Settings) -> None:
    """Refuse what is open to others and was not said to be meant. Raises SettingsError."""
    found = insecurities(settings)
    if found and not settings.insecure:
        raise SettingsError(
            "; ".join(f"{name} {what}" for name, what, _ in found),
            where=", ".join(name for name, _, _ in found) + " in the settings",
            hint="; ".join(dict.fromkeys(hint for _, _, hint in found)) + f"; {_MEANT}",
        )


def insecurities(settings: Settings) -> list[tuple[str, str, str]]:
    """Return each setting that is open to others, with what is wrong about it, and what to do."""
    found = []
    listening = [("http_host", settings.http_host, "partners' API keys and payments")]
    if settings.admin_port is not None:
        listening.append(("admin_host", settings.admin_host, "operators' keys"))
    for name, host, what in listening:
        if not _is_this_host(host):
            hint = f"leave {name} at 127.0.0.1 and put a proxy with TLS before it on this host"
            found.append((name, f"is {host}: {what} would cross the network in clear", hint))
    urls = {"acquirer_url" if name == MAIN_ACQUIRER else f"acquirers.{name}": url for name, url in _others(settings)}
    for name, url in urls.items():
        parts = urlsplit(url)
        if parts.scheme == "http" and not _is_this_host(parts.hostname or ""):
            what = f"is http:// to {parts.hostname}: payments would cross the network in clear"
            found.append((name, what, "name an https:// URL"))
    parts = urlsplit(settings.redis_url)
    if parts.scheme == "redis" and not _is_this_host(parts.hostname or ""):
        what = f"is redis:// to {parts.hostname}: its password and the directory would cross the network in clear"
        found.append(("redis_url", what, "name a rediss:// URL"))
    return found


def _others(settings: Settings) -> list[tuple[str, str]]:
    """Return the acquirers that are none of our simulators."""
    return [(name, url) for name, url in settings.acquirer_urls.items() if name not in settings.simulators]


def _is_this_host(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: who answers to it is another's word
