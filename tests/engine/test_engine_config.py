"""Settings: names, values, the environment, and what a child process inherits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.errors import UsageError
from stream.engine.config import PREFIX, Settings, load_settings


def test_every_field_has_a_sentence():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert " " in field.description, name


def test_bootstrap_alone_selects_ones_own_cluster():
    settings = load_settings(environ={"ZTF_BOOTSTRAP": "kafka1:9092,kafka2:9092"})
    assert settings.kafka() == {"bootstrap.servers": "kafka1:9092,kafka2:9092"}


def test_unknown_variable_is_refused_and_the_nearest_named():
    with pytest.raises(UsageError, match=r"ZTF_BOOTSTRP.*did you mean ZTF_BOOTSTRAP\?"):
        load_settings(environ={"ZTF_BOOTSTRP": "x:1"})


def test_unknown_variable_is_refused_in_the_real_environment(monkeypatch):
    monkeypatch.setenv("ZTF_STROE", "/data")
    with pytest.raises(UsageError, match="ZTF_STORE"):
        load_settings()


def test_other_peoples_variables_are_none_of_ours():
    assert load_settings(environ={"ZTFDATA": "/x", "PATH": "/bin"}) == load_settings(environ={})


def test_unknown_keyword_is_refused():
    with pytest.raises(UsageError, match="did you mean 'redis_url'"):
        load_settings(environ={}, redis_ur="redis://x")


def test_keyword_wins_over_environment_and_none_is_left_out():
    env = {"ZTF_STORE": "a", "ZTF_CAMERA": "small"}
    settings = load_settings(environ=env, store="b", camera=None)
    assert (settings.store, settings.camera) == ("b", "small")


def test_given_environment_replaces_the_real_one(monkeypatch):
    monkeypatch.setenv("ZTF_STORE", "/real")
    assert load_settings(environ={}).store == "store"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"ZTF_PIXEL_WORKERS": "many"}, "ZTF_PIXEL_WORKERS"),
        ({"ZTF_PIXEL_WORKERS": "0"}, "ZTF_PIXEL_WORKERS"),
        ({"ZTF_CAMERA": "huge"}, "ZTF_CAMERA"),
        ({"ZTF_SASL_USERNAME": "me"}, "go together"),
        ({"ZTF_TLS_CA": "/ca.pem"}, "tls is off"),
    ],
)
def test_bad_values_are_refused_by_name(environ, said):
    with pytest.raises(UsageError, match=said):
        load_settings(environ=environ)


def test_user_password_and_tls_reach_the_client():
    settings = load_settings(
        environ={}, bootstrap="k:1", sasl_username="u", sasl_password="p", tls=True, tls_ca="/ca.pem"
    )
    assert settings.kafka() == {
        "bootstrap.servers": "k:1",
        "sasl.username": "u",
        "sasl.password": "p",
        "sasl.mechanism": "SCRAM-SHA-512",
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": "/ca.pem",
    }
    assert "p" not in repr(settings.sasl_password)


def test_without_broker_the_message_says_what_to_do():
    with pytest.raises(UsageError, match="ZTF_BOOTSTRAP"):
        load_settings(environ={}).kafka()


def test_settings_do_not_change():
    with pytest.raises(ValueError):
        load_settings(environ={}).store = "other"  # type: ignore[misc]


@given(
    workers=st.integers(1, 512),
    store=st.text("abcdefghij/:.-", min_size=1, max_size=30),
    tls=st.booleans(),
    password=st.text("abc123!$ ", min_size=1, max_size=12).filter(str.strip),
)
def test_a_child_process_gets_the_same_settings(workers, store, tls, password):
    settings = load_settings(
        environ={}, pixel_workers=workers, store=store, tls=tls, sasl_username="u", sasl_password=password
    )
    inherited = settings.environment()
    assert all(name.startswith(PREFIX) for name in inherited)
    assert load_settings(environ=inherited) == settings
