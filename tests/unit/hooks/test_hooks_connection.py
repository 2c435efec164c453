import json
from types import SimpleNamespace

import pytest

from qure_provider.api.errors import QureSettingsError
from qure_provider.api.model import ResultsVersion
from qure_provider.hooks.connection import QureConnection, UploadDialect, origin


def read(host="https://qure.example/platform", password="secret-token", schema=None, port=None, extra=None):
    text = extra if isinstance(extra, str) else json.dumps(extra or {})
    return QureConnection.from_airflow(
        SimpleNamespace(conn_id="qure_test", host=host, password=password, schema=schema, port=port, extra=text)
    )


def refusal(**fields):
    with pytest.raises(QureSettingsError) as caught:
        read(**fields)
    return str(caught.value)


def test_defaults_are_filled_in():
    connection = read()

    assert connection.base_url == "https://qure.example/platform/"
    assert connection.token == "secret-token"
    assert connection.source == ""
    assert connection.verify is True
    assert (connection.connect_timeout, connection.read_timeout) == (10, 120)
    assert connection.requests_per_second == 10
    assert connection.upload_dialect is UploadDialect.FORM_DATA
    assert connection.xray_results is ResultsVersion.V2
    assert connection.max_request_bytes == 100_000_000
    assert connection.parallel_uploads == 4
    assert connection.max_answer_bytes == 16 * 1024 * 1024
    assert connection.max_asset_bytes == 2 * 1024**3


def test_everything_can_be_set_with_the_texts_that_a_uri_brings(tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")

    connection = read(
        extra={
            "source": " personal-user-1 ",
            "verify": "true",
            "ca_bundle": str(bundle),
            "proxies": "http://proxy:3128",
            "connect_timeout": "3",
            "read_timeout": "30.5",
            "requests_per_second": "12",
            "triggerers": "3",
            "upload_dialect": "related",
            "xray_results": "v1",
            "max_request_bytes": "5000000",
            "parallel_uploads": "2",
            "max_answer_bytes": "2048",
            "max_asset_bytes": "4096",
            "max_assets": "7",
        }
    )

    assert connection.source == "personal-user-1"
    assert connection.trust == str(bundle)
    assert connection.proxies == {"http": "http://proxy:3128", "https": "http://proxy:3128"}
    assert (connection.connect_timeout, connection.read_timeout) == (3, 30.5)
    assert connection.requests_per_second == 4, "three triggerers share the total"
    assert connection.upload_dialect is UploadDialect.RELATED
    assert connection.xray_results is ResultsVersion.V1
    assert connection.max_request_bytes == 5_000_000
    assert (connection.parallel_uploads, connection.max_assets) == (2, 7)
    assert (connection.max_answer_bytes, connection.max_asset_bytes) == (2048, 4096)


def test_empty_fields_of_the_form_mean_the_default():
    connection = read(extra={"source": None, "verify": None, "read_timeout": "", "upload_dialect": None, "proxies": ""})

    assert connection == read()


@pytest.mark.parametrize(
    ("fields", "base_url"),
    [
        ({"host": "https://qure.example"}, "https://qure.example/"),
        ({"host": "https://qure.example/"}, "https://qure.example/"),
        ({"host": "https://qure.example:443/a/b/"}, "https://qure.example/a/b/"),
        ({"host": "https://qure.example:8443"}, "https://qure.example:8443/"),
        ({"host": "https://qure.example", "port": 8443}, "https://qure.example:8443/"),
        ({"host": "https://qure.example", "schema": "HTTPS"}, "https://qure.example/"),
        ({"host": "qure.example", "schema": "https", "port": 8443}, "https://qure.example:8443/"),
        ({"host": "qure.example/a", "schema": "https"}, "https://qure.example/a/"),
        ({"host": "https://[2001:db8::1]:8443/a"}, "https://[2001:db8::1]:8443/a/"),
        ({"host": "http://localhost:8080"}, "http://localhost:8080/"),
        ({"host": "http://127.0.0.1:8080"}, "http://127.0.0.1:8080/"),
        ({"host": "http://[::1]:8080"}, "http://[::1]:8080/"),
    ],
)
def test_base_urls_are_understood(fields, base_url):
    assert read(**fields).base_url == base_url


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"host": ""}, "host"),
        ({"host": None}, "host"),
        ({"host": "qure.example"}, "host"),
        ({"host": "//qure.example"}, "host"),
        ({"host": "ftp://qure.example"}, "host"),
        ({"host": "https://"}, "host"),
        ({"host": "https://user:pass@qure.example"}, "host"),
        ({"host": "https://qure.example?x=1"}, "host"),
        ({"host": "https://qure.example#x"}, "host"),
        ({"host": "https://qure.example:99999"}, "host"),
        ({"host": "https://[qure.example"}, "host"),
        ({"host": "https://qure.example/a b"}, "host"),
        ({"host": "https://qure.example/ü"}, "host"),
        ({"host": "http://qure.example"}, "host"),
        ({"host": "https://qure.example", "schema": "http"}, "schema"),
        ({"host": "https://qure.example:1", "port": 2}, "port"),
        ({"password": ""}, "password"),
        ({"password": None}, "password"),
        ({"password": "Token abc"}, "password"),
        ({"password": "abc\r\nX: y"}, "password"),
        ({"password": "tökén"}, "password"),
        ({"extra": "{"}, "extra"),
        ({"extra": "[]"}, "extra"),
        ({"extra": {"source": 5}}, "source"),
        ({"extra": {"source": "a\nb"}}, "source"),
        ({"extra": {"verify": "perhaps"}}, "verify"),
        ({"extra": {"verify": False, "ca_bundle": "/etc/hosts"}}, "ca_bundle"),
        ({"extra": {"ca_bundle": "/nowhere/ca.pem"}}, "ca_bundle"),
        ({"extra": {"proxies": "proxy:3128"}}, "proxies"),
        ({"extra": {"proxies": "socks5://proxy:1080"}}, "proxies"),
        ({"extra": {"proxies": "{"}}, "proxies"),
        ({"extra": {"proxies": {"ftp": "http://proxy"}}}, "proxies"),
        ({"extra": {"proxies": {"https": 5}}}, "proxies"),
        ({"extra": {"proxies": 5}}, "proxies"),
        ({"extra": {"connect_timeout": 0}}, "connect_timeout"),
        ({"extra": {"read_timeout": "soon"}}, "read_timeout"),
        ({"extra": {"read_timeout": "nan"}}, "read_timeout"),
        ({"extra": {"read_timeout": True}}, "read_timeout"),
        ({"extra": {"requests_per_second": 0}}, "requests_per_second"),
        ({"extra": {"triggerers": 0}}, "triggerers"),
        ({"extra": {"triggerers": 1.5}}, "triggerers"),
        ({"extra": {"upload_dialect": "soap"}}, "upload_dialect"),
        ({"extra": {"xray_results": "v3"}}, "xray_results"),
        ({"extra": {"max_request_bytes": 100_000_001}}, "max_request_bytes"),
        ({"extra": {"parallel_uploads": 0}}, "parallel_uploads"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    message = refusal(**fields)

    assert f"Connection qure_test, field {named}: " in message
    assert message.endswith(".")


def test_no_value_is_repeated_in_an_error():
    assert "hunter2" not in refusal(host="https://user:hunter2@qure.example")
    assert "hunter2" not in refusal(password="Token hunter2")
    assert "hunter2" not in refusal(extra={"proxies": "socks5://u:hunter2@proxy"})


def test_plain_http_to_another_machine_needs_a_decision_and_warns(caplog):
    connection = read(host="http://10.0.0.5:8080", extra={"allow_plain_http": True})

    assert connection.base_url == "http://10.0.0.5:8080/"
    assert "without TLS" in caplog.text
    assert "10.0.0.5" not in caplog.text


def test_switching_verification_off_warns(caplog):
    assert read(extra={"verify": False}).trust is False
    assert "TLS verification is off" in caplog.text


def test_repr_hides_what_grants_access():
    connection = read(extra={"source": "personal-user-1", "proxies": "http://u:hunter2@proxy:1"})

    for secret in ("secret-token", "personal-user-1", "hunter2"):
        assert secret not in repr(connection)


def test_the_environment_names_authorities_and_proxies_where_the_connection_does_not(monkeypatch, tmp_path):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert read().trust.endswith(".pem")
    assert read().proxy_for("https://qure.example/x") is None

    monkeypatch.setenv("SSL_CERT_FILE", "/etc/site.pem")
    monkeypatch.setenv("https_proxy", "http://site:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert read().trust == "/etc/site.pem"
    assert read().proxy_for("https://qure.example/x") == "http://site:3128"
    assert read().proxy_for("https://qure.inside.example/x") is None

    own = read(extra={"proxies": '{"https": "http://own:3128"}'})
    assert own.proxy_for("https://qure.inside.example/x") == "http://own:3128"
    assert own.proxy_for("http://qure.example/x") is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("https://A.example/x", "https://a.example:443/y?z", True),
        ("https://a.example", "http://a.example", False),
        ("https://a.example", "https://a.example:8443", False),
        ("https://a.example", "https://b.a.example", False),
    ],
)
def test_origins_are_scheme_host_and_port(first, second, same):
    assert (origin(first) == origin(second)) is same
