"""Each key each way, and each refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from rustunnel_py import config as configuration
from rustunnel_py.config import Config, Key, keys, load
from rustunnel_py.errors import ConfigError
from rustunnel_py.model.access import Secret

KEYS = {key.dotted: key for key in keys()}

# A value that is not the default, as TOML, and what else must be set for it to be accepted.
OTHER: dict[str, tuple[str, dict[str, object]]] = {
    "server.domain": ("'t.example.com'", {}),
    "server.host": ("'127.0.0.1'", {}),
    "server.dashboard_host": ("'::1'", {}),
    "server.dashboard_origin": ("'https://dash.example.com'", {}),
    "server.trusted_proxies": ("['10.0.0.0/8', '::1']", {}),
    "server.proxy_protocol_from": ("['192.0.2.7']", {}),
    "server.proxy_protocol_on": ("['https', 'tcp']", {}),
    "tls.cert_path": ("'/c.pem'", {"tls.key_path": "/k.pem"}),
    "tls.key_path": ("'/k.pem'", {"tls.cert_path": "/c.pem"}),
    "auth.admin_token": ("'hush-hush'", {}),
    "auth.require_auth": ("false", {"server.host": "::1"}),
    "logging.level": ("'debug'", {}),
    "logging.format": ("'json'", {}),
    "logging.access_log_format": ("'json'", {}),
    "limits.target_max_bytes": ("4096", {}),
    "limits.header_max_bytes": ("4096", {}),
    "limits.head_max_bytes": ("16384", {}),
    "limits.tcp_port_range": ("[30000, 30010]", {}),
    "names.reserved": ("['www', 'admin']", {}),
    "inspect.redact": ("'strict'", {}),
    "inspect.redact_hosts": ("['*.example.com=strict']", {}),
    "inspect.redact_names": ("['x-internal-*']", {}),
    "inspect.redact_patterns": ("['corp-[0-9]+']", {}),
}


def other(key: Key) -> tuple[str, object, dict[str, object]]:
    """A value as TOML text, the same as Python, and its companions."""
    if key.dotted in OTHER:
        text, companions = OTHER[key.dotted]
    elif isinstance(key.default, bool):
        text, companions = str(not key.default).lower(), {}
    elif isinstance(key.default, int | float):
        text, companions = "17", {}
    else:
        text, companions = "'another'", {}
    value = tomli.loads(f"v = {text}")["v"]
    return text, tuple(value) if isinstance(value, list) else value, companions


def read(config: Config, key: Key) -> object:
    value = getattr(getattr(config, key.table), key.name)
    return value.reveal() if isinstance(value, Secret) else value


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
class TestEachKey:
    def test_default(self, key: Key) -> None:
        assert read(load(None, {}, {}), key) == key.default

    def test_file(self, key: Key) -> None:
        text, value, companions = other(key)
        assert read(load(f"[{key.table}]\n{key.name} = {text}", {}, companions), key) == value != key.default

    def test_environment(self, key: Key) -> None:
        text, value, companions = other(key)
        bare = text.strip("'") if text.startswith("'") else text
        for form in (text, bare):
            assert read(load(None, {key.variable: form}, companions), key) == value

    def test_flag(self, key: Key) -> None:
        _, value, companions = other(key)
        assert read(load(None, {}, {**companions, key.dotted: value}), key) == value

    def test_precedence(self, key: Key) -> None:
        text, value, companions = other(key)
        default = f"[{key.table}]\n{key.name} = {text}"
        again = {key.variable: text}
        assert read(load(default, again, {**companions, key.dotted: None}), key) == value
        if isinstance(value, int | float) and not isinstance(value, bool):
            one, two = value + 1, value + 2
            assert read(load(default, {key.variable: str(one)}, companions), key) == one
            assert read(load(default, {key.variable: str(one)}, {key.dotted: two}), key) == two

    def test_wrong_type_names_key_value_and_what_is_allowed(self, key: Key) -> None:
        with pytest.raises(ConfigError) as caught:
            load(f"[{key.table}]\n{key.name} = 1979-05-27", {}, {})
        message = str(caught.value)
        assert caught.value.key == key.dotted
        assert key.dotted in message
        assert key.allowed in message
        assert ("1979-05-27" in message) is not key.secret

    def test_wrong_type_in_the_environment_names_the_variable(self, key: Key) -> None:
        if key.takes_text and "one of" not in key.allowed:
            return  # any text is a text
        with pytest.raises(ConfigError, match=key.variable):
            load(None, {key.variable: "nonsense"}, {})

    def test_described(self, key: Key) -> None:
        assert key.description.rstrip().endswith((".", "`"))


def refusal(toml: str | None = None, environment: dict[str, str] | None = None, **flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(toml, environment or {}, {name.replace("__", "."): value for name, value in flags.items()})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("toml", "nearest"),
    [
        ("[server]\nhttp_prot = 1", "server.http_port"),
        ("[servers]\ndomain = 'x'", "server.domain"),
        ("[server]\nlevel = 'info'", "logging.level"),
        ("http_port = 1", "server.http_port"),
        ("[limits]\ntcp_ports = [1, 2]", "limits.tcp_port_range"),
        ("[auth]\nadmintoken = 'x'", "auth.admin_token"),
    ],
)
def test_P13_unknown_key_names_the_nearest(toml: str, nearest: str) -> None:
    assert refusal(toml).endswith(f"no such key; the nearest is {nearest}")


def test_P13_unknown_key_in_the_environment() -> None:
    message = refusal(None, {"RUSTUNNEL_SERVER__DOMAINE": "x"})
    assert message == "server.domaine: no such key in RUSTUNNEL_SERVER__DOMAINE; the nearest is server.domain"


def test_names_without_a_double_underscore_are_not_the_servers() -> None:
    environment = {"RUSTUNNEL_TOKEN": "x", "RUSTUNNEL_SERVER": "y", "RUSTUNNEL_DATA": "z", "OTHER__KEY": "1"}
    load(None, environment, {})


def test_P13_environment_beats_the_file() -> None:
    assert load("[server]\nhttp_port = 1", {"RUSTUNNEL_SERVER__HTTP_PORT": "2"}, {}).server.http_port == 2


@pytest.mark.parametrize("key", ["database.url", "logging.sentry_dsn"])
def test_what_will_never_come_names_its_replacement(key: str) -> None:
    table, name = key.split(".")
    replacement = {"database.url": "database.path", "logging.sentry_dsn": "logging.format"}[key]
    assert replacement in refusal(f"[{table}]\n{name} = 'scheme://user:secret@host/x'")
    assert "secret" not in refusal(f"[{table}]\n{name} = 'scheme://user:secret@host/x'")
    load(f"[{table}]\n{name} = ''", {}, {})


@pytest.mark.parametrize("key", configuration.LATER)
@pytest.mark.parametrize(
    ("value", "asks"),
    [("false", False), ("0", False), ("''", False), ("[0, 0]", False), ("[]", False), ("true", True), ("3", True)],
)
def test_later_features(key: str, value: str, asks: bool) -> None:
    table, name = key.replace("*", "anything").split(".")
    toml = f"[{table}]\n{name} = {value}"
    variable = {f"RUSTUNNEL_{table}__{name}".upper(): value}
    if asks:
        assert "later version" in refusal(toml)
        assert "later version" in refusal(None, variable)
    else:
        load(toml, {}, {})
        load(None, variable, {})


def test_no_toml() -> None:
    assert "no TOML" in refusal("[server\n")
    assert "[server]" in refusal("server = 3")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[server]\nhttp_port = true", "whole number"),
        ("[server]\nhttp_port = 8080.0", "whole number"),
        ("[server]\nhttp_port = 65536", "from 0 to 65535"),
        ("[server]\nhttp_port = -1", "from 0 to 65535"),
        ("[server]\ndrain_seconds = nan", "a number from 0"),
        ("[server]\ndrain_seconds = inf", "a number from 0"),
        ("[server]\ndrain_seconds = '3'", "a number from 0"),
        ("[server]\ndashboard_tls = 1", "true or false"),
        ("[limits]\ntcp_port_range = [1]", "two ports"),
        ("[limits]\ntcp_port_range = [2, 1]", "first <= last"),
        ("[limits]\ntcp_port_range = [0, 5]", "first <= last"),
        ("[logging]\nlevel = 'loud'", "'debug'"),
        ("[server]\ndomain = 'exa mple'", "host name"),
        ("[server]\ndomain = ''", "host name"),
        ("[server]\ndomain = '10.0.0.1'", "host name"),
        ("[server]\nhost = 'example.com'", "IP address"),
        ("[server]\nhttps_port = 8080", "server.http_port has it"),
        ("[server]\ndashboard_host = '0.0.0.0'", "dashboard_tls"),
        ("[server]\ndashboard_tls = true\ndashboard_plain = true", "contradicts"),
        ("[server]\ndashboard_origin = 'https://x/path'", "scheme, host and port"),
        ("[tls]\ncert_path = '/c.pem'", "tls.key_path: is missing"),
        ("[tls]\nkey_path = '/k.pem'", "tls.cert_path: is missing"),
        ("[auth]\nadmin_token = 'a b'", "visible ASCII"),
        ("[auth]\nrequire_auth = false", "--open-to-the-world"),
        ("[names]\nreserved = ['WWW']", "lower-case"),
        ("[server]\ntrusted_proxies = ['10.0.0.1/8']", "server.trusted_proxies: 10.0.0.1/8 has host bits set"),
        ("[server]\nproxy_protocol_from = ['proxy']", "such as 10.0.0.0/8"),
        ("[server]\nproxy_protocol_on = ['smtp']", "a list of 'control', 'http', 'https', 'tcp'"),
    ],
)
def test_P13_refused(toml: str, words: str) -> None:
    assert words in refusal(toml)


def test_open_server() -> None:
    load("[auth]\nrequire_auth = false\n[server]\nhost = 'localhost'", {}, {})
    load("[auth]\nrequire_auth = false\nopen_to_the_world = true", {}, {})
    assert "everybody who reaches ::" in refusal(
        "[auth]\nrequire_auth = false\n[server]\nhost = '127.0.0.1'\ndashboard_host = '::'\ndashboard_tls = true"
    )


def test_canonical_forms() -> None:
    config = load("[server]\ndomain = 'T.Example.COM.'\nhost = 'localhost'\ndashboard_host = '0:0::1'", {}, {})
    assert config.server.domain == "t.example.com"
    assert config.server.host == "127.0.0.1"
    assert config.server.dashboard_host == "::1"


def test_ports_may_all_be_free_ones() -> None:
    ports = {f"server.{name}_port": 0 for name in ("http", "https", "control", "dashboard")}
    assert load(None, {}, ports).server.https_port == 0


def test_a_second_assignment_cannot_hide_in_a_variable() -> None:
    assert "cannot be used" in refusal(None, {"RUSTUNNEL_SERVER__HTTP_PORT": "1\nhttps_port = 2"})


def test_secrets_never_show() -> None:
    config = load("[auth]\nadmin_token = 'hush-hush'", {}, {})
    assert "hush" not in repr(config)
    assert "hush" not in refusal("[auth]\nadmin_token = ['hush']")
    assert "hush" not in refusal("[auth]\nadmin_token = 'hush hush'")


def test_database_paths() -> None:
    data = Path("/data")
    config = load(None, {}, {})
    assert configuration.database_paths(config.database, data) == (data / "main.db", data / "captured.db")
    config = load("[database]\npath = 'x/a.db'", {}, {})
    assert configuration.database_paths(config.database, data) == (Path("x/a.db"), Path("x/captured.db"))
    config = load("[database]\npath = 'x/a.db'\ncaptured_path = '/y/c.db'", {}, {})
    assert configuration.database_paths(config.database, data) == (Path("x/a.db"), Path("/y/c.db"))
